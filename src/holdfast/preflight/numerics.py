"""Which part of the gap comes from numerics: each precision of engine and trainer widened in turn."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from holdfast.errors import ConfigError, EngineError
from holdfast.preflight.bench import Bench
from holdfast.preflight.causes import Cause
from holdfast.preflight.gap import change
from holdfast.preflight.observe import Observation, observe
from holdfast.preflight.served import precisions
from holdfast.rollout.engines import EngineSettings


def numerics(bench: Bench, base: Observation) -> Iterator[Cause]:
    """All of them; the running engine is closed for those that need another one."""
    yield trainer_precision(bench, base)
    if bench.settings.kind == "server":
        yield from precisions(bench, base)
        return
    for name, changes, said in switches(bench.settings):
        yield _rebuilt(bench, base, name, changes, said)


def trainer_precision(bench: Bench, base: Observation) -> Cause:
    """The same responses scored in float32.

    A server has weights of its own, so the trainer's are loaded anew; any other engine has those of the trainer.
    """
    name, policy = "trainer precision", bench.trainer.policy
    dtype = str(policy.model.dtype).removeprefix("torch.")
    if dtype == "float32" and not policy.autocast:
        return Cause(name, "not set", "the trainer computes in float32")
    bench.told("scoring in float32", 0, 1)
    if dtype == "float32":
        model = policy.model
    elif bench.settings.kind == "server" and bench.reloaded is not None:
        model = bench.reloaded("float32")
    else:
        model = copy.deepcopy(policy.model).float()
    wide = replace(bench.trainer, policy=replace(policy, model=model, autocast=False))
    seen = base.rescored(wide, base.asked.reading)
    was = "bfloat16 products" if policy.autocast else dtype
    return Cause(name, "measured", f"the trainer in float32 in place of {was}", change(base.view, seen.view))


def switches(settings: EngineSettings) -> Iterator[tuple[str, dict[str, Any] | None, str]]:
    """(cause, settings of the other engine, what it says); None where there is no such engine."""
    kind, precision = settings.kind, settings.precision
    layers, _, parts = precision.partition(",")
    own: dict[str, str] = {}
    for part in filter(None, parts.split(",")):
        key, _, value = part.strip().partition("=")
        own[key] = value
    if kind == "vllm":
        yield from _switches_of_vllm(settings)
    elif settings.compile:
        for name in ("head precision", "KV-cache precision"):
            yield name, None, "compiled steps have one precision: --engine.compile false"
    else:
        for name, part, narrow in (("head precision", "head", layers != "float32"),
                                   ("KV-cache precision", "cache", layers == "bfloat16")):  # fmt: skip
            written = own.get(part)
            if written == "float32" or (written is None and not narrow):
                yield name, None, ""
                continue
            others = [f"{key}={value}" for key, value in own.items() if key != part]
            text = ",".join([layers, *others, *([] if layers == "float32" else [f"{part}=float32"])])
            yield name, {"precision": text}, f"{part} in float32 in place of {written or layers}"
    if precision == "float32":
        yield "engine precision", None, ""
    else:
        yield "engine precision", {"precision": "float32"}, f"the whole engine in float32 in place of {precision}"


def _switches_of_vllm(settings: EngineSettings) -> Iterator[tuple[str, dict[str, Any] | None, str]]:
    options = dict(settings.options)
    overrides = dict(options.get("hf_overrides") or {})
    if settings.precision == "float32" or overrides.get("head_dtype") == "float32":
        yield "head precision", None, ""
    else:
        wide = options | {"hf_overrides": overrides | {"head_dtype": "float32"}}
        yield "head precision", {"options": wide}, f"head in float32 in place of {settings.precision}"
    cache = str(options.get("kv_cache_dtype", "auto"))
    if cache == "auto":
        said = "vLLM keeps keys and values in the precision of its layers, and has no wider cache"
        yield "KV-cache precision", None, "" if settings.precision == "float32" else said
    else:
        kept = {key: value for key, value in options.items() if key != "kv_cache_dtype"}
        yield "KV-cache precision", {"options": kept}, f"keys and values in the layers' precision, not {cache}"


def _rebuilt(bench: Bench, base: Observation, name: str, changes: dict[str, Any] | None, said: str) -> Cause:
    if changes is None:
        return Cause(name, "not allowed", said) if said else Cause(name, "not set", "it is float32 already")
    try:
        with bench.rebuilt(name, **changes) as engine:
            other = observe(engine, bench.trainer, base.asked, bench.told, doing=f"sampling with another {name}")
    except (ConfigError, EngineError) as error:
        return Cause(name, "not allowed", f"the engine does not run with {said}: {str(error).splitlines()[0][:200]}")
    return Cause(name, "measured", said, change(base.view, other.view))
