"""Responses of the engine beside what the trainer makes of them: one observation is a log that the audit can read."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from holdfast.audit.measure.view import View
from holdfast.audit.read.columns import chunk_of
from holdfast.errors import DataError, EngineError
from holdfast.preflight.grid import Grid, grid_of
from holdfast.preflight.prompts import Prompt
from holdfast.rollout.engine import Completion, Engine, Sampling
from holdfast.train.policy.forward import Policy, Sequences, stats_of
from holdfast.train.sampling.data import pack
from holdfast.types import STATS_BOUNDS, Rollout, TokenStats

REPORT_BYTES = 1 << 29
"""Whole distributions that are there at a time, in bytes."""
Told = Callable[[str, int, int], None]
"""What is being done, how much of it is done, and how much there is."""


@dataclass(frozen=True)
class Reading:
    """What the trainer is told of the sampling: the temperature, and whether the support is known to it."""

    temperature: float = 1.0
    renormalize: bool = False


@dataclass(frozen=True)
class Trainer:
    """The policy's forward pass as training will run it; `pad` fills rows, `tokens` is the size of a micro-batch."""

    policy: Policy
    pad: int
    tokens: int

    def score(self, sequences: Sequences, reading: Reading) -> TokenStats:
        """Log-probabilities of the responses, [B, T], with what the engine's report allows of divergences."""
        policy = replace(self.policy, temperature=reading.temperature, renormalize=reading.renormalize)
        return stats_of(policy, sequences, torch.arange(len(sequences.prompt_lengths)), self.tokens)

    @property
    def vocabulary(self) -> int:
        """Tokens that the model has."""
        return int(self.policy.model.get_input_embeddings().num_embeddings)


