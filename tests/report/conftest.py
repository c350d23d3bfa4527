"""Made-up runs for the report's tests: the shapes of a real one, drawn from a seed."""

import json
import math
import random
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from holdfast.rollout.store import write_rollouts
from holdfast.types import Rollout

FORMULA = "L = − Σ n · m · M · φ(r, A)\nφ = min(r A, clip(r, 0.8, 1.2) A)\nM = 1[max_t KL(roll‖θ) ≤ 0.3]"


def make_rollout(rng: random.Random, step: int, *, text: str | None = None, delta: float = 0.3) -> Rollout:
    """A sequence whose mask follows its exact KL: rejected as a whole where its largest exceeds delta."""
    entries = rng.randint(8, 13)
    text = text or " ".join(
        f"{rng.choice('abcdefgh')}{rng.randint(1, 9)}={rng.randint(10, 99)}" for _ in range(entries)
    )
    count, reward = len(text), float(rng.random() < 0.3 + step / 90)
    engine = tuple(-abs(rng.gauss(0, 0.3)) for _ in range(count))
    noise = [rng.gauss(0, 0.02) if rng.random() > 0.03 else rng.gauss(0, 0.6) for _ in range(count)]
    trainer = tuple(min(-1e-6, e + d) for e, d in zip(engine, noise, strict=True))
    kl = tuple((t - e) ** 2 / 2 for e, t in zip(engine, trainer, strict=True))
    kept = max(kl) <= delta
    worst = max(range(count), key=kl.__getitem__)
    return Rollout(
        prompt_ids=(1, 2, 3),
        response_ids=tuple(ord(c) for c in text),
        rollout_logprobs=engine,
        trainer_logprobs=trainer,
        response_mask=(True,) * count,
        kl_exact=kl,
        trust_mask=(kept,) * count,
        reward=reward,
        mask_reason=None if kept else f"trm_max: exact KL {kl[worst]:.2f} at token {worst + 1} > {delta}",
        finish_reason="stop",
        step=step,
        environment="ledger",
        prompt_text="a5=31 b2=+4 c7=-9 ?h3\n",
        token_texts=tuple(text),
        extra={"answer": "88"},
    )


def evaluation(right: int, problems: int, rng: random.Random) -> dict[str, Any]:
    """What one evaluation records: the first `right` of the held-out problems are right."""
    share, greedy = right / problems, round(1.0 - 0.04 * rng.random(), 3)
    return {
        "eval_reward": share,
        "eval_rewards": [1.0] * right + [0.0] * (problems - right),
        "eval_reward_se": math.sqrt(share * (1 - share) / (problems - 1)),
        "eval_greedy_reward": greedy,
        "eval_accuracy": share,
        "eval_greedy_accuracy": greedy,
    }


def metrics_row(rng: random.Random, step: int, steps: int) -> dict[str, Any]:
    """One line of metrics.jsonl with every key the report knows."""
    progress, noise = 1 - math.exp(-3 * step / steps), rng.gauss(0, 0.02)
    kl = 1.3e-3 * (1 + progress) * math.exp(rng.gauss(0, 0.2))
    masked = min(1.0, max(0.0, 0.08 + 0.25 * progress + rng.gauss(0, 0.05)))
    edges = [5.0 * k for k in range(17)]
    row = {
        "step": step,
        "seconds": 3.1 + rng.random(),
        "cpu_seconds": 3.0,
        "tokens": 9700,
        "tokens_per_cpu_second": 3200 + rng.gauss(0, 150),
        "reward_mean": 0.27 + 0.5 * progress + noise,
        "reward_std": 0.4,
        "accuracy": 0.27 + 0.5 * progress + noise,
        "entropy": 0.25 * (1 - 0.75 * progress) + abs(noise) / 10,
        "kl_exact_mean": kl,
        "kl_exact_max": kl * 150 * math.exp(rng.gauss(0, 0.5)),
        "abs_log_ratio_mean": 0.011 * (1 + progress),
        "abs_log_ratio_max": 1.5 + rng.random(),
        "masked_sequences": masked,
        "masked_tokens": masked * 1.02,
        "clip_share": 0.01 + 0.01 * rng.random(),
        "masked_by_length": [masked * f for f in (0.5, 0.8, 1.1, 1.6)],
        "length_quartiles": [62.0, 74.0, 85.0],
        "drift_by_position": {
            "edges": edges,
            "abs_log_mean": [0.006 + 2e-4 * e for e in edges[1:]],
            "kl_exact_mean": [kl * (0.4 + e / 80) for e in edges[1:]],
            "kl_exact_max": [kl * 90 * (0.3 + e / 60) for e in edges[1:]],
        },
        "bounds": {
            "classical": 78 * kl * 78,
            "coupling": 900 * kl,
            "pinsker-marginal": 520 * kl,
            "mixed": 240 * kl,
            "path": 160 * kl,
            "martingale": 85 * kl,
            "unified": 85 * kl,
            "unified_name": "martingale",
        },
        "time_split": {"generate": 1.5, "old_logprobs": 0.5, "update": 0.9, "evaluate": 0.12, "other": 0.08},
    }
    row["reward_quartiles"] = [0.0, 0.0, float(progress > 0.4), 1.0, 1.0]
    if step == 1 or step % 10 == 0 or step == steps:
        row |= evaluation(round(64 * (0.27 + 0.52 * progress)), 64, rng)
    if step > 0.7 * steps:
        row["warnings"] = ["acceptance falls with length: 83 % of the shortest quarter is kept, 47 % of the longest"]
    return row


