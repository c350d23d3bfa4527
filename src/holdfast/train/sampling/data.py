"""Prompts and rollouts: problems become token ids, completions become tensors, responses become rewards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from holdfast.errors import ConfigError, DataError
from holdfast.tasks.base import Environment, Problem, Task
from holdfast.tasks.records import Records
from holdfast.train.policy.forward import ENGINE_FIELDS, Sequences
from holdfast.train.sampling.episodes import Episode
from holdfast.train.sampling.epochs import rows_in_epochs


@dataclass(frozen=True)
class Prompts:
    """Problems with their token ids, in the same order."""

    problems: tuple[Problem, ...]
    token_ids: tuple[tuple[int, ...], ...]

    def __len__(self) -> int:
        return len(self.problems)

    def repeat(self, times: int) -> Prompts:
        """Each problem `times` times in a row: the groups of a step."""
        return Prompts(
            tuple(problem for problem in self.problems for _ in range(times)),
            tuple(ids for ids in self.token_ids for _ in range(times)),
        )


@dataclass(frozen=True)
class Rollouts:
    """One step's sampled responses with everything known before the trainer looks at them.

    `texts` are whole responses, an environment's words included. `rewards`, `group_ids` and `sequence_ids` are [B];
    `rollout_logprobs` [B, T], zero outside the mask; `turn_ids` and `versions` [B, T], zero outside the response.
    `experts_changed` [B, T] counts the layers of a mixture in which the engine chose other experts, where it tells.
    """

    prompts: Prompts
    episodes: tuple[Episode, ...]
    texts: tuple[str, ...]
    sequences: Sequences
    rollout_logprobs: Float[Tensor, "B T"]
    rewards: Float[Tensor, " B"]
    group_ids: Int[Tensor, " B"]
    sequence_ids: Int[Tensor, " B"]
    turn_ids: Int[Tensor, "B T"]
    versions: Int[Tensor, "B T"]
    experts_changed: Int[Tensor, "B T"] | None = None

    @property
    def tokens(self) -> int:
        """Sampled response tokens."""
        return int(self.sequences.response_mask.sum())

    def select(self, rows: Int[Tensor, " b"]) -> Rollouts:
        """These rows, in this order, under the ids that they had."""
        chosen = rows.tolist()
        return Rollouts(
            prompts=Prompts(
                tuple(self.prompts.problems[i] for i in chosen), tuple(self.prompts.token_ids[i] for i in chosen)
            ),
            episodes=tuple(self.episodes[i] for i in chosen),
            texts=tuple(self.texts[i] for i in chosen),
            sequences=self.sequences.select(rows),
            rollout_logprobs=self.rollout_logprobs[rows],
            rewards=self.rewards[rows],
            group_ids=self.group_ids[rows],
            sequence_ids=self.sequence_ids[rows],
            turn_ids=self.turn_ids[rows],
            versions=self.versions[rows],
            experts_changed=None if self.experts_changed is None else self.experts_changed[rows],
        )


class PromptSource:
    """Draws problems of a task by seed and turns them into token ids that leave room for the response."""

    def __init__(self, task: Task, tokenizer: Any, *, max_tokens: int, chat: bool) -> None:
        self.task = task
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens
        self.chat = chat

    def draw(self, seed: int, count: int, split: str) -> Prompts:
        """`count` problems whose prompts fit; longer ones are replaced by further draws.

        Raises:
            DataError: no prompt fits.
        """
        kept: list[tuple[Problem, tuple[int, ...]]] = []
        shortest = None
        for attempt in range(8):
            for problem in self.task.problems(seed + attempt * 104_729, count, split):
                ids = self.encode(problem)
                shortest = len(ids) if shortest is None else min(shortest, len(ids))
                if len(ids) <= self.max_tokens:
                    kept.append((problem, ids))
            if len(kept) >= count:
                break
        if not kept:
            raise self._none_fits(shortest)
        chosen = [kept[i % len(kept)] for i in range(count)]
        return Prompts(tuple(problem for problem, _ in chosen), tuple(ids for _, ids in chosen))

    def visit(self, seed: int, first: int, count: int) -> Prompts:
        """Problems number `first` to `first + count - 1` of the table, gone through again and again, shuffled anew.

        Raises:
            DataError: no prompt fits.
        """
        chosen = [self.table[row] for row in rows_in_epochs(seed, len(self.table), first, count)]
        return Prompts(tuple(problem for problem, _ in chosen), tuple(ids for _, ids in chosen))

    @cached_property
    def table(self) -> list[tuple[Problem, tuple[int, ...]]]:
        """The training problems of a table whose prompts fit, with their token ids.

        Raises:
            ConfigError: the task has no table.
            DataError: no prompt fits.
        """
        if not isinstance(self.task, Records):
            raise ConfigError(
                f"batch.without_replacement: task {self.task.name!r} makes up its problems and has no table to go "
                "through; leave it out"
            )
        encoded = [(problem, self.encode(problem)) for problem in self.task.pool("train")]
        kept = [(problem, ids) for problem, ids in encoded if len(ids) <= self.max_tokens]
        if not kept:
            raise self._none_fits(min((len(ids) for _, ids in encoded), default=None))
        return kept

    def _none_fits(self, shortest: int | None) -> DataError:
        return DataError(
            f"no prompt of task {self.task.name!r} fits: the shortest has {shortest} tokens, at most "
            f"{self.max_tokens} are allowed; raise batch.max_prompt_tokens, lower sampling.max_tokens or take a "
            "model with a longer context"
        )

    def shown(self, problem: Problem) -> str | list[dict[str, str]]:
        """A prompt as the model is shown it: text, or chat messages.

        Raises:
            ConfigError: it is a conversation, and `model.chat` is false.
        """
        if self.chat:
            talk = problem.messages or (("user", problem.prompt),)
            return [{"role": role, "content": text} for role, text in talk]
        if problem.messages is not None:
            raise ConfigError(
                "model.chat = false, and the prompts are chat messages (or task.system is set): set model.chat = true"
            )
        return problem.prompt

    def encode(self, problem: Problem) -> tuple[int, ...]:
        """Token ids of a prompt, with what the tokenizer puts in front."""
        return self.encode_shown(self.shown(problem))

    def encode_shown(self, prompt: str | list[dict[str, str]]) -> tuple[int, ...]:
        """Token ids of a prompt that is text or chat messages."""
        if not isinstance(prompt, str):
            try:
                text = self.tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)
            except Exception as error:  # templates raise what they like
                raise ConfigError(
                    f"model.chat = true, and the tokenizer's chat template cannot be used ({error}): set "
                    "model.chat = false, or take a model that has one"
                ) from error
            return tuple(self.tokenizer.encode(text, add_special_tokens=False))
        ids = self.tokenizer.encode(prompt)
        return tuple(ids[:-1] if ids and ids[-1] == self.tokenizer.eos_token_id else ids)

    def encode_solution(self, problem: Problem, text: str) -> tuple[tuple[int, ...], tuple[bool, ...]]:
        """Token ids of a solution, each turn closed by the end-of-sequence token, and which are the policy's own.

        In a conversation every line is a turn, and the environment answers in between.
        """
        ids: list[int] = []
        sampled: list[bool] = []
        for turn in text.split("\n") if isinstance(self.task, Environment) else [text]:
            own = (*self.tokenizer.encode(turn, add_special_tokens=False), self.tokenizer.eos_token_id)
            reply = (self.answer(problem, own) if isinstance(self.task, Environment) else None) or ()
            ids += [*own, *reply]
            sampled += [*(True for _ in own), *(False for _ in reply)]
        return tuple(ids), tuple(sampled)

    def answer(self, problem: Problem, turn: Sequence[int]) -> tuple[int, ...] | None:
        """What the task's environment says to a turn, as token ids in the model's chat format; None ends it.

        Raises:
            DataError: the environment's answer has no token.
        """
        environment = self.task
        assert isinstance(environment, Environment)
        text = environment.reply(problem, self.decode(turn))
        if text is None:
            return None
        ids = self.tokenizer.encode(text, add_special_tokens=False)[: environment.reply_tokens]
        if not ids:
            raise DataError(
                f"task {self.task.name!r} answered with nothing to the turn {self.decode(turn)!r}; return None to end "
                "the conversation, or at least one token"
            )
        before, after = self.frame
        return (*before, *ids, *after)

    @cached_property
    def frame(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Token ids around an environment's answer: nothing, or what the chat template puts there.

        Raises:
            ConfigError: the chat template has no role for tools.
        """
        if not self.chat:
            return (), ()
        mark = "HOLDFAST"
        talk = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "x"}]
        talk.append({"role": "tool", "content": mark})
        try:
            text = self.tokenizer.apply_chat_template(talk, add_generation_prompt=True, tokenize=False)
        except Exception as error:  # templates raise what they like
            raise ConfigError(f"the tokenizer's chat template cannot show a tool's answer: {error}") from error
        before, found, after = text.partition(mark)
        end = before.rfind(self.tokenizer.eos_token)
        if not found or end < 0:
            raise ConfigError(
                "the tokenizer's chat template leaves out a tool's answer or does not end a turn with the "
                f"end-of-sequence token {self.tokenizer.eos_token!r}: conversations cannot be continued with it"
            )
        before = before[end + len(self.tokenizer.eos_token) :]
        first, last = (self.tokenizer.encode(part, add_special_tokens=False) for part in (before, after))
        return tuple(first), tuple(last)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of a response."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=True)


