"""Responses as they are written: in one go, in pieces under newer and newer weights, or in turns with an environment.

An `Episode` is a value: writing it on gives a new one. So whoever holds the old one can have the work done again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from holdfast.errors import EngineError
from holdfast.rollout.engine import Completion, Engine, Sampling
from holdfast.rollout.support import first_rows, named
from holdfast.tasks.base import Problem

Reply = Callable[[Problem, Sequence[int]], tuple[int, ...] | None]
"""What the environment answers to a turn, as token ids; None ends the conversation."""


@dataclass(frozen=True)
class Episode:
    """One response: what the policy sampled, under which weights, and what an environment said in between.

    `sampled` is False on tokens that the environment wrote; `versions` and `turn_ids` are per token. What the engine
    reported (`logprobs` to `support_sizes`, as in a Completion) is per sampled token. The `experts` that its model
    chose, if it is a mixture, are of all tokens but the last, and follow once a piece is written. `finish_reason` is
    None until the response is.
    """

    sequence_id: int
    problem: Problem
    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...] = ()
    sampled: tuple[bool, ...] = ()
    versions: tuple[int, ...] = ()
    turn_ids: tuple[int, ...] = ()
    logprobs: Float[Tensor, " N"] | None = None
    distributions: Float[Tensor, "N V"] | None = None
    top_ids: Int[Tensor, "N K"] | None = None
    top_logprobs: Float[Tensor, "N K"] | None = None
    support_ids: Int[Tensor, " M"] | None = None
    support_sizes: Int[Tensor, " N"] | None = None
    experts: Int[Tensor, "M layers E"] | None = None
    finish_reason: str | None = None

    @property
    def sampled_ids(self) -> tuple[int, ...]:
        """Only the tokens of the policy."""
        return tuple(token for token, own in zip(self.token_ids, self.sampled, strict=True) if own)

    @property
    def turn(self) -> int:
        """The number of the turn that is being written."""
        return self.turn_ids[-1] + (not self.sampled[-1]) if self.turn_ids else 0

    @property
    def turn_tokens(self) -> tuple[int, ...]:
        """What the policy has written of its turn so far."""
        return tuple(token for token, turn in zip(self.token_ids, self.turn_ids, strict=True) if turn == self.turn)


@dataclass(frozen=True)
class Writing:
    """How responses are written: `sampling.max_tokens` sampled tokens in all; `reply` makes it a conversation.

    `distributions`, `top` (the number K of likeliest tokens) and `support` (all that could be drawn) say what the
    engine must report of each draw. After `max_turns` turns of the policy the environment is not asked any more.
    """

    sampling: Sampling
    distributions: bool = False
    top: int = 0
    support: bool = False
    reply: Reply | None = None
    max_turns: int = 1

    def advance(
        self, engine: Engine, episodes: Sequence[Episode], *, budget: int, seed: Callable[[int], int]
    ) -> list[Episode]:
        """Every unfinished episode with up to `budget` more sampled tokens.

        `seed(call)` gives the seed of the call-th request to the engine; a draw depends on it, on the sequence id and
        on the position within that request.

        Raises:
            EngineError: what the engine reported is for another number of tokens.
        """
        written = list(episodes)
        room = [min(budget, self.sampling.max_tokens - sum(episode.sampled)) for episode in written]
        call = 0
        while True:
            active = [i for i, e in enumerate(written) if e.finish_reason is None and room[i] > 0]
            if not active:
                return written
            completions = engine.generate(
                [written[i].prompt_ids + written[i].token_ids for i in active],
                replace(self.sampling, max_tokens=max(room[i] for i in active)),
                seed=seed(call),
                sequence_ids=[written[i].sequence_id for i in active],
                return_distributions=self.distributions,
                return_top=self.top,
                return_support=self.support,
            )
            if len(completions) != len(active):
                raise EngineError(
                    f"{type(engine).__name__} gave {len(completions)} responses to {len(active)} requests: which "
                    "belongs to which is not known, so nothing can be trained on them"
                )
            for i, completion in zip(active, completions, strict=True):
                _check(completion, type(engine).__name__, written[i])
                piece = _cut(completion, room[i])
                room[i] -= len(piece.token_ids)
                written[i] = self._go_on(_extended(written[i], piece), piece)
            call += 1

    def _go_on(self, episode: Episode, piece: Completion) -> Episode:
        """Finish, let the environment speak, or leave the turn open."""
        if piece.finish_reason != "stop":
            full = sum(episode.sampled) >= self.sampling.max_tokens
            return replace(episode, finish_reason="length") if full else episode
        answer = None if self.reply is None else self.reply(episode.problem, episode.turn_tokens)
        if answer is None:
            return replace(episode, finish_reason="stop")
        if episode.turn + 1 >= self.max_turns:
            return replace(episode, finish_reason="turns")
        if sum(episode.sampled) >= self.sampling.max_tokens:
            return replace(episode, finish_reason="length")
        return _spoken(episode, answer, piece.policy_version)


_REPORTED = {
    "logprobs": "log-probabilities",
    "distributions": "distributions",
    "top_ids": "rows of likeliest tokens",
    "top_logprobs": "rows of their log-probabilities",
    "support_sizes": "numbers of tokens that could be drawn",
}
_KEPT = (*_REPORTED, "support_ids")


LOWEST = -80.0
"""Nats: what has a chance below e^-80 is never sampled, and the ratio to it leaves the range of float32."""

HIGHEST = 1e-3
"""How far above 0 a log-probability may be by rounding."""


def _check(completion: Completion, engine: str, episode: Episode) -> None:
    """EngineError where a token or its log-probability cannot be; the place is that in the whole response."""
    name, start = f"{engine}, sequence {episode.sequence_id}", len(episode.token_ids)
    for place, token in enumerate(completion.token_ids, start):
        if type(token) is not int or token < 0:
            raise EngineError(f"{name}: token {place} is {token!r}, which is no token id")
    logprobs = completion.logprobs
    possible = torch.isfinite(logprobs) & (logprobs >= LOWEST) & (logprobs <= HIGHEST)
    if wrong := (~possible).nonzero().flatten().tolist():
        raise EngineError(
            f"{name}: log-probability {float(logprobs[wrong[0]]):g} at token {start + wrong[0]}: a token that was "
            f"sampled has one between {LOWEST:g} and 0; the engine's log-probabilities are not those of its tokens"
        )
    ids, sizes = completion.support_ids, completion.support_sizes
    if ids is None or sizes is None or len(sizes) != len(completion.token_ids):
        return
    drawn = torch.tensor(completion.token_ids, device=ids.device)
    if off := (~named(ids, sizes, drawn)).nonzero().flatten().tolist():
        raise EngineError(
            f"{name}: token {start + off[0]} is {completion.token_ids[off[0]]}, and the engine says that it was drawn "
            f"from {int(sizes[off[0]])} others: its sampling mask is not that of its tokens"
        )


def _cut(completion: Completion, room: int) -> Completion:
    """At most `room` tokens of a completion; each token's distribution does not depend on those after it."""
    tokens = completion.token_ids
    reported = {name: getattr(completion, field) for field, name in _REPORTED.items()}
    for name, value in reported.items():
        if value is not None and len(value) != len(tokens):
            raise EngineError(
                f"the engine gave {len(value)} {name} for {len(tokens)} tokens: which belongs to which is not known, "
                "so nothing can be trained on them"
            )
    if len(tokens) <= room:
        return completion
    kept: dict[str, Any] = {f: value[:room] for f in _REPORTED if (value := getattr(completion, f)) is not None}
    if completion.support_ids is not None and completion.support_sizes is not None:
        kept["support_ids"], _ = first_rows(completion.support_ids, completion.support_sizes, room)
    return replace(completion, token_ids=tokens[:room], finish_reason="length", **kept)


