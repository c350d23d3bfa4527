"""A preflight in words that page and terminal share."""

from __future__ import annotations

from holdfast.audit.judge.checks.lights import KL_DENSE, KL_EXPERTS, KL_HIGH
from holdfast.audit.judge.verdict import interval, shares
from holdfast.preflight.causes import Cause
from holdfast.preflight.gap import Row
from holdfast.preflight.inspect import Preflight
from holdfast.preflight.stability import Repeat
from holdfast.report.charts.scales import number

HEALTHY = (
    f"Healthy engines show a KL per token of up to {KL_DENSE:g} at equal weights for dense models and {KL_EXPERTS:g} "
    f"for mixtures of experts; more than {KL_HIGH:g} is a problem."
)
CAUSE_HEADS = ("cause", "found", "share of the gap", "left, nats a token", "what was switched")


def engine_of(found: Preflight) -> str:
    """The engine as a person names it."""
    engine = found.plan.config.engine
    if engine.kind == "server":
        return f"the server at {engine.url}"
    return f"{'vLLM' if engine.kind == 'vllm' else 'the embedded engine'} in {engine.precision}"


def scope(found: Preflight) -> str:
    """What was sampled, from whom, and who scored it."""
    facts, model = found.audit.facts, found.plan.config.model
    sampling = found.plan.sampling
    trainer = f"{model.dtype}{' under autocast' if model.autocast else ''}"
    truncated = f", top_p {sampling.top_p:g}, top_k {sampling.top_k}, min_p {sampling.min_p:g}"
    return (
        f"{facts.sequences:,} responses ({facts.own_tokens:,} tokens, the longest {facts.longest:,}) of "
        f"{engine_of(found)}, sampled at temperature {sampling.temperature:g}"
        f"{truncated if sampling.truncates else ''} from {model.source} and scored by the trainer in {trainer}."
    )


def cause_row(cause: Cause) -> tuple[str, str, str, str, str]:
    """A row under CAUSE_HEADS; a gap that this run has not is only told of."""
    if cause.change is None or cause.supposed:
        return cause.name, "not this run's" if cause.supposed else cause.state, "–", "–", cause.said
    return cause.name, cause.state, shares(cause.change.share), interval(cause.change.left.size), cause.said


def cause_words(cause: Cause) -> str:
    """The same in a line."""
    name, state, share, left, said = cause_row(cause)
    if cause.change is None or cause.supposed:
        return f"{name}: {state}: {said}"
    return f"{name}: {state}: {share} of the gap, {left} nats a token are left; {said}"


def entropy_row(row: Row) -> tuple[str, str, str, str]:
    """Entropy, tokens, mean |log ratio|, k3."""
    span = f"{row.low:g} to {row.high:g}" if row.high is not None else f"{row.low:g} and more"
    return span, f"{row.tokens:,}", interval(row.size), interval(row.kl)


def repeat_words(repeat: Repeat) -> str:
    """What a repetition showed."""
    if repeat.exact:
        return f"all {repeat.responses} responses are the same, to the last bit"
    parted = "" if repeat.first is None else f", the first parts at token {repeat.first}"
    return (
        f"{repeat.same} of {repeat.responses} responses are the same{parted}; largest |Δ log p| behind equal tokens "
        f"{number(repeat.largest, 2)}"
    )


def sync_words(found: Preflight) -> list[str]:
    """What the weight sync did, in sentences."""
    sync = found.sync
    said = [f"{sync.verdict}: {sync.said}"]
    if sync.to_new is not None and sync.to_old is not None:
        said.append(
            f"after a sync of weights that were changed by {sync.noise:.0%} of their spread: gap to the new weights "
            f"{interval(sync.to_new.size)}, to the old ones {interval(sync.to_old.size)} nats a token"
        )
    if sync.before is not None and sync.after is not None and sync.restored is not None:
        said.append(
            f"after the first weights were synced back: gap {interval(sync.after.size)}, before "
            f"{interval(sync.before.size)}; {repeat_words(sync.restored)}"
        )
    return said