def assemble(source: PromptSource, episodes: Sequence[Episode], rewards: Sequence[float], group: int) -> Rollouts:
    """Tensors of one step's scored episodes."""
    prompts = Prompts(tuple(e.problem for e in episodes), tuple(e.prompt_ids for e in episodes))
    responses = [episode.token_ids for episode in episodes]
    sequences = pack(
        prompts.token_ids, responses, source.tokenizer.pad_token_id, [episode.sampled for episode in episodes]
    )
    mask = sequences.response_mask
    for name in (*ENGINE_FIELDS, "experts"):
        known = [value for e in episodes if (value := getattr(e, name)) is not None]
        if len(known) == len(episodes):
            sequences = replace(sequences, **{name: tuple(known)})
    logprobs = torch.zeros(mask.shape)
    logprobs[mask] = torch.cat([e.logprobs for e in episodes if e.logprobs is not None])
    return Rollouts(
        prompts=prompts,
        episodes=tuple(episodes),
        texts=tuple(source.decode(ids) for ids in responses),
        sequences=sequences,
        rollout_logprobs=logprobs,
        rewards=torch.tensor(rewards, dtype=torch.float32),
        group_ids=torch.arange(len(prompts)) // group,
        sequence_ids=torch.tensor([episode.sequence_id for episode in episodes]),
        turn_ids=_padded([episode.turn_ids for episode in episodes], mask.shape[1]),
        versions=_padded([episode.versions for episode in episodes], mask.shape[1]),
    )


def pack(
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    pad: int,
    sampled: Sequence[Sequence[bool]] | None = None,
) -> Sequences:
    """Right-padded token ids and the response mask: the response tokens, or those of them that are `sampled`."""
    longest = max(len(p) + len(r) for p, r in zip(prompts, responses, strict=True))
    rows = [[*p, *r, *[pad] * (longest - len(p) - len(r))] for p, r in zip(prompts, responses, strict=True)]
    lengths = torch.tensor([len(r) for r in responses])
    width = max(1, int(lengths.max()))
    mask = torch.arange(width).unsqueeze(0) < lengths.unsqueeze(1)
    return Sequences(
        input_ids=torch.tensor(rows, dtype=torch.long),
        prompt_lengths=torch.tensor([len(p) for p in prompts]),
        response_lengths=lengths,
        response_mask=mask if sampled is None else mask & (_padded(sampled, width) > 0),
    )


def _padded(rows: Sequence[Sequence[int]], width: int) -> Int[Tensor, "B T"]:
    return torch.tensor([[*map(int, row), *[0] * (width - len(row))] for row in rows], dtype=torch.long)
