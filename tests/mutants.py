# ruff: noqa: E501  (a mutant is easier to read on one line)
"""Mutation check of the algebra: change one formula at a time in a copy of the package; a test must go red.

    python tests/mutants.py            # all mutants, a few minutes; prints the survivors and the score

Not collected by pytest. Each mutant is a file, a text that must occur in it exactly once, and what replaces it.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
QUICK = [
    "tests/golden",
    "tests/objectives",
    *(f"tests/core/test_{name}.py" for name in ("ratios", "normalize", "entropy")),
]
QUICK += ["--deselect", "tests/objectives/test_objective.py::test_every_preset_compiles_without_graph_breaks"]

MUTANTS = [
    ("core/ratios.py", "masked(logprobs, mask) - masked(reference, mask)", "masked(reference, mask) - masked(logprobs, mask)"),
    ("core/ratios.py", "difference.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)", "difference"),
    ("core/ratios.py", "return total / mask.sum(dim=-1, keepdim=True).clamp(min=1).to(total.dtype)", "return total / mask.shape[-1]"),
    ("core/ratios.py", "kept = masked(values, mask)", "kept = values"),
    ("core/ratios.py", 'if over == "turn_mean":', 'if over == "turn_sum":'),
    ("core/normalize.py", "return each / length", "return each"),
    ("core/normalize.py", 'if reduction == "sequence_mean_token_sum":', 'if reduction == "sequence_mean_token_mean":'),
    ("core/normalize.py", "each / mask.sum(dim=-1, keepdim=True)", "each / mask.sum(dim=-1, keepdim=True).amax()"),
    ("core/entropy.py", "masked(centred_logprobs * centred_advantages, mask)", "masked(centred_logprobs * advantages, mask)"),
    ("core/entropy.py", "centred_logprobs = logprobs - masked(logprobs, mask).sum() / count", "centred_logprobs = logprobs"),
    ("core/entropy.py", "torch.floor(mask.sum().double() * share + 1e-9)", "torch.ceil(mask.sum().double() * share)"),
    ("core/entropy.py", "torch.floor(mask.sum().double() * share + 1e-9)", "torch.floor(mask.sum().double() * share)"),
    ("core/entropy.py", "position = mask.long().cumsum(dim=-1)", "position = torch.arange(mask.shape[1]).expand(mask.shape)"),
    ("core/entropy.py", "(seed * 1_000_003 + step + 1)", "(seed * 1_000_003 + 1)"),
    ("objectives/parts/gates.py", "log_ratio.clamp(max=math.log1p(self.high)), log_ratio.clamp(low, dual)", "log_ratio.clamp(low, dual), log_ratio.clamp(max=math.log1p(self.high))"),
    ("objectives/parts/gates.py", "dual = None if self.dual is None else math.log(self.dual)", "dual = None"),
    ("objectives/parts/gates.py", "log_ratio.clamp(max=self.high), log_ratio.clamp(min=-self.low)", "log_ratio.clamp(max=self.high), log_ratio.clamp(min=self.low)"),
    ("objectives/parts/gates.py", "None if self.low is None else 1 - self.low", "None if self.low is None else self.low"),
    ("objectives/parts/gates.py", "return (4 / tau).log() + logsigmoid", "return (2 / tau).log() + logsigmoid"),
    ("objectives/parts/gates.py", "torch.sigmoid(-tau * torch.expm1(log_ratio))", "torch.sigmoid(tau * torch.expm1(log_ratio))"),
    ("objectives/parts/gates.py", "return torch.atan(tau * log_ratio) / tau", "return torch.atan(log_ratio) / tau"),
    ("objectives/parts/gates.py", "return 1 / (1 + (self._tau(positive, log_ratio) * log_ratio).square())", "return 1 / (1 + log_ratio.square())"),
    ("objectives/parts/gates.py", "torch.log1p(self._shape(tau * torch.expm1(log_ratio)) / tau)", "torch.log1p(self._shape(torch.expm1(log_ratio)) / tau)"),
    ("objectives/parts/gates.py", "return 1 / (1 + x.square())", "return 1 / (1 + x.abs())"),
    ("objectives/parts/gates.py", "math.sqrt(math.pi) / 2 * torch.erf(x)", "torch.erf(x)"),
    ("objectives/parts/gates.py", "return x / (1 + x.abs())", "return x / (1 + x.square())"),
    ("objectives/parts/gates.py", "return k * log_ratio - rate * torch.expm1(log_ratio)", "return k * log_ratio - rate * torch.exp(log_ratio)"),
    ("objectives/parts/gates.py", "return k - rate * torch.exp(log_ratio)", "return k - rate"),
    ("objectives/parts/gates.py", "capped = torch.where(positive, -log_ratio, log_ratio).clamp", "capped = torch.where(positive, log_ratio, log_ratio).clamp"),
    ("objectives/parts/gates.py", "log_ratio <= math.log1p(self.high), log_ratio >= math.log1p(-self.low)", "log_ratio >= math.log1p(self.high), log_ratio >= math.log1p(-self.low)"),
    ("objectives/policy_term.py", "torch.where(moving, value * slope, 0)", "torch.where(moving, value, 0)"),
    ("objectives/policy_term.py", 'if before:\n        log_ratio', 'if after:\n        log_ratio'),
    ("objectives/policy_term.py", "gradient = pool(value, terms.mask, how.over, terms.batch.turn_ids) * ratios.slope", "gradient = pool(value, terms.mask, how.over, terms.batch.turn_ids)"),
    ("objectives/policy_term.py", "gradient = pool(weights * ratios.coefficient, terms.mask, how.over, terms.batch.turn_ids)", "gradient = weights * ratios.coefficient"),
    ("objectives/policy_term.py", 'loss = (value * terms.logprobs).sum() if carrier == "score" else value.sum()', "loss = value.sum()"),
    ("objectives/policy_term.py", "(gradient * upstream[0]).to(ctx.dtype)", "gradient.to(ctx.dtype)"),
    ("objectives/objective.py", "torch.where(keep, terms.advantages, 0) * (-self._normalizer", "torch.where(terms.mask, terms.advantages, 0) * (-self._normalizer"),
    ("objectives/objective.py", "(-self._normalizer(terms, plan, keep) * weight)", "(-self._normalizer(terms, plan, keep))"),
    ("objectives/objective.py", 'if self.normalize.over == "all":', 'if self.normalize.over != "all":'),
    ("objectives/objective.py", "keep = keep & kept", "keep = keep | kept"),
    ("objectives/objective.py", "loss=out.loss + self._penalty", "loss=out.loss - self._penalty"),
    ("objectives/objective.py", "p[rows][:, :length]", "p[:, :length]"),
    ("objectives/parts/masks.py", "outside = terms.divergence(self.detector, self.policy) > self.delta", "outside = terms.divergence(self.detector, self.policy) >= self.delta / 2"),
    ("objectives/parts/masks.py", "return ~outside.any(dim=-1, keepdim=True)", "return ~outside.all(dim=-1, keepdim=True)"),
    ("objectives/parts/masks.py", "return outside.cumsum(dim=-1) == 0", "return outside.cumsum(dim=-1) <= 1"),
    ("objectives/parts/masks.py", "self.detector not in CONTEXT_BOUNDS", "self.detector in LOWER_BOUNDS"),
    ("objectives/parts/token_masks.py", "return inside | (terms.log_ratio(self.policy).detach() >= 0)", "return inside | (terms.log_ratio(self.policy).detach() <= 0)"),
    ("objectives/parts/terms.py", 'above = self.logprobs if numerator == "current" else self.logprobs_of("old")', "above = self.logprobs"),
    ("objectives/parts/terms.py", 'own = self.logprobs.detach() if numerator == "current" else', 'own = self.logprobs.detach() if numerator else'),
    ("objectives/parts/advantages.py", 'terms.logprobs_of("teacher"), terms.logprobs.detach(), terms.mask', 'terms.logprobs.detach(), terms.logprobs_of("teacher"), terms.mask'),
    ("objectives/parts/advantages.py", "return replace(terms, advantages=advantages, positive=advantages > 0)", "return replace(terms, advantages=advantages)"),
    ("objectives/parts/advantages.py", "compared = same @ mask.to(rewards.dtype) > 1", "compared = same @ mask.to(rewards.dtype) > 0"),
    ("objectives/parts/advantages.py", "torch.where(mask, score_norms, 0).cumsum(dim=-1) * mask", "torch.where(mask, score_norms, 0) * mask"),
    ("objectives/parts/weights.py", "sums = sums + decay * after", "sums = sums + after"),
    ("objectives/parts/weights.py", "pushed = (terms.advantages < 0) & (ratio > math.log(self.safety))", "pushed = ratio > math.log(self.safety)"),
    ("objectives/parts/weights.py", "torch.logaddexp(total, torch.zeros_like(total))", "total"),
    ("objectives/parts/weights.py", "return -label * mean / self.tau, label", "return label * mean / self.tau, label"),
    ("objectives/parts/masks.py", '"sequence_mean") <= self.delta_avg', '"sequence_sum") <= self.delta_avg'),
    ("objectives/parts/ratio_masks.py", "(value >= low) & (value <= high)", "(value >= low) | (value <= high)"),
    ("objectives/parts/ratio_masks.py", '"sequence_mean") <= self.max_deviation', '"sequence_sum") <= self.max_deviation'),
    ("objectives/parts/ratio_masks.py", "(left * (self.kl / 2)).sqrt()", "(left * self.kl).sqrt()"),
    ("objectives/parts/ratio_masks.py", "self.horizon - terms.mask.long().cumsum(dim=-1)", "terms.mask.sum(-1, keepdim=True) - terms.mask.long().cumsum(dim=-1)"),
    ("objectives/parts/ratio_masks.py", "pool(-terms.log_ratio(self.policy).detach()", "pool(terms.log_ratio(self.policy).detach()"),
    ("objectives/parts/ratio_masks.py", "(terms.advantages >= 0) | (drift", "(terms.advantages >= 0) & (drift"),
    ("objectives/parts/token_masks.py", "((terms.advantages > 0) & (log_ratio > 0))", "((terms.advantages > 0) & (log_ratio < 0))"),
    ("objectives/parts/token_masks.py", "return inside | ~moving_away(terms, self.policy)\n\n    def formula(self) -> str:\n        also", "return inside\n\n    def formula(self) -> str:\n        also"),
    ("objectives/parts/token_masks.py", "if self.rejects == \"any\":\n            return inside", "if self.rejects == \"any\":\n            return ~inside"),
    ("objectives/parts/token_masks.py", "1 - (1 - self.w_min) * (place - 1) / last", "1 - (1 - self.w_min) * place / last"),
    ("objectives/parts/token_masks.py", "spent.cumsum(dim=-1) - spent", "spent.cumsum(dim=-1)"),
    ("objectives/parts/token_masks.py", ".clamp(self.b_min, 2 * self.b_min)", ".clamp(self.b_min, self.b_min)"),
    ("objectives/parts/token_masks.py", ".clamp(max=self.budget)", ""),
    ("objectives/parts/token_masks.py", "kept = (mean <= self.max_second_moment)", "kept = (ordered <= self.max_second_moment)"),
    ("objectives/parts/token_masks.py", "masked_quantile(terms.entropy.flatten(), terms.mask.flatten(), 1 - self.top)", "masked_quantile(terms.entropy.flatten(), terms.mask.flatten(), self.top)"),
    ("objectives/parts/covariance.py", "(covariance > self.low) & (covariance < self.high)", "(covariance > self.low) | (covariance < self.high)"),
    ("objectives/parts/covariance.py", "return ~prepared", "return prepared"),
    ("objectives/parts/weights.py", 'log_ratio(terms.logprobs_of("old"), terms.logprobs_of("rollout"), terms.mask)', 'log_ratio(terms.logprobs_of("rollout"), terms.logprobs_of("old"), terms.mask)'),
    ("objectives/parts/weights.py", "return ratio.clamp(low, high).exp()", "return ratio.clamp(low, None).exp()"),
    ("objectives/parts/weights.py", "weights / prepared.clamp(min=1e-30)", "weights * prepared"),
    ("objectives/parts/penalties.py", "return expm1_minus(-log_ratio)", "return expm1_minus(log_ratio)"),
    ("objectives/parts/penalties.py", "bonus = -self.alpha * self.anneal.factor(step)", "bonus = self.alpha * self.anneal.factor(step)"),
    ("objectives/parts/penalties.py", "bonus = -self.alpha * self.anneal.factor(step)", "bonus = -self.alpha"),
    ("objectives/parts/penalties.py", "(mean <= self.target)", "(mean >= self.target)"),
    ("objectives/parts/penalties.py", "move = self.adapt if entropy <= self.target else -self.adapt", "move = -self.adapt if entropy <= self.target else self.adapt"),
    ("objectives/parts/penalties.py", 'value * terms.log_ratio("old").exp() if', "value if"),
    ("objectives/parts/penalties.py", '"k3": expm1_minus}', '"k3": lambda d: expm1_minus(-d)}'),
    ("objectives/parts/schedule.py", "return 1 / math.sqrt(1 + progress)", "return 1 / (1 + progress)"),
    ("objectives/parts/schedule.py", "max(0.0, 1 - progress)", "1 - progress"),
    ("objectives/parts/advantages.py", "size / (size - 1).clamp(min=1)", "(size - 1).clamp(min=1) / size"),
    ("objectives/parts/advantages.py", "(size - 1).clamp(min=1)\n    return", "size\n    return"),
    ("objectives/parts/advantages.py", "delta = pending + self.gamma * following - values[:, t]", "delta = pending + following - values[:, t]"),
    ("objectives/parts/advantages.py", "pending = torch.where(here, 0, pending)", "pending = pending"),
    ("objectives/parts/advantages.py", "following = torch.where(here, values[:, t], following)", "following = values[:, t]"),
    ("objectives/metrics.py", "rejected = present & ~keep.any(dim=-1)", "rejected = ~keep.any(dim=-1)"),
    ("objectives/metrics.py", "norm(log_ratio).square() / 2 / tokens", "norm(log_ratio).square() / tokens"),
    ("objectives/metrics.py", "return metrics\n\n\ndef merge", "return {}\n\n\ndef merge"),
    ("objectives/presets.py", "settings[key] = settings.get(key, ()) + value", "settings[key] = value"),
    ("objectives/presets.py", "settings = dict(TABLE[part].alone) | settings", "settings = settings | dict(TABLE[part].alone)"),
]  # fmt: skip


def run(package: Path, tests: list[str]) -> bool:
    """True if the tests are green on this copy of the package."""
    environment = {**os.environ, "PYTHONPATH": str(package), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--no-header", "--tb=no", "-p", "no:cacheprovider", *tests]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=False).returncode == 0


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder)
        shutil.copytree(ROOT / "src" / "holdfast", package / "holdfast", ignore=shutil.ignore_patterns("__pycache__"))
        if not run(package, QUICK):
            print("the tests are red without any mutation: mend them first")
            return 2
        survivors = []
        for number, (name, old, new) in enumerate(MUTANTS, start=1):
            path = package / "holdfast" / name
            original = path.read_text(encoding="utf-8")
            if original.count(old) != 1:
                print(f"stale mutant: {name} holds {old!r} {original.count(old)} times")
                return 2
            path.write_text(original.replace(old, new), encoding="utf-8")
            if run(package, QUICK) and run(package, ["tests/laws"]):
                survivors.append((name, old, new))
                print(f"\nsurvived: {name}: {old} -> {new}")
            path.write_text(original, encoding="utf-8")
            print(f"\r{number}/{len(MUTANTS)}", end="", flush=True)
    print(f"\n{len(MUTANTS) - len(survivors)} of {len(MUTANTS)} mutants killed")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
