"""Which part of the gap comes from what the engine is asked: temperature, truncation, penalties, the prompt's tokens.

Each is switched, in the engine or in what the trainer is told, and the gap measured again over the same prompts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from holdfast.audit.judge.checks.calibration import (
    FEWEST_TOKENS,
    Calibration,
    explained,
    exponent,
    inverse_slope,
    slope,
)
from holdfast.audit.judge.checks.data.temperature_mismatch import EXPLAINED
from holdfast.audit.measure.view import View
from holdfast.audit.read.columns import chunk_of
from holdfast.preflight.bench import Bench
from holdfast.preflight.gap import Change, change, gap_of
from holdfast.preflight.observe import Observation
from holdfast.preflight.plan import PENALTIES
from holdfast.preflight.prompts import first_difference

State = Literal["measured", "seen", "not set", "not allowed"]
REPEATED = 32
"""Responses that are sampled again where only a part of them is looked at."""
SAME = 0.015
"""Temperatures closer than this, relative to each other, are one."""


@dataclass(frozen=True)
class Cause:
    """One thing that may set engine and trainer apart, and what was seen when it was switched.

    measured: `change` says what it makes of the gap. seen: it is there, and cannot be switched. not set: it is not
    there to be switched. not allowed: the engine has no such switch. `said` is the sentence for all; `fix` names the
    remedy, with its `numbers`. `supposed`: the gap is that of a run which does otherwise than this one. `usual`: the
    gap that the trainer's own model shows under it, nats a token.
    """

    name: str
    state: State
    said: str
    change: Change | None = None
    fix: str | None = None
    numbers: dict[str, float] = field(default_factory=dict)
    supposed: bool = False
    usual: float | None = None


def temperature_told(bench: Bench, base: Observation) -> Cause:
    """The trainer at the temperature that fits the engine's log-probabilities best, against the one it is told.

    With trainer ∝ engine^β, β = 1 - Var(r) / Cov(r, -log p(engine)) to first order (the audit's calibration): the
    trainer's temperature is divided by 1/β until β is 1.
    """
    name, told = "temperature", base.asked.reading.temperature
    fitted, seen, left = told, base, gap_of(base.view).size.value
    for _ in range(3):
        beta = _exponent(seen)
        if beta is None:
            return Cause(name, "not allowed", f"fewer than {FEWEST_TOKENS:,} tokens were sampled; raise --responses")
        if abs(beta - 1) < SAME / 3:
            break
        bench.told("scoring at the fitted temperature", 0, 1)
        other = base.rescored(bench.trainer, replace(base.asked.reading, temperature=fitted * beta))
        size = gap_of(other.view).size.value
        if size >= left:
            break
        fitted, seen, left = fitted * beta, other, size
    if abs(fitted / told - 1) < SAME:
        said = f"engine and trainer are at one temperature, {told:g} (best fit {fitted:.3f})"
        return Cause(name, "measured", said, change(base.view, seen.view))
    said = f"the engine's numbers are those of temperature {fitted:.2f}, and the trainer is told {told:g}"
    return Cause(name, "measured", said, change(base.view, seen.view), "sampling_support", {"temperature": told})


def _exponent(seen: Observation) -> float | None:
    """β of trainer ∝ engine^β; where noise hides it, the middle of what β lies between. None for too few tokens."""
    calibration = Calibration()
    calibration.update(seen.view)
    if calibration.tokens < FEWEST_TOKENS:
        return None
    if calibration.value(explained) >= EXPLAINED:
        found = calibration.value(exponent)
    else:
        found = math.sqrt(max(calibration.value(slope) * calibration.value(inverse_slope), 0.0))
    return min(max(found, 0.25), 4.0) if math.isfinite(found) else 1.0


def temperature_set(bench: Bench, base: Observation) -> Cause | None:
    """Sampling at temperature 1 on both sides."""
    set_to = base.asked.sampling.temperature
    if set_to == 1:
        return None
    asked = replace(
        base.asked,
        sampling=replace(base.asked.sampling, temperature=1.0),
        reading=replace(base.asked.reading, temperature=1.0),
    )
    other = bench.observe("sampling at temperature 1", asked)
    said = f"both sides at temperature 1 in place of {set_to:g}"
    return Cause("sampling at another temperature", "measured", said, change(base.view, other.view))


def truncation(bench: Bench, base: Observation) -> Cause:
    """Sampling without top-p, top-k and min-p; where nobody asked for these, what the engine's report excludes."""
    name, sampling = "truncation", base.asked.sampling
    numbers = {"temperature": sampling.temperature}
    if sampling.truncates:
        asked = replace(
            base.asked,
            sampling=replace(sampling, top_p=1.0, top_k=0, min_p=0.0),
            reading=replace(base.asked.reading, renormalize=False),
        )
        other = bench.observe("sampling without truncation", asked)
        known = base.asked.reading.renormalize
        said = (
            f"top_p {sampling.top_p:g}, top_k {sampling.top_k}, min_p {sampling.min_p:g} switched off; the trainer "
            f"{'knows' if known else 'does not know'} the kept set"
        )
        fix = None if known else "sampling_support"
        return Cause(name, "measured", said, change(base.view, other.view), fix, {} if known else numbers)
    if base.on_support:
        share = base.excluded / max(1, base.reported)
        said = (
            f"nobody asked for it, and the engine's report excludes tokens at {share:.0%} of all positions; with the "
            "trainer on the tokens that are left"
        )
        seen = View(chunk_of(base.on_support))
        return Cause(name, "measured", said, change(base.view, seen), "sampling_support", numbers)
    if not base.reported:
        return Cause(
            name, "not set", "none is asked for; the engine reports sampled tokens alone, so none is ruled out"
        )
    whole = "distributions" if base.asked.exact else f"{base.asked.top} likeliest tokens"
    return Cause(name, "not set", f"none is asked for, and the engine's {whole} exclude no token")


def penalties(bench: Bench, base: Observation) -> Cause:
    """Requests that ask for no penalty, whatever the engine's default is."""
    name, engine = "repetition penalty", bench.running()
    fields: dict[str, Any] | None = getattr(engine, "request", None)
    if fields is None:
        return Cause(name, "not allowed", "the engine has no penalties")
    before = dict(fields)
    asked = {key: before[key] for key in PENALTIES if before.get(key, PENALTIES[key]) != PENALTIES[key]}
    fields.update(PENALTIES)
    try:
        other = bench.observe("sampling without penalties", base.asked)
    finally:
        fields.clear()
        fields.update(before)
    what = ", ".join(f"{key} {value}" for key, value in asked.items()) or "whatever the engine sets by itself"
    return Cause(name, "measured", f"{what} switched off", change(base.view, other.view), "sampling_support", {})


def template(bench: Bench, base: Observation) -> Cause:
    """The engine behind the trainer's own prompt tokens."""
    name = "chat template"
    apart = [prompt for _, prompt in base.asked.prompts if not prompt.same]
    if not apart:
        return _served_template(bench, base)
    place = first_difference(apart[0])
    rows = tuple((number, replace(p, engine_ids=p.trainer_ids)) for number, p in base.asked.prompts)
    other = bench.observe("sampling behind the trainer's prompts", replace(base.asked, prompts=rows))
    share = len(apart) / len(base.asked.prompts)
    said = (
        f"{share:.0%} of the prompts are other tokens for the engine than for the trainer, from token {place} on "
        f"({len(apart[0].engine_ids)} and {len(apart[0].trainer_ids)} tokens); with the trainer's on both sides"
    )
    return Cause(name, "measured", said, change(base.view, other.view), "token_ids_not_text", {})


def _served_template(bench: Bench, base: Observation) -> Cause:
    """What a server makes of the prompts as text, where it says so; this run sends it tokens."""
    name, client = "chat template", getattr(bench.running(), "client", None)
    own = "the engine is given the trainer's own prompt tokens"
    if client is None:
        return Cause(name, "not set", own)
    rows, model = [], getattr(bench.running(), "model", "")
    for number, prompt in base.asked.first(REPEATED).prompts:
        text: dict[str, Any] = {"prompt": prompt.text, "add_special_tokens": True}
        if prompt.chat:
            text = {"messages": list(prompt.chat), "add_generation_prompt": True}
        theirs = (client.post("/tokenize", {"model": model, **text}) or {}).get("tokens")
        if not isinstance(theirs, list) or not theirs or not all(type(token) is int for token in theirs):
            return Cause(name, "not allowed", f"{own}; what the server makes of text it does not say (/tokenize)")
        rows.append((number, replace(prompt, engine_ids=tuple(theirs))))
    apart = [prompt for _, prompt in rows if not prompt.same]
    if not apart:
        return Cause(name, "not set", f"{own}, and the server makes the same of their text")
    few = replace(base.asked, prompts=tuple(rows))
    as_text = bench.observe("sampling behind the server's own prompts", few)
    as_ids = bench.observe("sampling behind the trainer's prompts", base.asked.first(REPEATED))
    said = (
        f"{own}; sent as text or messages, {len(apart) / len(rows):.0%} of the prompts would become others, from token "
        f"{first_difference(apart[0])} on, and the gap would be {gap_of(as_text.view).size.value:.2g} nats a token"
    )
    return Cause(name, "measured", said, change(as_text.view, as_ids.view), "token_ids_not_text", {}, supposed=True)


def prefix_caching(bench: Bench, base: Observation) -> Cause:
    """The same responses with the prompts' keys and values read anew, and from the cache."""
    name, engine = "prefix caching", bench.running()
    forget: Callable[[], bool] | None = getattr(engine, "forget_prefixes", None)
    if forget is None:
        return Cause(name, "not allowed", "the engine keeps no prefixes from one call to the next")
    few = base.asked.first(REPEATED)
    if not forget():
        return Cause(name, "not allowed", "the engine cannot drop its cached prefixes (vLLM: VLLM_SERVER_DEV_MODE=1)")
    cold = bench.observe("sampling without cached prefixes", few)
    warm = bench.observe("sampling with cached prefixes", few)
    said = f"{len(few.prompts)} responses with prefixes dropped before, against the same with prefixes cached"
    return Cause(name, "measured", said, change(warm.view, cold.view))
