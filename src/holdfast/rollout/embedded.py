"""The embedded engine: another program state than the trainer, in the same process.

Its copy of the policy has its own numerics (`precision`) and is `lag` updates old, so its rollouts are off-policy the
way a real engine's are, and it reports exactly what it sampled with.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from holdfast.core.entropy import token_uniforms
from holdfast.errors import ConfigError, EngineError
from holdfast.rollout.engine import Completion, Sampling, sampling_logprobs
from holdfast.rollout.quantize import engine_copy, load_weights

COMPACT_BELOW = 0.8
"""Finished rows leave the batch when less than this share is still running: each compaction copies the cache."""


class EmbeddedEngine:
    """An `Engine` that samples from a quantised, delayed copy of a Hugging Face causal language model."""

    def __init__(
        self, model: Any, *, precision: str = "float32", lag: int = 0, eos_token_id: int, pad_token_id: int
    ) -> None:
        """Copy `model` as version 0.

        Raises:
            ConfigError: unknown precision, negative lag.
        """
        if lag < 0:
            raise ConfigError(f"engine.lag = {lag}: must be at least 0")
        self.precision, self.lag = precision, lag
        self.eos_token_id, self.pad_token_id = eos_token_id, pad_token_id
        self._model: Any = engine_copy(model, precision)
        # The newest weights last; `generate` uses the first.
        self._snapshots: deque[tuple[int, dict[str, Tensor]]] = deque(maxlen=lag + 1)
        self._snapshots.append((0, _weights(model)))

    @property
    def policy_version(self) -> int:
        """The version of the weights in use."""
        return self._snapshots[0][0]

    def sync(self, model: torch.nn.Module, version: int) -> None:
        """Queue the weights of `model`; the copy in use becomes the one `lag` syncs back (or the first there was)."""
        before = self.policy_version
        self._snapshots.append((version, _weights(model)))
        if self.policy_version != before:
            load_weights(self._model, self._snapshots[0][1])

    def close(self) -> None:
        """Drop the copy and the snapshots."""
        self._model = None
        self._snapshots.clear()

    def state_dict(self) -> dict[str, Any]:
        """The queued weights with their versions."""
        return {"snapshots": list(self._snapshots)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue with the queued weights of `state_dict`."""
        self._snapshots.clear()
        self._snapshots.extend((int(version), weights) for version, weights in state["snapshots"])
        load_weights(self._model, self._snapshots[0][1])

    @torch.inference_mode()
    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        *,
        seed: int,
        sequence_ids: Sequence[int],
        return_distributions: bool = False,
    ) -> list[Completion]:
        """One response per prompt.

        Prompts that occur several times are read once. Every draw depends on (seed, sequence id, position) only, so
        batching changes a response only through the rounding of the model's own sums.

        Raises:
            EngineError: the engine is closed, there are empty prompts, or logits are not finite.
        """
        if self._model is None:
            raise EngineError("the engine is closed")
        if len(prompts) != len(sequence_ids):
            raise EngineError(f"{len(prompts)} prompts but {len(sequence_ids)} sequence ids")
        if not all(prompts):
            raise EngineError("a prompt is empty: give it at least a beginning-of-sequence token")
        if not prompts:
            return []
        record = _Record(len(prompts), sampling.max_tokens, return_distributions)
        state = self._prefill(prompts, sampling.max_tokens)
        ids = torch.tensor(list(sequence_ids), dtype=torch.long)
        uniforms = token_uniforms(seed, ids, torch.ones(len(prompts), sampling.max_tokens, dtype=torch.bool))
        for position in range(sampling.max_tokens):
            logprobs = sampling_logprobs(state.logits, sampling)
            if not bool(torch.isfinite(logprobs.amax(dim=-1)).all()):
                raise EngineError("the engine's logits are not finite: have its weights diverged?")
            tokens = _draw(logprobs, uniforms[state.rows, position])
            record.add(state.rows, position, tokens, logprobs)
            running = tokens != self.eos_token_id
            if position + 1 == sampling.max_tokens or not bool(running.any()):
                break
            self._advance(state, tokens, running)
        return record.completions(self.eos_token_id, self.policy_version)

    def _prefill(self, prompts: Sequence[Sequence[int]], room: int) -> _State:
        """Read each distinct prompt once, then give every row its own cache."""
        from holdfast.rollout.cache import roomy_cache

        distinct = {tuple(prompt): index for index, prompt in enumerate(dict.fromkeys(map(tuple, prompts)))}
        longest = max(map(len, distinct))
        tokens = torch.full((len(distinct), longest), self.pad_token_id)
        mask = torch.zeros(len(distinct), longest, dtype=torch.long)
        for prompt, row in distinct.items():
            tokens[row, longest - len(prompt) :] = torch.tensor(prompt)
            mask[row, longest - len(prompt) :] = 1
        ragged = not bool(mask.all())
        positions = (mask.cumsum(dim=-1) - 1).clamp(min=0)
        cache = roomy_cache(self._model, room)
        output = self._model(
            input_ids=tokens,
            attention_mask=mask if ragged else None,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        rows = torch.tensor([distinct[tuple(prompt)] for prompt in prompts])
        cache.batch_select_indices(rows)
        return _State(
            cache=cache,
            logits=output.logits[:, -1].float()[rows],
            rows=torch.arange(len(prompts)),
            mask=mask[rows] if ragged else None,
            positions=positions[rows, -1],
        )

    def _advance(self, state: _State, tokens: Tensor, running: Tensor) -> None:
        """Feed the drawn tokens; rows that have ended leave once enough of them have."""
        live = int(running.sum())
        if live < len(running) * COMPACT_BELOW or live == len(running):
            if live < len(running):
                state.keep(running.nonzero().squeeze(1))
                tokens = tokens[running]
            ended = None
        else:
            ended = ~running
        state.positions = state.positions + 1
        if state.mask is not None:
            state.mask = torch.cat([state.mask, torch.ones_like(state.mask[:, :1])], dim=1)
        output = self._model(
            input_ids=tokens[:, None],
            attention_mask=state.mask,
            position_ids=state.positions[:, None],
            past_key_values=state.cache,
            use_cache=True,
        )
        state.logits = output.logits[:, -1].float()
        if ended is not None:
            # A row that has ended but not left draws the end token again: it stays ended, and is never recorded.
            state.logits[ended] = -1e9
            state.logits[ended, self.eos_token_id] = 0.0


class _State:
    """The rows still in the batch."""

    def __init__(self, cache: Any, logits: Tensor, rows: Tensor, mask: Tensor | None, positions: Tensor) -> None:
        self.cache, self.logits, self.rows, self.mask, self.positions = cache, logits, rows, mask, positions

    def keep(self, index: Tensor) -> None:
        """Drop all other rows."""
        self.cache.batch_select_indices(index)
        self.rows, self.positions = self.rows[index], self.positions[index]
        self.mask = None if self.mask is None else self.mask[index]


class _Record:
    """What has been drawn so far, for all rows."""

    def __init__(self, rows: int, longest: int, distributions: bool) -> None:
        self.tokens = torch.full((rows, longest), -1, dtype=torch.long)
        self.logprobs = torch.zeros(rows, longest)
        self.distributions: list[tuple[Tensor, Tensor]] | None = [] if distributions else None

    def add(self, rows: Tensor, position: int, tokens: Tensor, logprobs: Tensor) -> None:
        self.tokens[rows, position] = tokens
        self.logprobs[rows, position] = logprobs.gather(1, tokens[:, None]).squeeze(1)
        if self.distributions is not None:
            self.distributions.append((rows, logprobs))

    def completions(self, eos_token_id: int, version: int) -> list[Completion]:
        ended = self.tokens == eos_token_id
        drawn = (self.tokens >= 0).sum(dim=1)
        lengths = torch.where(ended.any(dim=1), ended.long().argmax(dim=1) + 1, drawn)
        stopped = ended.any(dim=1)
        dense = self._dense() if self.distributions is not None else None
        return [
            Completion(
                token_ids=tuple(self.tokens[row, :length].tolist()),
                logprobs=self.logprobs[row, :length].clone(),
                finish_reason="stop" if stopped[row] else "length",
                policy_version=version,
                distributions=None if dense is None else dense[row, :length],
            )
            for row, length in enumerate(lengths.tolist())
        ]

    def _dense(self) -> Tensor:
        assert self.distributions is not None
        width = self.distributions[0][1].shape[1]
        dense = torch.empty(len(self.tokens), len(self.distributions), width)
        for position, (rows, logprobs) in enumerate(self.distributions):
            dense[rows, position] = logprobs
        return dense


def _draw(logprobs: Tensor, uniforms: Tensor) -> Tensor:
    """Inverse-CDF draw in float64: the first token whose cumulated probability exceeds u, never one of probability 0."""
    cumulated = logprobs.double().exp().cumsum(dim=-1)
    threshold = (uniforms * cumulated[:, -1])[:, None]
    return torch.searchsorted(cumulated, threshold, right=True).squeeze(1).clamp(max=logprobs.shape[-1] - 1)


def _weights(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