@dataclass(frozen=True)
class Asked:
    """What is asked of an engine: prompts with the number of each, how to sample, and what to report.

    `exact` asks for whole distributions, `top` for the K likeliest tokens; `rows` are sampled at a time.
    """

    prompts: tuple[tuple[int, Prompt], ...]
    sampling: Sampling
    reading: Reading
    seed: int = 0
    exact: bool = False
    top: int = 0
    rows: int = 128

    def first(self, count: int) -> Asked:
        """The same for fewer responses, of as many different prompts as there are."""
        turns: dict[int, int] = {}
        order = []
        for place, (number, _) in enumerate(self.prompts):
            turns[number] = turns.get(number, -1) + 1
            order.append((turns[number], place))
        kept = sorted(place for _, place in sorted(order)[:count])
        return replace(self, prompts=tuple(self.prompts[place] for place in kept))

    def rows_at_a_time(self, vocabulary: int) -> int:
        """Rows whose report has room."""
        size = 4 * self.sampling.max_tokens * vocabulary if self.exact else 0
        return max(1, min(self.rows, REPORT_BYTES // size if size else self.rows))


@dataclass(frozen=True)
class Observation:
    """Sampled responses with both log-probabilities, one rollout each; the completions without their reports.

    `excluded` is the number of tokens at which the engine's report names tokens that could not be sampled, `reported`
    that of all tokens with a report, `grid` what the reports say of the precision of the logits. `on_support` are the
    same rollouts with the trainer renormalised on the tokens that the engine could sample, where it excludes any.
    """

    asked: Asked
    completions: tuple[Completion, ...]
    rollouts: tuple[Rollout, ...]
    excluded: int = 0
    reported: int = 0
    on_support: tuple[Rollout, ...] = ()
    grid: Grid = field(default_factory=Grid)

    @cached_property
    def view(self) -> View:
        """The rollouts as the audit measures them."""
        return View(chunk_of(self.rollouts))

    @property
    def tokens(self) -> int:
        """Response tokens."""
        return sum(len(rollout.response_ids) for rollout in self.rollouts)

    def rescored(self, trainer: Trainer, reading: Reading, *, trained: bool = True) -> Observation:
        """The same responses scored anew: with other weights, at another temperature, behind other prompts.

        `trained` scores behind the trainer's prompts, else behind the engine's.
        """
        rollouts = []
        for some in _parts(len(self.rollouts), self.asked.rows):
            prompts = [prompt for _, prompt in self.asked.prompts[some]]
            scored = trainer.score(_sequences(prompts, self.completions[some], trainer.pad, trained), reading)
            rollouts += _rollouts(self.asked, some, self.completions[some], scored, trained)
        return replace(self, rollouts=tuple(rollouts), on_support=())

    def moved(self, other: Observation) -> float:
        """Mean |Δ log p| of the trainer between two scorings of the same responses, nats a token."""
        pairs = zip(self.rollouts, other.rollouts, strict=True)
        gaps = [
            abs(a - b)
            for ours, theirs in pairs
            for a, b in zip(ours.trainer_logprobs or (), theirs.trainer_logprobs or (), strict=True)
        ]
        return sum(gaps) / max(1, len(gaps))


def observe(engine: Engine, trainer: Trainer, asked: Asked, told: Told, *, doing: str) -> Observation:
    """Sample and score, part by part.

    Raises:
        EngineError: the engine fails, or samples a token that the trainer's model does not have.
    """
    found = Observation(asked, (), ())
    size = asked.rows_at_a_time(trainer.vocabulary)
    told(doing, 0, len(asked.prompts))
    for some in _parts(len(asked.prompts), size):
        completions = sample(engine, asked, some)
        found = _extended(found, trainer, some, completions)
        told(doing, some.stop, len(asked.prompts))
    return found


def sample(engine: Engine, asked: Asked, some: slice = slice(None)) -> list[Completion]:
    """Responses of the engine, with its report."""
    prompts = [prompt.engine_ids for _, prompt in asked.prompts[some]]
    ids = list(range(len(asked.prompts)))[some]
    return engine.generate(
        prompts,
        asked.sampling,
        seed=asked.seed,
        sequence_ids=ids,
        return_distributions=asked.exact,
        return_top=0 if asked.exact else asked.top,
    )


def _parts(count: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def _extended(found: Observation, trainer: Trainer, some: slice, completions: Sequence[Completion]) -> Observation:
    """The observation with a part more."""
    asked = found.asked
    prompts = [prompt for _, prompt in asked.prompts[some]]
    for (number, _), completion in zip(asked.prompts[some], completions, strict=True):
        if max(completion.token_ids) >= trainer.vocabulary:
            raise EngineError(
                f"the engine answers prompt {number + 1} with token {max(completion.token_ids)}, and the trainer's "
                f"model has {trainer.vocabulary}: it runs another model; start it on the folder given by --model"
            )
    sequences = _sequences(prompts, completions, trainer.pad)
    scored = trainer.score(sequences, asked.reading)
    reports = sequences.distributions or sequences.top_logprobs or ()
    barred = [_excluded(report, asked) for report in reports]
    excluded = sum(barred)
    supported: list[Rollout] = []
    if excluded and not asked.reading.renormalize:
        with contextlib.suppress(DataError):  # K tokens are too few to hold the support
            known = trainer.score(sequences, replace(asked.reading, renormalize=True))
            supported = _rollouts(asked, some, completions, known, True)
    rollouts = _rollouts(asked, some, completions, scored, True)
    # What the engine cannot sample costs the other policy all its mass there; later parts may exclude nothing.
    aside = [*found.on_support, *(supported or rollouts)] if found.on_support or supported else []
    if aside and len(aside) < len(found.rollouts) + len(rollouts):
        aside = [*found.rollouts, *aside]
    light = tuple(replace(c, distributions=None, top_ids=None, top_logprobs=None) for c in completions)
    return Observation(
        asked,
        (*found.completions, *light),
        (*found.rollouts, *rollouts),
        found.excluded + excluded,
        found.reported + sum(map(len, reports)),
        tuple(aside),
        found.grid + grid_of(reports, asked.sampling.temperature),
    )


def _excluded(report: Tensor, asked: Asked) -> int:
    """Tokens of [T, K] at which something reported could not be sampled."""
    return int((report == -torch.inf).any(dim=1).sum()) if asked.sampling.temperature else 0


def _sequences(
    prompts: Sequence[Prompt], completions: Sequence[Completion], pad: int, trained: bool = True
) -> Sequences:
    ids = [prompt.trainer_ids if trained else prompt.engine_ids for prompt in prompts]
    packed = pack(ids, [completion.token_ids for completion in completions], pad)
    reports: dict[str, Any] = {}
    for name in ("distributions", "top_ids", "top_logprobs"):
        values = [getattr(completion, name) for completion in completions]
        if all(value is not None for value in values):
            reports[name] = tuple(values)
    return replace(packed, **reports)


def _rollouts(
    asked: Asked, some: slice, completions: Sequence[Completion], scored: TokenStats, trained: bool
) -> list[Rollout]:
    """One record for each response; divergences where the report allows them."""
    names = {"kl_rollout": "kl_exact", "entropy": "entropy", **STATS_BOUNDS}
    known = {ours: value for name, ours in names.items() if (value := getattr(scored, name)) is not None}
    rollouts = []
    for row, completion in enumerate(completions):
        number, prompt = asked.prompts[some][row]
        width = len(completion.token_ids)
        columns: dict[str, Any] = {name: tuple(value[row, :width].tolist()) for name, value in known.items()}
        rollouts.append(
            Rollout(
                prompt_ids=prompt.trainer_ids if trained else prompt.engine_ids,
                response_ids=completion.token_ids,
                rollout_logprobs=tuple(completion.logprobs.tolist()),
                trainer_logprobs=tuple(scored.logprobs[row, :width].tolist()),
                weight_versions=(completion.policy_version,) * width,
                finish_reason=completion.finish_reason,
                step=0,
                sequence_id=some.start + row,
                group_id=number,
                temperature=asked.sampling.temperature,
                top_p=asked.sampling.top_p,
                top_k=asked.sampling.top_k,
                min_p=asked.sampling.min_p,
                prompt_text=prompt.text,
                **columns,
            )
        )
    return rollouts
