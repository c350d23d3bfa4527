"""Where a step's responses come from: an engine in this process that writes them when they are wanted.

`holdfast.train.sampling.pipeline` is the other way: an engine in a process of its own that writes ahead.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from holdfast.errors import ConfigError
from holdfast.objectives.objective import Objective
from holdfast.rollout.engine import Engine, Sampling, Sleeper
from holdfast.tasks.base import Environment
from holdfast.train.policy.forward import DIVERGENCES
from holdfast.train.sampling.data import Prompts, PromptSource
from holdfast.train.sampling.episodes import Episode, Writing
from holdfast.train.sampling.routing import with_experts
from holdfast.train.settings.config import RunConfig
from holdfast.train.settings.defaults import with_exact_kl
from holdfast.train.settings.seeds import derive_seed
from holdfast.types import STATS_BOUNDS


@runtime_checkable
class Sampler(Protocol):
    """Finished responses, step by step, and new weights in return."""

    def episodes(self, step: int) -> list[Episode]:
        """The responses that this step trains on, group by group, in the order of their sequence ids."""
        ...

    def publish(self, model: Any, version: int) -> None:
        """Hand over the weights of `model`, which are the policy's version `version`."""
        ...

    def facts(self) -> dict[str, Any]:
        """Numbers for the step's line in metrics.jsonl."""
        ...

    def cpu_seconds(self) -> float:
        """CPU seconds that other processes have spent on the responses handed out so far."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run must give back to `load_state_dict`."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        ...

    def start_over(self) -> None:
        """Begin a run again that was ended before it had a state to go on from."""
        ...

    def give_back(self, step: int) -> None:
        """The step broke before it changed the policy: its responses are still to be trained on."""
        ...

    def close(self) -> None:
        """Free the engine."""
        ...


class Synchronous:
    """Every step waits for its responses, which are written under the newest weights that the engine has."""

    def __init__(self, config: RunConfig, source: PromptSource, writing: Writing, engine: Engine) -> None:
        self.config, self.source, self.writing, self.engine = config, source, writing, engine

    def episodes(self, step: int) -> list[Episode]:
        """Written now."""
        first = derive_seed(self.config.seed, "sample")
        started = step_episodes(self.config, self.source, step)
        written = self.writing.advance(
            self.engine,
            started,
            budget=self.writing.sampling.max_tokens,
            seed=lambda call: derive_seed(first, call) if call else first,
        )
        if isinstance(self.engine, Sleeper):
            self.engine.sleep()  # until new weights are published
        return with_experts(self.engine, started, written, self.config.batch.micro_batch_tokens)

    def publish(self, model: Any, version: int) -> None:
        """To the engine at once."""
        self.engine.sync(model, version)

    def facts(self) -> dict[str, Any]:
        """Nothing that the step does not know."""
        return {}

    def cpu_seconds(self) -> float:
        """All of it is this process's."""
        return 0.0

    def state_dict(self) -> dict[str, Any]:
        """The engine's."""
        return self.engine.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Give it back to the engine."""
        self.engine.load_state_dict(state)

    def start_over(self) -> None:
        """Nothing of the last time is left."""

    def give_back(self, step: int) -> None:
        """They are written again."""

    def close(self) -> None:
        """Free the engine."""
        self.engine.close()


def step_episodes(config: RunConfig, source: PromptSource, step: int) -> list[Episode]:
    """The groups of a step, not a token of which is written: a function of seed and step alone."""
    prompts = step_prompts(config, source, step)
    return new_episodes(prompts.repeat(config.batch.group_size), (step - 1) * config.batch.sequences)


def step_prompts(config: RunConfig, source: PromptSource, step: int) -> Prompts:
    """The problems of a step: drawn, or the next ones of the table."""
    count = config.batch.prompts
    if config.batch.without_replacement:
        return source.visit(derive_seed(config.seed, "epoch"), (step - 1) * count, count)
    return source.draw(derive_seed(config.seed, "train", step), count, "train")


def new_episodes(prompts: Prompts, first_id: int) -> list[Episode]:
    """One unwritten response per prompt, numbered from `first_id`."""
    pairs = zip(prompts.problems, prompts.token_ids, strict=True)
    return [Episode(first_id + index, problem, ids) for index, (problem, ids) in enumerate(pairs)]


def writing_of(config: RunConfig, source: PromptSource, objective: Objective) -> Writing:
    """How the configuration wants responses written."""
    task = source.task
    talks = isinstance(task, Environment)
    return Writing(
        sampling_of(config),
        distributions=wants_distributions(config, objective),
        top=wanted_top(config, objective),
        support=wants_support(config, objective),
        reply=source.answer if talks else None,
        max_turns=task.max_turns if talks else 1,
    )


def sampling_of(config: RunConfig) -> Sampling:
    """How rollouts are sampled."""
    settings = config.sampling
    return Sampling(
        temperature=settings.temperature,
        top_p=settings.top_p,
        top_k=settings.top_k,
        min_p=settings.min_p,
        max_tokens=settings.max_tokens,
    )


def decide_exact_kl(config: RunConfig, objective: Objective, vocabulary: int) -> tuple[RunConfig, tuple[str, ...]]:
    """`engine.exact_kl` as `with_exact_kl` decides it for this objective, and what to say of it.

    Raises:
        ConfigError: whole distributions are asked for, or needed, and larger than this machine's memory.
    """
    quiet = config.model_copy(update={"engine": config.engine.model_copy(update={"exact_kl": False})})
    return with_exact_kl(config, vocabulary, wants_distributions(quiet, objective))


def wants_distributions(config: RunConfig, objective: Objective) -> bool:
    """Whether the engine must return whole distributions: for exact divergences, and to know its support.

    A support that top-K reports in full is known without them, and so are the divergences on it; a sampling mask tells
    the support alone. Whether exact KL that nobody asked for is too large is decided before (`decide_exact_kl`).
    """
    exact = not objective.needs.isdisjoint(DIVERGENCES)
    needed = exact or (_renormalizes(config) and not _gives_mask(config))
    return config.engine.exact_kl is not False or (needed and not _reported(config))


def wants_support(config: RunConfig, objective: Objective) -> bool:
    """Whether the engine must report its sampling masks: where the trainer needs its support and has it from nothing.

    Whole distributions tell it, and likeliest tokens that hold all of it do, unless a mask is asked for.
    """
    told = wants_distributions(config, objective) or (_reported(config) and not config.engine.sampling_mask)
    return _renormalizes(config) and _gives_mask(config) and not told


def _renormalizes(config: RunConfig) -> bool:
    return config.sampling.truncates and config.sampling.trainer_support == "processed"


def _reported(config: RunConfig) -> bool:
    """Whether all that can be sampled is among the likeliest tokens."""
    return _renormalizes(config) and 0 < config.sampling.top_k < config.engine.top_logprobs


def _gives_mask(config: RunConfig) -> bool:
    """Ours can always; an engine outside has to be started for it."""
    asked = config.engine.sampling_mask
    return config.engine.kind == "embedded" if asked is None else asked


def wanted_top(config: RunConfig, objective: Objective) -> int:
    """How many likeliest tokens the engine must report per position.

    Raises:
        ConfigError: the objective reads bounds that follow from them, and none are asked for.
    """
    bounds = sorted(objective.needs & set(STATS_BOUNDS))
    if bounds and not config.engine.top_logprobs:
        raise ConfigError(
            f"the objective needs {' and '.join(bounds)}, bounds that follow from the engine's likeliest tokens, but "
            "engine.top_logprobs = 0; set it to a number that the engine can report, for example 20"
        )
    return config.engine.top_logprobs
