"""The trainer's log-probabilities for logs that lack them, from its weights as a Hugging Face folder.

And, where the log has the engine's likeliest tokens with their ids, what these prove of KL and TV.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from holdfast.audit.read.columns import Chunk, Column, Likeliest
from holdfast.audit.read.loaders.loader import ROLLOUT_ONLY
from holdfast.audit.read.reading import Reading
from holdfast.core.divergences import top_k
from holdfast.errors import ConfigError, DataError
from holdfast.rollout.engine import Sampling, sampling_logprobs
from holdfast.rollout.models import whole_model
from holdfast.types import BOUNDS, Rollout

BATCH_TOKENS = 8192
"""Prompt and response tokens, padding included, of one forward pass; the longest sequence may have more."""
LOGIT_ROWS = 256
"""Rows of [V] logits that are normalised at a time."""
_UNKNOWN = "the log does not say the {}: log-probabilities are computed at {}"


@dataclass(frozen=True)
class _Asked:
    """A rollout to be scored, with what the engine reported of its likeliest tokens."""

    rollout: Rollout
    likeliest: Likeliest | None


@dataclass(frozen=True)
class Scorer:
    """A causal language model that scores sampled tokens; `name` is what messages call it.

    `head_is_linear`: logits are what the head makes of the last hidden states and nothing else (no soft cap, no
    scale), so that they need not exist for all tokens at once.
    """

    model: Any
    name: str
    head_is_linear: bool

    @staticmethod
    def load(folder: Path, dtype: torch.dtype = torch.float32) -> Scorer:
        """The model of a folder; raises ConfigError where there is none that can be loaded."""
        from transformers import AutoModelForCausalLM

        if not (folder / "config.json").is_file():
            raise ConfigError(
                f"--model {folder}: no Hugging Face model there (no config.json): save_pretrained writes it"
            )
        try:
            where = f"--model {folder}"
            model: Any = whole_model(AutoModelForCausalLM, folder, dtype, where, local_files_only=True)
        except KeyError as error:
            raise ConfigError(f"--model {folder} could not be loaded as a causal model: {error}") from error
        device = "cuda" if torch.cuda.is_available() else "cpu"
        model = model.to(device)
        return Scorer(model, str(folder), _head_is_linear(model))

    @property
    def vocabulary(self) -> int:
        """Token ids go from 0 to this, exclusive."""
        return int(self.model.get_input_embeddings().num_embeddings)

    def score(self, chunk: Chunk) -> Chunk:
        """The chunk with this model's scores in place of the log's `trainer_logprobs`."""
        tokens, present = dict(chunk.tokens), dict(chunk.present)
        tokens.pop("trainer_logprobs", None)
        present.pop("trainer_logprobs", None)
        bare = dataclasses.replace(chunk, tokens=tokens, present=present, likeliest=())
        return self._filled(bare, list(range(len(chunk))), None)

    def fill(self, chunks: Iterable[Chunk], reading: Reading) -> Iterator[Chunk]:
        """The same chunks with `trainer_logprobs` where they were missing; what was there stays.

        log q(token | before) with the model's logits at the rollout's temperature and on its support (min-p, top-k,
        top-p of the model's own distribution; a token outside it is scored without truncation), 1 and everything where
        the log does not say. Where the chunk has the engine's likeliest tokens and the log tells of no truncation,
        bounds of KL and TV (`holdfast.core.divergences.top_k`) with q at the same tokens. Tokens that are not the
        policy's own are NaN. Raises DataError for token ids that the model does not have and for a rollout without
        prompt.
        """
        for chunk in chunks:
            present = chunk.present.get("trainer_logprobs", np.zeros(len(chunk), bool))
            missing = [int(i) for i in np.flatnonzero(~present)]
            yield self._filled(chunk, missing, reading) if missing else chunk

    def _filled(self, chunk: Chunk, missing: Sequence[int], reading: Reading | None) -> Chunk:
        asked = {i: _Asked(chunk.rollout(i), chunk.likeliest[i] if chunk.likeliest else None) for i in missing}
        for one in asked.values():
            self._check(one)
        if reading is not None:
            self._note([one.rollout for one in asked.values()], reading)
            reading.withdraw(ROLLOUT_ONLY)
        found: dict[int, dict[str, Column]] = {i: {"trainer_logprobs": np.empty(0, np.float32)} for i in missing}
        for batch in _batches({i: one.rollout for i, one in asked.items()}):
            found |= zip(batch, self._scores([asked[i] for i in batch]), strict=True)
        tokens, present = dict(chunk.tokens), dict(chunk.present)
        for name in sorted({name for columns in found.values() for name in columns}):
            column = tokens.get(name, np.full(chunk.token_count, np.nan, np.float32)).copy()
            known = present.get(name, np.zeros(len(chunk), bool)).copy()
            for index, columns in found.items():
                if name in columns:
                    column[chunk.offsets[index] : chunk.offsets[index + 1]] = columns[name]
                    known[index] = True
            tokens[name], present[name] = column, known

        def keep(index: int) -> Callable[[], Rollout]:
            scores: dict[str, Any] = {name: tuple(column.tolist()) for name, column in found.get(index, {}).items()}
            promise = chunk.keep(index)
            return partial(_scored, promise, scores)

        return dataclasses.replace(
            chunk, tokens=tokens, present=present, rollout=lambda index: keep(index)(), keep=keep, likeliest=()
        )

    def _check(self, asked: _Asked) -> None:
        rollout = asked.rollout
        ids = [*rollout.prompt_ids, *rollout.response_ids]
        if asked.likeliest is not None:
            ids.append(int(asked.likeliest.top_ids.max()))
        if ids and not 0 <= min(ids) <= max(ids) < self.vocabulary:
            raise DataError(
                f"token id {min(ids) if min(ids) < 0 else max(ids)} is outside the vocabulary of {self.name} (0 to "
                f"{self.vocabulary - 1}): the log is of another model, or has no real token ids"
            )
        if not rollout.prompt_ids:
            raise DataError(
                "a rollout has no prompt token ids, so no model can score its response: log the prompt's ids "
                '(vLLM: "return_token_ids": true)'
            )

    def _note(self, rollouts: Iterable[Rollout], reading: Reading) -> None:
        if any(rollout.temperature is None for rollout in rollouts):
            reading.note(_UNKNOWN.format("sampling temperature", "temperature 1"))
        reading.note(
            f"trainer log-probabilities are those of {self.name} in {str(self.model.dtype).removeprefix('torch.')}, "
            "computed for this audit: they are the trainer's only if these are the weights that it had at that step"
        )

    @torch.no_grad()
    def _scores(self, asked: Sequence[_Asked]) -> list[dict[str, Column]]:
        """The columns of each response, one forward pass for all; right padding is never attended to."""
        sequences = [(*one.rollout.prompt_ids, *one.rollout.response_ids) for one in asked]
        longest = max(map(len, sequences))
        ids = torch.tensor([[*s, *[0] * (longest - len(s))] for s in sequences], device=self.model.device)
        mask = torch.tensor([[1] * len(s) + [0] * (longest - len(s)) for s in sequences], device=self.model.device)
        if self.head_is_linear:
            head = self.model.get_output_embeddings()
            hidden = self.model.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        else:
            head = torch.nn.Identity()
            hidden = self.model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        return [_of_response(hidden[row], head, one) for row, one in enumerate(asked)]


def _scored(promise: Callable[[], Rollout], scores: dict[str, Any]) -> Rollout:
    return dataclasses.replace(promise(), **scores)


def _of_response(hidden: Float[Tensor, "T _"], head: Callable[[Tensor], Tensor], asked: _Asked) -> dict[str, Column]:
    rollout = asked.rollout
    start, length = len(rollout.prompt_ids) - 1, len(rollout.response_ids)
    sampling, tokens = _sampling(rollout), torch.tensor(rollout.response_ids, device=hidden.device)
    # On a support of its own the model may exclude what the engine reports, and a divergence would be infinite.
    likeliest = None if sampling.truncates else asked.likeliest
    out = {name: torch.empty(length) for name in ("trainer_logprobs", *(BOUNDS if likeliest else ()))}
    for first in range(0, length, LOGIT_ROWS):
        rows = slice(first, min(first + LOGIT_ROWS, length))
        logits, chosen = head(hidden[start + rows.start : start + rows.stop]), tokens[rows, None]
        logprobs = sampling_logprobs(logits, sampling)
        scores = logprobs.gather(-1, chosen)
        if sampling.truncates:
            everything = sampling_logprobs(logits, Sampling(temperature=sampling.temperature)).gather(-1, chosen)
            scores = torch.where(scores.isfinite(), scores, everything)
        out["trainer_logprobs"][rows] = scores[:, 0].float().cpu()
        if likeliest:
            top_ids = torch.from_numpy(likeliest.top_ids[rows].astype(np.int64)).to(hidden.device)
            found = top_k(logprobs.gather(-1, top_ids).cpu(), torch.from_numpy(likeliest.top_logprobs[rows]))
            for name in BOUNDS:
                out[name][rows] = getattr(found, name).value
    if rollout.response_mask is not None:
        for column in out.values():
            column[~torch.tensor(rollout.response_mask, dtype=torch.bool)] = torch.nan
    return {name: column.numpy() for name, column in out.items()}


@torch.no_grad()
def _head_is_linear(model: Any) -> bool:
    head, ids = model.get_output_embeddings(), torch.arange(4, device=model.device)[None]
    if head is None:
        return False
    hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
    return torch.allclose(head(hidden), model(input_ids=ids, use_cache=False).logits, atol=1e-5, rtol=1e-4)


def _sampling(rollout: Rollout) -> Sampling:
    given = {name: getattr(rollout, name) for name in ("temperature", "top_p", "top_k", "min_p")}
    if given["top_k"] is not None:
        given["top_k"] = max(0, given["top_k"])  # engines write -1 for no limit
    return Sampling(**{name: value for name, value in given.items() if value is not None})


def _batches(rollouts: dict[int, Rollout]) -> Iterator[list[int]]:
    """Indices of rollouts of similar length, together at most BATCH_TOKENS with their padding."""
    lengths = {i: len(r.prompt_ids) + len(r.response_ids) for i, r in rollouts.items() if r.response_ids}
    batch: list[int] = []
    for index in sorted(lengths, key=lambda i: lengths[i]):
        if batch and (len(batch) + 1) * lengths[index] > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
