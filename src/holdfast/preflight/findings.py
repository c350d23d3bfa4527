"""What a preflight found: the audit's findings on what was sampled, and those that switching and syncing add."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from holdfast.audit.judge.auditor import Audit
from holdfast.audit.judge.checks.lights import KL_DENSE, KL_EXPERTS, KL_HIGH, STRONG
from holdfast.audit.judge.finding import SEVERITIES, Finding, Severity
from holdfast.audit.judge.fixes import settings
from holdfast.preflight.causes import Cause
from holdfast.preflight.gap import SURE, Change, Gap
from holdfast.preflight.stability import Repeat, Stability
from holdfast.preflight.sync import ALIKE, SyncCheck, weights_part
from holdfast.rollout.rescore import LIMITS, QUANTIZED_LIMIT

EXPLAINED = 0.5
"""Share of the gap from which it counts as explained."""
NOISE = 0.01
"""Mean |Δ log p| below which a fault of the settings is not worth a warning."""
SAME_FINDING = {
    "temperature": "temperature_mismatch",
    "truncation": "support_mismatch",
    "repetition penalty": "repetition_penalty",
    "chat template": "drift_at_start",
}
"""Causes, and the check of the audit that sees them in a log."""
FAULTS = {
    "temperature": (
        "The trainer scores another distribution than the one that is sampled, at every token that is not certain.",
        "Give trainer and engine one temperature, and have the engine report what it sampled with (vLLM: "
        "--logprobs-mode processed_logprobs).",
    ),
    "truncation": (
        "The engine samples from a part of the vocabulary and the trainer scores the whole: every ratio is off by the "
        "kept mass.",
        "Sample with top_p = 1, top_k off and min_p = 0 in training, or let the trainer renormalise on the kept set.",
    ),
    "repetition penalty": (
        "The penalty changes the distribution at every token, and the trainer knows nothing of it.",
        "Send repetition_penalty = 1, presence_penalty = 0 and frequency_penalty = 0, or start vLLM with "
        "--generation-config vllm, so that the model's own file sets none.",
    ),
    "chat template": (
        "Engine and trainer do not read the same prompt: the response begins in two contexts.",
        "Pass the prompt's token ids from one side to the other, and never text that is tokenised twice.",
    ),
}
"""What each fault of the settings does to training, and how to mend it."""


def findings_of(
    audit: Audit,
    gap: Gap,
    causes: Sequence[Cause],
    sync: SyncCheck,
    stable: Stability,
    precision: str | None,
    searched: bool = True,
) -> tuple[Finding, ...]:
    """All of them, most severe first; the audit's findings carry the share of the gap that switching showed.

    `precision` is the engine's, None where only it knows; `searched`: whether causes were looked for.
    """
    named = {cause.name: cause for cause in causes if _sure(cause.change)}
    seen = {finding.name for finding in audit.findings}
    found = [_with_share(finding, named) for finding in audit.findings]
    for cause in named.values():
        if SAME_FINDING.get(cause.name) not in seen:
            found.append(_of_cause(cause, gap))
    found += [_of_seen(cause, gap) for cause in causes if cause.state == "seen"]
    found += _of_sync(sync)
    found += _of_weights(gap, causes, sync, precision, searched)
    found += [_of_repeat(repeat) for repeat in (stable.again, stable.alone) if not repeat.exact]
    found += [_unjudged(why) for why in audit.unjudged]
    return tuple(sorted(found, key=lambda f: -SEVERITIES.index(f.severity)))


def _sure(found: Change | None) -> bool:
    """Whether a switch surely took a part of the gap away."""
    return found is not None and found.share.low > SURE


def _with_share(finding: Finding, named: dict[str, Cause]) -> Finding:
    for name, check in SAME_FINDING.items():
        cause = named.get(name)
        if finding.name == check and cause is not None and cause.change is not None:
            evidence = {**finding.evidence, "share of the gap": cause.change.share, "switched": cause.said}
            return replace(finding, evidence=evidence)
    return finding


def _of_cause(cause: Cause, gap: Gap) -> Finding:
    assert cause.change is not None
    removed = cause.change.kl_removed.value
    severity: Severity = "critical" if removed > KL_HIGH else "warning" if removed > KL_EXPERTS else "info"
    fault = cause.name in FAULTS and cause.fix is not None
    if fault and severity == "info" and gap.size.value > NOISE:
        severity = "warning"
    headline = f"{cause.name} makes {cause.change.share.value:.0%} of the gap: {cause.said}"
    if cause.supposed:
        severity, headline = "info", f"{cause.name}: {cause.said}"
    elif severity == "info":
        small = gap.kl.value > KL_EXPERTS
        headline += "; what it takes away is small" if small else "; the gap is no larger than healthy engines show"
    meaning, fix = FAULTS.get(
        cause.name,
        ("A part of the drift that training will see at equal weights, and that no sync takes away.",
         "Nothing has to be done where the gap is healthy. Otherwise widen it, if the engine's speed allows."),
    )  # fmt: skip
    return Finding(
        name=cause.name.replace(" ", "_").lower(),
        kind="drift",
        severity=severity,
        headline=headline,
        meaning=meaning,
        fix=fix,
        evidence={
            "share of the gap": cause.change.share,
            "gap, nats a token": gap.size,
            "gap without it": cause.change.left.size,
            "KL per token that goes with it": cause.change.kl_removed,
        },
        settings=settings(cause.fix, **cause.numbers) if cause.fix else {},
    )


def _of_seen(cause: Cause, gap: Gap) -> Finding:
    """As grave as the gap, where it is of the size that such a cause makes; a larger one has others."""
    own = cause.usual is None or gap.size.value <= STRONG * cause.usual
    severity: Severity = "warning" if own and gap.kl.value > KL_EXPERTS else "info"
    return Finding(
        name=cause.name.replace(" ", "_").lower(),
        kind="drift",
        severity=severity,
        headline=f"{cause.name}: {cause.said}",
        meaning="Both sides round differently, at every token: drift that training will see at equal weights, and that "
        "no sync takes away.",
        fix="Nothing has to be done where the gap is healthy. Otherwise start the server with the trainer's precision "
        "(vLLM: --dtype, --kv-cache-dtype auto, no --quantization), and compare.",
        evidence={"gap, nats a token": gap.size}
        | ({} if cause.usual is None else {"that this makes of the trainer's own model": cause.usual}),
    )


def _of_sync(sync: SyncCheck) -> Iterator[Finding]:
    """What is wrong with the weight sync."""
    if sync.verdict == "failed":
        yield _sync_finding("weight_sync", f"the weight sync fails: {sync.said}", sync)
    elif sync.verdict in ("nothing happened", "in part"):
        yield _sync_finding("weight_sync", f"the weight sync does not work: {sync.said}", sync)
    elif sync.verdict == "synced":
        if sync.version != 1:
            yield replace(
                _sync_finding(
                    "weight_version", f"after version 1 was synced, responses are stamped with {sync.version}", sync
                ),
                severity="warning",
            )
        if sync.before and sync.after and sync.after.size.low > ALIKE * sync.before.size.high:
            yield _sync_finding(
                "weights_not_restored",
                f"once the first weights were synced back, the gap is {sync.after.size.value:.2g} nats a token, and it "
                f"was {sync.before.size.value:.2g} before: something of the other weights is left",
                sync,
            )


def _sync_finding(name: str, headline: str, sync: SyncCheck) -> Finding:
    measured = (("gap to the new weights", sync.to_new), ("gap to the old weights", sync.to_old))
    return Finding(
        name=name,
        kind="drift",
        severity="critical",
        headline=headline,
        meaning="The engine would go on sampling from weights that the trainer has left behind, and every rollout "
        "would be older than its stamp says.",
        fix="Look at what the sync hands over: names of weights on both sides, a head that is tied to the embedding, "
        "adapters that were not merged, a folder that the engine does not read, cached prefixes that were not dropped.",
        evidence={text: gap.size for text, gap in measured if gap is not None},
    )


def _of_weights(
    gap: Gap, causes: Sequence[Cause], sync: SyncCheck, precision: str | None, searched: bool
) -> Iterator[Finding]:
    """Other weights behind the engine: shown by a sync, or left as the only cause of a gap that is too large.

    Too large: more than STRONG times what half precision makes of this very model, where that was measured, and else
    more than engines of this precision show.
    """
    limit = min(LIMITS.get((precision or "").partition(",")[0], QUANTIZED_LIMIT), LIMITS["bfloat16"])
    usual = next((cause.usual for cause in causes if cause.usual is not None), None)
    if usual is not None:
        limit = min(limit, max(STRONG * usual, LIMITS["float32"]))
    part = weights_part(sync)
    real = [cause.change for cause in causes if cause.change is not None and not cause.supposed]
    explained = any(found.share.high > EXPLAINED for found in real)
    explained |= any(cause.state == "seen" and cause.usual is None for cause in causes)
    shown = {"gap, nats a token": gap.size}
    if part is not None:
        if part.share.low <= EXPLAINED or part.kl_removed.value <= KL_DENSE:
            return
        shown["share of the gap"] = part.share
        headline = (
            f"the engine began with other weights than the trainer's: syncing them took {part.share.value:.0%} of the "
            "gap away"
        )
    elif explained or gap.size.low <= limit:
        return
    elif not searched:
        yield _unexplained(gap)
        return
    else:
        makes = (
            f" (half precision makes {usual:.2g} of this model)" if usual else ""
        )  # f" (half precision makes {usual:.2g} of this model)"
        headline = (
            f"engine and trainer differ by {gap.size.value:.2g} nats a token{makes}, and nothing that can be switched "
            "explains it: the engine runs other weights, another model, or coarser numerics (quantised weights, a KV "
            "cache in 8 bits)"
        )
    yield Finding(
        name="other_weights",
        kind="drift",
        severity="critical",
        headline=headline,
        meaning="The first rollouts come from a policy that is not the one being trained.",
        fix="Start the engine on the trainer's own model folder, at the same revision and without quantisation, or "
        "sync before the first batch.",
        evidence=shown,
    )


def _unexplained(gap: Gap) -> Finding:
    return Finding(
        name="unexplained_gap",
        kind="drift",
        severity="critical",
        headline=f"engine and trainer differ by {gap.size.value:.2g} nats a token, more than numerics make, and where "
        "that comes from was not looked for",
        meaning="The first rollouts come from a policy that is not the one being trained.",
        fix="Run the preflight again without --no-switches.",
        evidence={"gap, nats a token": gap.size},
    )


def _of_repeat(repeat: Repeat) -> Finding:
    parted = "" if repeat.first is None else f", the first from token {repeat.first} on"
    return Finding(
        name="determinism" if "twice" in repeat.name else "batch_invariance",
        kind="drift",
        severity="info",
        headline=f"{repeat.name}: {repeat.same} of {repeat.responses} responses are the same{parted}; "
        f"log-probabilities of the same tokens differ by up to {repeat.largest:.2g} nats",
        meaning="Rounding depends on what is computed together. A run cannot be repeated to the last bit, and this "
        "much of the gap is noise of the engine alone.",
        fix="Nothing has to be done. For repeatable rollouts: VLLM_BATCH_INVARIANT=1 on GPUs that have it.",
        evidence={"same responses": repeat.same, "responses": repeat.responses, "largest difference": repeat.largest},
    )


def _unjudged(why: str) -> Finding:
    return Finding(
        name="not_judged",
        kind="data",
        severity="warning",
        headline=f"not judged: {why}",
        meaning="Where nothing was found, that does not clear the engine.",
        fix="Sample more: a larger --responses, or a larger --sampling.max_tokens.",
    )