def make_run(folder: Path, steps: int = 60, seed: int = 0) -> tuple[Path, list[Rollout]]:
    """A whole run folder, and the rollouts that it holds."""
    rng = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    rows = [metrics_row(rng, step, steps) for step in range(1, steps + 1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    summary = {
        "objective": "trm_max+ppo",
        "formula": FORMULA,
        "task": "ledger",
        "engine": "int8 copy of the float32 trainer, 2 updates behind",
        "parameters": 341_376,
        "seconds": 214.7,
        "tokens": 582_000,
        "start_reward": 0.27,
        "final_reward": 0.78,
        "start_accuracy": 0.27,
        "final_accuracy": 0.78,
        "finished": True,
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "config.toml").write_text('[objective]\npreset = "trm_max+ppo"\ndelta = 0.3\n')
    (folder / "rollouts").mkdir()
    rollouts = []
    for step in range(1, steps + 1):
        of_step = [make_rollout(rng, step) for _ in range(4)]
        write_rollouts(folder / "rollouts" / f"step_{step:04d}.parquet", of_step)
        rollouts += of_step
    return folder, rollouts


@pytest.fixture
def evaluation_of() -> Callable[..., dict[str, Any]]:
    """What one evaluation records: (right answers, problems, generator)."""
    return evaluation


@pytest.fixture
def run_folder(tmp_path: Path) -> Callable[..., tuple[Path, list[Rollout]]]:
    """Makes a run folder under the test's own directory."""
    return lambda name="run-one", **options: make_run(tmp_path / name, **options)


def make_results(folder: Path, objectives: int = 5, seeds: int = 3) -> Path:
    """A comparison's folder with its results.json."""
    rng = random.Random(1)
    names = ["trm_max+ppo", "ppo", "gspo", "sapo", "policy_gradient", "sspo", "dapo", "cispo"][:objectives]
    runs = []
    for i, name in enumerate(names):
        for seed in range(seeds):
            end = 0.6 - 0.13 * i + rng.gauss(0, 0.03)
            steps = list(range(0, 41, 2))
            level = [0.27 + (end - 0.27) * (1 - math.exp(-s / 12)) + rng.gauss(0, 0.01) for s in steps]
            curve = {
                "step": steps,
                "accuracy": level,
                "entropy": [0.25 * math.exp(-s / (12 + 3 * i)) + 0.04 for s in steps],
                "kl_exact_mean": [1e-3 * (1 + s / 20 + i / 2) * math.exp(rng.gauss(0, 0.1)) for s in steps],
                "masked_sequences": [0.2 if "trm" in name else 0.0 for _ in steps],
            }
            runs.append(
                {
                    "objective": name,
                    "seed": seed,
                    "config": "lag8.toml",
                    "curve": curve,
                    "start_accuracy": 0.27,
                    "final_accuracy": level[-1],
                    "final_entropy": curve["entropy"][-1],
                    "seconds": 120.0 + 10 * i,
                }
            )
    folder.mkdir(parents=True, exist_ok=True)
    results = {"runs": runs, "task": "ledger, 12 entries", "engine": "int8 copy, 8 updates behind"}
    (folder / "results.json").write_text(json.dumps(results))
    return folder


@pytest.fixture
def results_folder(tmp_path: Path) -> Callable[..., Path]:
    """Makes a comparison's folder under the test's own directory."""
    return lambda **options: make_results(tmp_path / "comparison", **options)


class Page(HTMLParser):
    """A parsed page: the tree is checked to be balanced while it is read, and what tests ask about is collected."""

    VOID = frozenset({"meta", "link", "br", "hr", "img", "input"})

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == [], f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {k: v or "" for k, v in attrs}))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {k: v or "" for k, v in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self.open):
            self.words.append(data)

    @property
    def text(self) -> str:
        """What a person can read, blanks collapsed."""
        return " ".join(" ".join(self.words).split())

    def all(self, tag: str, css: str | None = None) -> list[dict[str, str]]:
        """Attributes of every element of a kind, or of those with a class."""
        return [a for t, a in self.elements if t == tag and (css is None or css in a.get("class", "").split())]


@pytest.fixture
def parse() -> Callable[[str], Page]:
    """Parses a page, and fails where its elements are not balanced."""
    return Page
