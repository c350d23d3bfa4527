"""Defaults that depend on the rest of a configuration, and what its numerics cannot do.

The schema's defaults are those of the tiny models that are made from scratch. A model that was given (`model.source`)
is pretrained and larger, and has others; a key that was written is never changed.
"""

from __future__ import annotations

import math
from typing import Any, TypeVar

from holdfast.errors import ConfigError
from holdfast.train.settings.config import TABLES, RunConfig
from holdfast.train.settings.device import Machine
from holdfast.train.settings.memory import total_memory
from holdfast.train.settings.section import Section

S = TypeVar("S", bound=Section)

FULL_RATE, LORA_RATE = 1e-6, 1e-5
"""AdamW on all weights: the rate of most published runs and TRL's default; adapters take about ten times as much."""
USUAL_WEIGHT = 0.0135
"""Median magnitude of a weight drawn from a normal distribution with standard deviation .02: .6745 · .02."""
EXACT_KL_BYTES = 2 * 10**9
"""Up to here whole distributions of a step are kept without being asked for."""


def with_defaults(config: RunConfig, machine: Machine) -> RunConfig:
    """The same configuration with every key that was not written resolved for its model and machine."""
    config = _filled(config, threads=machine.threads)
    if config.data_epochs is not None:
        config = _with_table(config, "batch", without_replacement=True)
    if config.model.source is None:
        return config
    if config.model.dtype == "float32":
        config = _with_table(config, "model", autocast=machine.gpu and machine.bfloat16)
    if config.engine.kind != "server":
        config = _with_table(config, "engine", precision="bfloat16" if machine.bfloat16 else "float32")
    config = _with_table(config, "optimizer", learning_rate=LORA_RATE if config.lora.rank else FULL_RATE)
    config = _with_table(config, "checkpoint", best=True)
    return _with_table(config, "batch", without_replacement=config.task.name in TABLES)


def smallest_rate(weight: float = USUAL_WEIGHT) -> float:
    """The learning rate below which an AdamW step leaves a bfloat16 weight of this size where it is.

    bfloat16 keeps 8 significant bits: a weight in [2^e, 2^(e+1)) is a multiple of its spacing 2^(e−7), and an update
    below half of that, 2^(e−8), is rounded away. AdamW moves a weight by at most about the learning rate.
    """
    return 2.0 ** (math.floor(math.log2(weight)) - 8)


def check_dtype(config: RunConfig) -> None:
    """Whether weights in bfloat16 can take the steps of this learning rate; adapters of LoRA are kept in float32.

    Raises:
        ConfigError: a weight of the usual size would never move.
    """
    rate, least = config.optimizer.learning_rate, smallest_rate()
    if config.model.dtype == "bfloat16" and not config.lora.rank and rate < least:
        raise ConfigError(
            f'model.dtype = "bfloat16" with optimizer.learning_rate = {rate:g} trains next to nothing: a weight of the '
            f"usual size, {USUAL_WEIGHT}, has neighbours {2 * least:.1e} away, AdamW moves it by about the learning "
            f"rate, and less than half the way, {least:.1e}, is rounded away; nearest valid value: "
            'model.dtype = "float32" with model.autocast = true (products in bfloat16 over float32 weights), or a '
            f"learning rate of {least:.1e}"
        )


def distribution_bytes(config: RunConfig, vocabulary: int) -> int:
    """Bytes that whole distributions of a step can take: 4 · vocabulary · max_tokens · responses, float32.

    An asynchronous engine is `async.staleness` steps ahead, and its responses wait with theirs.
    """
    steps = 1 + config.asynchronous.staleness
    return 4 * vocabulary * config.sampling.max_tokens * config.batch.sequences * steps


def with_exact_kl(config: RunConfig, vocabulary: int, needed: bool) -> tuple[RunConfig, tuple[str, ...]]:
    """`engine.exact_kl` decided for a model of this vocabulary, and what to say of it before the first step.

    `needed` says that the objective or the sampling needs whole distributions whatever the setting is.

    Raises:
        ConfigError: they are asked for, and are larger than this machine's memory.
    """
    size, asked = distribution_bytes(config, vocabulary), config.engine.exact_kl
    words = (
        f"exact KL keeps up to {size / 1e9:.3g} GB a step: 4 bytes x {vocabulary} tokens x "
        f"sampling.max_tokens = {config.sampling.max_tokens} x {config.batch.sequences} responses"
    )
    if config.asynchronous.staleness:
        words += f" x {1 + config.asynchronous.staleness} steps under way"
    if not needed and not asked:
        on = asked is None and size <= EXACT_KL_BYTES
        off = f"{words}; it is off: engine.exact_kl = true measures it, engine.top_logprobs = 20 bounds it"
        notes = (off,) if asked is None and not on else ()
        return _with_table(config, "engine", keep_written=False, exact_kl=on), notes
    memory = total_memory()
    if memory is not None and size > memory:
        fix = "set engine.exact_kl = false, or engine.top_logprobs = 20 for bounds"
        if needed:
            fix = (
                "the objective or a truncated support needs whole distributions: lower sampling.max_tokens or "
                "batch.prompts, set engine.sampling_mask = true, or take a mask on sampled divergences or on bounds "
                "(engine.top_logprobs)"
            )
        raise ConfigError(f"{words}; this machine has {memory / 1e9:.3g} GB: {fix}")
    return config, (words,) if size > EXACT_KL_BYTES else ()


def with_steps(config: RunConfig, problems: int) -> RunConfig:
    """`steps` where `data_epochs` are given: ceil(data_epochs · problems / batch.prompts), and no more than written."""
    if config.data_epochs is None:
        return config
    enough = math.ceil(config.data_epochs * problems / config.batch.prompts)
    steps = min(enough, config.steps) if "steps" in config.model_fields_set else enough
    return _filled(config, keep_written=False, steps=steps)


def _with_table(config: RunConfig, table: str, *, keep_written: bool = True, **values: Any) -> RunConfig:
    section = _filled(getattr(config, table), keep_written=keep_written, **values)
    return config.model_copy(update={table: section})


def _filled(section: S, *, keep_written: bool = True, **values: Any) -> S:
    """The same with these values for keys that were not written, which stay unwritten."""
    absent = {k: v for k, v in values.items() if not (keep_written and k in section.model_fields_set)}
    written = set(section.model_fields_set)
    filled = section.model_copy(update=absent)
    filled.model_fields_set.intersection_update(written)
    return filled
