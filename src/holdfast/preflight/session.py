"""From a plan to a preflight: does it fit, the model, the prompts, the engine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from holdfast.errors import ConfigError
from holdfast.preflight.bench import bench_of, maker
from holdfast.preflight.inspect import Preflight, preflight
from holdfast.preflight.observe import REPORT_BYTES, Told
from holdfast.preflight.plan import Plan
from holdfast.preflight.prompts import encode_prompts
from holdfast.train.estimate import Estimate, Shape, estimate, shape_of_run
from holdfast.train.keep.checkpoint import no_progress_bar
from holdfast.train.policy.model import build_model, use_attention
from holdfast.train.settings.config import RunConfig
from holdfast.train.settings.device import check_attention, check_device, device_of
from holdfast.train.settings.memory import free_memory
from holdfast.train.settings.objective import objective_of

SMALLER = {
    "trainer weights": "a smaller model, or --model.dtype bfloat16",
    "engine weights": "--engine.precision bfloat16",
    "engine cache": "a lower --engine.cache_gib",
    "drawing tokens": "a lower --engine.cache_gib, or a lower --batch.prompts",
    "kept weights": "--no-sync",
    "whole distributions": "--engine.exact_kl false --engine.top_logprobs 20",
    "scoring": "a lower --batch.micro_batch_tokens",
}
"""What makes a part smaller."""
USUAL_PROMPT = 256
"""Tokens of a prompt, as the memory is estimated before the tokenizer is there."""


def run_preflight(plan: Plan, given: Sequence[Any], folder: Path, told: Told) -> tuple[Preflight, Any]:
    """The preflight of a plan, and the tokenizer, for whoever shows it; `folder` is for files of engines outside.

    Raises:
        ConfigError: the model cannot be loaded or does not fit, or settings cannot be honoured.
        EngineError: the engine cannot be started, gives no log-probabilities, or dies.
    """
    config = plan.config
    check_device(config)
    check_attention(config.model)
    check_fits(plan)
    torch.set_num_threads(config.threads)
    told("loading the model", 0, 1)
    model, tokenizer = build_model(config, "")
    prompts = encode_prompts(
        given, tokenizer, chat=config.model.chat, engine_template=plan.engine_template, most=_room(plan, model)
    )
    make = maker(model, tokenizer, folder, plan.sync_folder)
    bench = bench_of(plan, prompts, model, tokenizer, make, told)
    bench.reloaded = lambda dtype: _reloaded(config, dtype)
    return preflight(bench), tokenizer


def _reloaded(config: RunConfig, dtype: str) -> Any:
    settings = config.model.model_copy(update={"dtype": dtype})
    model, _ = build_model(config.model_copy(update={"model": settings}), "")
    use_attention(model, settings)
    return model


def check_fits(plan: Plan) -> None:
    """Whether there is room for the model, the engine and the copy of the weights that the sync needs.

    Raises:
        ConfigError: there is not; the message names the largest parts and the settings that change them.
    """
    config = plan.config
    device = device_of(config.model).type
    try:
        with no_progress_bar():
            shape = shape_of_run(config, "")
    except (OSError, ValueError, KeyError, AttributeError):
        return  # loading the model says why, in its own words
    free, found = free_memory(device), memory_of(plan, shape, device)
    if not config.model.memory_check or free is None or found.total <= free:
        return
    largest = sorted(found.stages[found.peak], key=lambda name: -found.parts[name])[:3]
    advice = "; ".join(f"{name} {found.parts[name] / 1e9:.2f} GB ({SMALLER[name]})" for name in largest)
    raise ConfigError(
        f"the preflight needs about {found.total / 1e9:.2f} GB of memory while {found.peak}, and {free / 1e9:.2f} GB "
        f"are free on {'this GPU' if device == 'cuda' else 'this machine'}. What takes most, and what makes it "
        f"smaller: {advice}. To start it all the same: --model.memory_check false"
    )


def memory_of(plan: Plan, shape: Shape, device: str) -> Estimate:
    """Bytes of a preflight by part: those of a run that are there without gradients and optimiser."""
    config = plan.config
    exact, top = plan.reports(shape.vocabulary)
    engine = config.engine.model_copy(update={"exact_kl": False, "top_logprobs": top, "lag": 0})
    plain = config.model_copy(update={"engine": engine})
    run = estimate(plain, shape, objective_of(plain), prompt_tokens=USUAL_PROMPT, device=device)
    row = 4 * shape.vocabulary * config.sampling.max_tokens
    rows = max(1, min(config.batch.sequences, REPORT_BYTES // row))
    weights = run.parts["trainer weights"]
    parts = {name: run.parts[name] for name in ("trainer weights", "engine weights", "engine cache", "drawing tokens")}
    parts |= {
        "kept weights": weights if plan.sync else 0,
        "whole distributions": 2 * rows * row if exact else 0,
        "scoring": run.parts["activations"] // shape.layers + run.parts["LM head"],
    }
    engines = ("trainer weights", "engine weights", "engine cache")
    stages = {
        "sampling": (*engines, "drawing tokens", "whole distributions"),
        "scoring": (*engines, "scoring", "whole distributions"),
        "checking the sync": (*engines, "kept weights", "scoring", "whole distributions"),
    }
    return Estimate(parts, stages, run.freed)


def _room(plan: Plan, model: Any) -> int:
    context = getattr(model.config, "max_position_embeddings", None) or 1 << 30
    room = context - plan.config.sampling.max_tokens
    if room < 1:
        raise ConfigError(
            f"sampling.max_tokens = {plan.config.sampling.max_tokens} leaves no room for a prompt in the model's "
            f"context of {context} tokens; nearest valid value: {context - 1}"
        )
    most = plan.config.batch.max_prompt_tokens
    return room if most is None else min(room, most)
