"""What a framework's loss was trained on, as rollouts for the audit: for hooks that see token ids.

A hook is called with micro-batches, in every process; each process writes files of its own, a step's rows in as few as
`ROWS` allow, and the last ones when the process ends.
"""

from __future__ import annotations

import atexit
import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from holdfast.errors import ConfigError
from holdfast.rollout.store import write_rollouts
from holdfast.types import Batch, LossOutput, Rollout

ROWS = 256
"""Sequences that wait for their file; what a killed process had not written yet is lost."""


@dataclass(frozen=True)
class Sequences:
    """Whole sequences of a micro-batch: `tokens` [B, T + 1], of which the last T are scored, and which are `real`.

    Log-probabilities of `trainer` [B, T] are those before the step's updates, where the framework has them.
    """

    tokens: Int[Tensor, "B T1"]
    real: Bool[Tensor, "B T1"]
    trainer: Float[Tensor, "B T"]


class Records:
    """Files of rollouts in a folder, of every `every`-th step; steps are given, or counted by `counted`."""

    def __init__(self, folder: Path | str, source: str, every: int = 1) -> None:
        """Nothing is written, nor the folder made, before there is something to write.

        Raises:
            ConfigError: an `every` that is no positive number.
        """
        if every < 1:
            raise ConfigError(f"records of every {every}-th step: give a whole number from 1 on")
        self.folder, self.source, self.every = Path(folder), source, every
        self.step, self._part, self._waiting, self._last = 0, 0, list[Rollout](), None
        atexit.register(self.flush)

    def counted(self, counts: Any) -> int:
        """The number of the optimiser step whose counts these are: the next one where they are another object."""
        if counts is not self._last:
            self._last = counts
            return self.step + 1
        return self.step

    def add(self, step: int, sequences: Sequences, batch: Batch, out: LossOutput) -> None:
        """A micro-batch of this step; one of a new step closes the files of the step before."""
        if step != self.step:
            self.flush()
            self.step, self._part = step, 0
        if step % self.every:
            return
        self._waiting += rollouts_of(sequences, batch, out, step, self.source)
        if len(self._waiting) >= ROWS:
            self.flush()

    def flush(self) -> None:
        """Write what is waiting."""
        if not self._waiting:
            return
        rows, self._waiting, self._part = self._waiting, [], self._part + 1
        self.folder.mkdir(parents=True, exist_ok=True)
        name = f"step_{self.step:06d}_rank_{_rank():04d}_part_{self._part:03d}.parquet"
        write_rollouts(self.folder / name, rows)


def rollouts_of(sequences: Sequences, batch: Batch, out: LossOutput, step: int, source: str) -> Iterator[Rollout]:
    """One per sequence that is trained on: the response goes from its first trained token to its last.

    Sequences of a step with the same prompt tokens are a group, whose number is a hash of them.
    """
    tokens, real = sequences.tokens.cpu(), sequences.real.bool().cpu()
    mask = batch.response_mask.cpu()
    values = {
        "rollout_logprobs": batch.rollout_logprobs,
        "trainer_logprobs": sequences.trainer,
        "response_mask": mask,
        "advantages": batch.advantages,
        "trust_mask": out.trust_mask,
    }
    known = {name: value.detach().cpu() for name, value in values.items() if value is not None}
    for row, trained in enumerate(mask):
        places = trained.nonzero().flatten().tolist()
        if not places:
            continue
        first, end = places[0], places[-1] + 1
        prompt = tuple(tokens[row, : first + 1][real[row, : first + 1]].tolist())
        cut: dict[str, Any] = {name: tuple(value[row, first:end].tolist()) for name, value in known.items()}
        yield Rollout(
            prompt_ids=prompt,
            response_ids=tuple(tokens[row, first + 1 : end + 1].tolist()),
            step=step,
            group_id=group_of(prompt),
            extra={"source": source},
            **cut,
        )


def group_of(prompt: Iterable[int]) -> int:
    """A number of a prompt, 63 bits of a hash of its tokens."""
    digest = hashlib.blake2b(" ".join(map(str, prompt)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def _rank() -> int:
    return (
        torch.distributed.get_rank() if torch.distributed.is_available() and torch.distributed.is_initialized() else 0
    )
