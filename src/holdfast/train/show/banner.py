"""What a run is about to do, and whether it fits: said before anything is loaded."""

from __future__ import annotations

from holdfast.objectives.objective import Objective
from holdfast.tasks.base import Task
from holdfast.train.estimate import Estimate, Shape, estimate, shape_of_run
from holdfast.train.keep.checkpoint import no_progress_bar
from holdfast.train.settings.config import RunConfig
from holdfast.train.settings.device import device_of
from holdfast.train.settings.memory import free_memory
from holdfast.train.settings.seeds import derive_seed
from holdfast.train.show.summary import describe_engine, describe_model

CHARACTERS = 3
"""Of a prompt, per token: fewer than most tokenizers' average, so that prompts come out rather too long."""


def introduce(config: RunConfig, task: Task, objective: Objective) -> str:
    """A few lines about the run; raises what `facts` does."""
    return "\n".join(f"{key:<10}{value}" for key, value in facts(config, task, objective).items())


def facts(config: RunConfig, task: Task, objective: Objective) -> dict[str, str]:
    """What there is to say of the run, by what it is about.

    Raises:
        ConfigError: it needs more memory than is free, or there is no such device.
    """
    device = device_of(config.model).type
    try:
        with no_progress_bar():
            shape = shape_of_run(config, task.alphabet)
    except (OSError, ValueError, KeyError, AttributeError) as error:
        memory = f"not estimated: the model's config.json cannot be read here ({str(error).splitlines()[0][:80]})"
        return _facts(config, None, objective, device, memory)
    found = estimate(config, shape, objective, prompt_tokens=prompt_tokens(config, task), device=device)
    free = free_memory(device)
    if config.model.memory_check:
        found.check(free, "this GPU" if device == "cuda" else "this machine")
    return _facts(config, shape, objective, device, in_words(found, free))


def prompt_tokens(config: RunConfig, task: Task) -> int:
    """The longest prompt of the first step, in characters for a tiny model, whose tokens they are; else a third."""
    problems = task.problems(derive_seed(config.seed, "train", 1), config.batch.prompts, "train")
    characters = max((len(problem.prompt) for problem in problems), default=1)
    tokens = characters + 1 if config.model.source is None else -(-characters // CHARACTERS) + 8
    return tokens if config.batch.max_prompt_tokens is None else min(tokens, config.batch.max_prompt_tokens)


def in_words(found: Estimate, free: int | None) -> str:
    """The estimate in one line: all of it, what is free, the largest part."""
    there = "how much is free is not known" if free is None else f"{free / 1e9:.1f} GB free"
    largest = f"{found.largest} {found.parts[found.largest] / 1e9:.2f}"
    return f"about {found.total / 1e9:.2f} GB while {found.peak} (most: {largest}), {there}"


def _facts(config: RunConfig, shape: Shape | None, objective: Objective, device: str, memory: str) -> dict[str, str]:
    model, batch = config.model, config.batch
    sizes = "" if shape is None else f", {_count(shape.parameters)} parameters"
    kept = f"{model.dtype} with bfloat16 products" if model.autocast else model.dtype
    lora = f", adapters of rank {config.lora.rank}" if config.lora.rank else ""
    where = config.task.options.get("path")
    return {
        "model": f"{describe_model(config)}{sizes}{lora}, {kept} on {device}",
        "engine": f"{config.engine.kind}: {describe_engine(config)}",
        "objective": objective.name,
        "data": config.task.name if where is None else f"{config.task.name}, {where}",
        "batch": f"{config.steps} steps of {batch.prompts} prompts x {batch.group_size} responses of up to "
        f"{config.sampling.max_tokens} tokens",
        "memory": memory,
    }


def _count(parameters: int) -> str:
    return f"{parameters / 1e9:.3g} B" if parameters >= 1e9 else f"{parameters / 1e6:.3g} M"