def _extended(episode: Episode, piece: Completion) -> Episode:
    """The episode with a piece sampled by the policy; what was read before keeps the experts of that time."""
    count, turn, experts = len(piece.token_ids), episode.turn, episode.experts
    if piece.experts is not None:
        read = piece.experts[: len(episode.prompt_ids) + len(episode.token_ids) + count - 1].to("cpu", torch.int16)
        experts = read if experts is None else torch.cat([experts, read[len(experts) :]])
    return replace(
        episode,
        token_ids=episode.token_ids + piece.token_ids,
        sampled=episode.sampled + (True,) * count,
        versions=episode.versions + (piece.policy_version,) * count,
        turn_ids=episode.turn_ids + (turn,) * count,
        experts=experts,
        **{field: _joined(getattr(episode, field), getattr(piece, field)) for field in _KEPT},
    )


def _spoken(episode: Episode, answer: tuple[int, ...], version: int) -> Episode:
    """The episode with what the environment said; it belongs to the turn that it answers."""
    turn, count = episode.turn, len(answer)
    return replace(
        episode,
        token_ids=episode.token_ids + answer,
        sampled=episode.sampled + (False,) * count,
        versions=episode.versions + (version,) * count,
        turn_ids=episode.turn_ids + (turn,) * count,
    )


def _joined(before: Tensor | None, piece: Tensor | None) -> Any:
    if piece is None:
        return None
    piece = piece.to("cpu", torch.float32 if piece.is_floating_point() else torch.int32)
    return piece if before is None else torch.cat([before, piece])
