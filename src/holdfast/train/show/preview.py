"""What can be known of a run before it starts, in seconds and without loading a weight or leaving a file."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from holdfast.errors import HoldfastError
from holdfast.rollout.models import character_tokenizer, load_tokenizer, place_of, tiny_config
from holdfast.tasks import get_task
from holdfast.tasks.base import Problem, Task
from holdfast.tasks.held_out import held_out_warnings
from holdfast.tasks.records import Records
from holdfast.tasks.verify import Score, make_scorer, shorten
from holdfast.train.keep.checkpoint import no_progress_bar
from holdfast.train.sampling.data import PromptSource
from holdfast.train.sampling.sampler import decide_exact_kl, wanted_top, wants_distributions
from holdfast.train.settings.config import RunConfig
from holdfast.train.settings.device import check_attention, check_device, device_notes
from holdfast.train.settings.objective import objective_of
from holdfast.train.settings.seeds import derive_seed
from holdfast.train.setup import longest_prompt
from holdfast.train.show.banner import facts

LOOKED_AT = 256
"""Prompts whose tokens are counted."""
JUDGED = 4
"""Problems whose reference answer is judged."""


@dataclass(frozen=True)
class Line:
    """What was found about one part: "ok", "warning" or "error"."""

    part: str
    status: str
    text: str


@dataclass
class _Known:
    """What the parts found, for those after them."""

    config: RunConfig
    task: Task | None = None
    model_config: Any = None
    source: PromptSource | None = None


def preview(config: RunConfig) -> Iterator[Line]:
    """A line per part and per doubt; a part that is broken hides those that need it, and the others are looked at."""
    known = _Known(config)
    parts: dict[str, Callable[[_Known], Iterator[Line]]] = {
        "machine": _machine,
        "objective": _objective,
        "data": _data,
        "model": _model,
        "prompt": _prompt,
        "reward": _reward,
        "memory": _memory,
    }
    for name, look in parts.items():
        try:
            yield from look(known)
        except HoldfastError as error:
            yield Line(name, "error", str(error))


def _machine(known: _Known) -> Iterator[Line]:
    config = known.config
    check_device(config)
    check_attention(config.model)
    wanted = {"peft": config.lora.rank > 0, "torchao": config.optimizer.kind == "adamw8bit"}
    wanted["vllm"] = config.engine.kind == "vllm"
    extras = {"peft": "holdfast-rl[lora]", "torchao": "holdfast-rl[adamw8bit]", "vllm": "vllm"}
    for package, asked in wanted.items():
        if asked and importlib.util.find_spec(package) is None:
            yield Line("machine", "error", f"the package {package} is not installed: pip install '{extras[package]}'")
    for note in device_notes(config):
        yield Line("machine", "warning", note)


def _objective(known: _Known) -> Iterator[Line]:
    objective = objective_of(known.config)
    yield Line("objective", "ok", objective.explain().splitlines()[0])
    wanted_top(known.config, objective)


def _data(known: _Known) -> Iterator[Line]:
    config = known.config
    known.task = task = get_task(config.task.name, **config.task.options)
    if isinstance(task, Records):
        training, held_out = task.pool("train"), task.pool("eval")
        yield Line("data", "ok", f"{len(training):,} problems to train on, {len(held_out):,} held out")
    else:
        training = _first(known, config.batch.prompts)
        yield Line("data", "ok", f"task {task.name!r} makes its problems up")
    judged = task.problems(derive_seed(config.seed, "evaluate"), config.evaluation.problems, "eval")
    for text in held_out_warnings(task, judged, training):
        yield Line("data", "warning", text)


def _first(known: _Known, count: int) -> Sequence[Problem]:
    assert known.task is not None
    return known.task.problems(derive_seed(known.config.seed, "train", 1), count, "train")


def _model(known: _Known) -> Iterator[Line]:
    config, task = known.config, known.task
    if config.model.source is not None:
        from transformers import AutoConfig

        with no_progress_bar():
            place = place_of(config.model.source)
            try:
                known.model_config = AutoConfig.from_pretrained(place)
            except (OSError, ValueError, KeyError) as error:
                why = str(error).splitlines()[0]
                yield Line("model", "error", f"config.json of {config.model.source!r} cannot be read: {why}")
                return
            tokenizer = load_tokenizer(config.model.source, known.model_config.get_text_config().vocab_size)
    elif task is not None:
        tokenizer = character_tokenizer(task.alphabet)
        sizes = {"hidden": config.model.hidden, "layers": config.model.layers, "heads": config.model.heads}
        known.model_config = tiny_config(tokenizer, **sizes)
    else:
        return
    text = known.model_config.get_text_config()
    if task is not None:
        room = longest_prompt(config, text, task)
        known.source = PromptSource(task, tokenizer, max_tokens=room, chat=config.model.chat)
    objective = objective_of(config)
    decided, said = decide_exact_kl(config, objective, text.vocab_size)
    context = getattr(text, "max_position_embeddings", None)
    yield Line("model", "ok", f"{text.vocab_size:,} tokens, context of {context or 'any length'}")
    gives = ["the log-probability of each token it samples"]
    gives += [f"the {top} likeliest tokens of each position"] if (top := wanted_top(decided, objective)) else []
    gives += ["whole distributions"] if wants_distributions(decided, objective) else []
    yield Line("engine", "ok", f"{config.engine.kind}: gives {', '.join(gives)}")
    for note in said:
        yield Line("engine", "warning", note)


def _prompt(known: _Known) -> Iterator[Line]:
    if known.source is None:
        return
    problems = _first(known, LOOKED_AT)
    lengths = [len(known.source.encode(problem)) for problem in problems]
    shown = known.source.tokenizer.decode(list(known.source.encode(problems[0])))
    yield Line("prompt", "ok", f"{lengths[0]} tokens, as the model sees it: {shorten(shown, 300)!r}")
    longer = sum(length > known.source.max_tokens for length in lengths)
    told = f"the longest of {len(lengths)} has {max(lengths)} tokens, {known.source.max_tokens} fit"
    share = f"; {longer / len(lengths):.0%} are longer and left out"
    yield Line("prompt", "warning" if longer else "ok", told + (share if longer else ""))
    has_template = getattr(known.source.tokenizer, "chat_template", None)
    if has_template and not known.config.model.chat:
        yield Line(
            "prompt", "warning", "the tokenizer has a chat template and model.chat is false: right for a base model"
        )


def _reward(known: _Known) -> Iterator[Line]:
    if known.task is None:
        return
    own, problems = known.config.task, list(_first(known, JUDGED))
    scorer = make_scorer(
        known.task, own.reward, timeout=own.reward_timeout, workers=1, memory_gib=own.reward_memory_gib
    )
    try:
        right = scorer(problems, [reference(known.task, problem) for problem in problems])
        empty = scorer(problems, [""] * len(problems))
    finally:
        scorer.close()
    failed = next((score.error for score in (*right, *empty) if score.error), None)
    gained, lost = _numbers(right), _numbers(empty)
    yield Line("reward", "ok", f"{gained} for reference answers as responses, {lost} for empty ones")
    if failed:
        yield Line("reward", "warning", f"the reward function {failed}")
    elif all(a.value <= b.value for a, b in zip(right, empty, strict=True)):
        yield Line(
            "reward",
            "warning",
            f"a response that is the reference answer ({shorten(reference(known.task, problems[0]))!r}) earns no more "
            "than an empty one: check task.verifier and task.marker, unless your function rewards something else",
        )


def reference(task: Task, problem: Problem) -> str:
    """A response that should be right: the answer behind the task's marker, or the task's own solution."""
    if isinstance(task, Records):
        return f"{task.marker} {problem.answer}" if task.marker else problem.answer
    return problem.solution or problem.answer


def _numbers(scores: Sequence[Score]) -> str:
    return ", ".join(f"{score.value:.3g}" for score in scores)


def _memory(known: _Known) -> Iterator[Line]:
    if known.task is None:
        return
    told = facts(known.config, known.task, objective_of(known.config))
    for part in ("batch", "memory"):
        yield Line(part, "ok", told[part])
