"""What a running server does by itself: the precision of its numbers, and how it samples what requests leave open.

Neither can be switched from here: a server is asked for both, and its numbers tell a part.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from holdfast.errors import EngineError
from holdfast.preflight.bench import Bench
from holdfast.preflight.causes import REPEATED, Cause
from holdfast.preflight.gap import SURE, change, gap_of
from holdfast.preflight.grid import BFLOAT16
from holdfast.preflight.observe import Observation, Trainer
from holdfast.preflight.plan import PENALTIES
from holdfast.preflight.stability import compare

SERVED = "a server's numerics are set where it is started; start it with others and compare"
HALVES = (BFLOAT16, "float16")
LEFT_OPEN = ("temperature", "top_p", "top_k", "min_p", *PENALTIES)
"""Fields of a request that a server fills in by its own defaults."""
SMALL = 0.1
"""Share of what half precision makes, below which a gap is that of float32 on both sides."""


def wide(trainer: Trainer) -> bool:
    """Whether the trainer computes in float32 throughout."""
    return trainer.policy.model.dtype == torch.float32 and not trainer.policy.autocast


def in_dtype(trainer: Trainer, dtype: torch.dtype) -> Trainer:
    """The trainer's own weights and products in another dtype."""
    model = trainer.policy.model
    changed = model if model.dtype == dtype else copy.deepcopy(model).to(dtype)
    return replace(trainer, policy=replace(trainer.policy, model=changed, autocast=False))


@dataclass(frozen=True)
class Declared:
    """What a server says of itself where it is asked (vLLM: with VLLM_SERVER_DEV_MODE=1); None where it does not."""

    dtype: str | None = None
    cache: str | None = None
    quantization: str | None = None


def declared(engine: Any) -> Declared:
    """By vLLM's /server_info."""
    with contextlib.suppress(EngineError, AttributeError):
        answer = engine.client.get("/server_info?config_format=json") or {}
        config = answer.get("vllm_config") or {}
        model, cache = config.get("model_config") or {}, config.get("cache_config") or {}
        words = model.get("dtype"), cache.get("cache_dtype"), model.get("quantization")
        dtype, kept, quantized = (word.removeprefix("torch.") if isinstance(word, str) else None for word in words)
        return Declared(dtype, None if kept == "auto" else kept, quantized)
    return Declared()


def precisions(bench: Bench, base: Observation) -> Iterator[Cause]:
    """The precisions of a server, as far as it or its numbers tell: head, keys and values, and the whole of it."""
    said = declared(bench.running())
    yield Cause("head precision", "not allowed", SERVED)
    if said.cache is None:
        yield Cause("KV-cache precision", "not allowed", SERVED)
    else:
        yield Cause("KV-cache precision", "seen", f"the server says that it keeps keys and values in {said.cache}")
    if said.quantization is not None:
        yield Cause("quantisation", "seen", f"the server says that its weights are quantised: {said.quantization}")
    yield engine_precision(bench, base, said)


def engine_precision(bench: Bench, base: Observation, told: Declared) -> Cause:
    """What a server says it computes in, or else what its logits were rounded to, by the grid of its log-probabilities.

    `usual` is what half precision makes of this very model: mean |Δ log p| of the trainer between half precision and
    float32 on the same responses; nothing where both sides are in float32.
    """
    name, trainer, own = "engine precision", bench.trainer, wide(bench.trainer)
    if own and told == Declared("float32"):
        return Cause(name, "not set", "the server says that it computes in float32, as the trainer does", usual=0.0)
    found = told.dtype if told.dtype in HALVES else base.grid.precision
    half = found if found in HALVES else BFLOAT16
    bench.told("scoring in another precision", 0, 1)
    other = in_dtype(trainer, getattr(torch, half) if own else torch.float32)
    usual = base.moved(base.rescored(other, base.asked.reading))
    makes = f"{half} makes {usual:.2g} nats a token of the trainer's own model"
    if found:
        read = f"the server's logits are rounded to {found} ({base.grid.share:.0%} of its report lies on that grid)"
        if told.dtype == found:
            read = f"the server says that it computes in {found}"
        if own:
            return Cause(name, "seen", f"{read}, and the trainer computes in float32; {makes}", usual=usual)
        return Cause(name, "not set", f"{read}, and the trainer's numbers are no wider; {makes}", usual=usual)
    if own and gap_of(base.view).size.high < SMALL * usual:
        return Cause(name, "not set", f"engine and trainer are as close as in float32; {makes}", usual=usual)
    known = "the server's logits are not rounded to half precision; for the rest, " if base.grid.known else ""
    return Cause(name, "not allowed", f"{known}{SERVED}; {makes}", usual=usual)


def _excluded(seen: Observation) -> float:
    """Share of the positions at which something reported could not be sampled."""
    return seen.excluded / max(1, seen.reported)


def own_defaults(bench: Bench, base: Observation) -> Cause | None:
    """What requests would get that leave the sampling to the server; None for an engine that is no server."""
    name, engine = "server defaults", bench.running()
    if bench.settings.kind != "server":
        return None
    few, sent = base.asked.first(REPEATED), dict(engine.request)  # pyright: ignore[reportAttributeAccessIssue]
    left = [field for field in LEFT_OPEN if field not in sent]
    as_sent = bench.observe("sampling as the run asks for it", few)
    fields = engine.request  # pyright: ignore[reportAttributeAccessIssue]
    fields.update(dict.fromkeys(left))
    try:
        as_served = bench.observe("sampling as the server would by itself", few)
    except EngineError as error:
        return Cause(name, "not allowed", f"the server takes no requests without them: {str(error).splitlines()[0]}")
    finally:
        fields.clear()
        fields.update(sent)
    same = compare(name, as_sent.completions, as_served.completions)
    part = change(as_served.view, as_sent.view)
    barred = max(0.0, _excluded(as_served) - _excluded(as_sent))
    if same.same == same.responses or (part.share.low <= SURE and not barred):
        return Cause(name, "not set", f"requests without {', '.join(left)} are sampled as this run's are")
    said = (
        f"requests without {', '.join(left)} would be sampled otherwise than this run's: {same.same} of "
        f"{same.responses} responses stay the same"
        + (f", the report excludes tokens at {barred:.0%} of all positions" if barred else "")
        + f", and the gap would be {gap_of(as_served.view).size.value:.2g} nats a token"
    )
    return Cause(
        name, "measured", said, part, "sampling_support", {"temperature": base.asked.sampling.temperature}, True
    )
