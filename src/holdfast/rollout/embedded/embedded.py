"""The embedded engine: another program state than the trainer, in the same process.

Its copy of the policy has its own numerics (`precision`) and is `lag` updates old, so its rollouts are off-policy the
way a real engine's are, and it reports exactly what it sampled with.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from holdfast.core.entropy import token_uniforms
from holdfast.errors import ConfigError, EngineError
from holdfast.rollout.embedded.cache import GIB, block_rows
from holdfast.rollout.embedded.decoder import Decoder, Decoding, HubDecoder
from holdfast.rollout.embedded.drawing import Drawn, next_tokens
from holdfast.rollout.embedded.quantize import Numerics
from holdfast.rollout.engine import Completion, Sampling
from holdfast.rollout.models import cache_bytes, copied
from holdfast.rollout.support import first_rows, support_of

COMPACT_BELOW = 0.8
"""Finished rows leave the batch when less than this share is still running: each compaction copies the cache."""


class EmbeddedEngine:
    """Samples from a quantised, delayed copy of a Hugging Face causal language model (holdfast.rollout.engine.Engine).

    Llama, Qwen2 and Qwen3 models run on a decoder of our own, all others (or `fused=False`) through their own forward.
    Without a `precision` there is no copy at all: the engine runs `model` itself, as it is at the time of each call.
    """

    def __init__(
        self,
        model: Any,
        *,
        precision: str | None = "float32",
        lag: int = 0,
        eos_token_id: int,
        pad_token_id: int,
        fused: bool = True,
        compile: bool = False,
        cache_gib: float | None = None,
    ) -> None:
        """Copy `model` as version 0. With `compile` the steps of our own decoder are compiled, once per batch size.

        `cache_gib` bounds keys and values: calls with more rows are decoded in blocks. None: all rows at once.

        Raises:
            ConfigError: unknown precision, negative lag, a lag without a copy, a model that our own decoder does not
                run with `compile`.
        """
        from holdfast.rollout.embedded.fused import FusedDecoder, supports

        if lag < 0:
            raise ConfigError(f"engine.lag = {lag}: must be at least 0; nearest valid value: 0")
        if lag and precision is None:
            raise ConfigError(f"engine.lag = {lag} without a copy of the weights: set a precision, or lag = 0")
        self.precision, self.lag, self.cache_gib = precision, lag, cache_gib
        self.eos_token_id, self.pad_token_id = eos_token_id, pad_token_id
        self._device = next(model.parameters()).device
        fits = fused and precision is not None and supports(model)
        if compile and not fits:
            raise ConfigError(
                f"engine.compile: {type(model).__name__} runs through its own forward pass, which is not compiled; "
                "leave it out (Llama, Qwen2 and Qwen3 models with full attention have it)"
            )
        numerics = None if precision is None else Numerics.of(precision)
        if compile and numerics is not None and numerics.mixed:
            raise ConfigError(
                f"engine.compile with engine.precision = {precision!r}: compiled steps have one precision; leave one "
                "of the two out"
            )
        kept = model.dtype if numerics is None else numerics.cache
        self._token_bytes = cache_bytes(model.config, kept)
        self._decoder: Decoder | None = (
            FusedDecoder(model, precision, compile=compile)
            if fits and precision is not None
            else HubDecoder(model, precision, pad_token_id)
        )
        # The newest weights last; `generate` uses the first.
        self._snapshots: deque[tuple[int, dict[str, Tensor]]] = deque(maxlen=lag + 1)
        self._snapshots.append((0, _weights(model, precision)))
        self._decoder.load(self._snapshots[0][1])

    @property
    def policy_version(self) -> int:
        """The version of the weights in use."""
        return self._snapshots[0][0]

    @property
    def model(self) -> torch.nn.Module | None:
        """The copy in use, where it runs through its own forward pass; None on the decoder of our own."""
        return getattr(self._decoder, "model", None) if isinstance(self._decoder, HubDecoder) else None

    def sync(self, model: torch.nn.Module, version: int) -> None:
        """Queue the weights of `model`; the copy in use becomes the one `lag` syncs back (or the first there was)."""
        full = len(self._snapshots) == self.lag + 1
        if full:
            self._snapshots.popleft()  # before the next one is made; what is in use holds on to what it needs of it
        self._snapshots.append((version, _weights(model, self.precision)))
        if full:
            self._running().load(self._snapshots[0][1])

    def close(self) -> None:
        """Drop the copy and the snapshots."""
        self._decoder = None
        self._snapshots.clear()

    def state_dict(self) -> dict[str, Any]:
        """The queued weights with their versions."""
        return {"snapshots": list(self._snapshots)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue with the queued weights of `state_dict`."""
        snapshots = state["snapshots"]
        if not 1 <= len(snapshots) <= self.lag + 1:
            raise EngineError(
                f"the saved engine state holds {len(snapshots)} weight versions, engine.lag = {self.lag} needs 1 to "
                f"{self.lag + 1}: resume with the lag the run was started with"
            )
        self._snapshots.clear()
        self._snapshots.extend((int(version), weights) for version, weights in snapshots)
        self._running().load(self._snapshots[0][1])

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        *,
        seed: int,
        sequence_ids: Sequence[int],
        return_distributions: bool = False,
        return_top: int = 0,
        return_support: bool = False,
    ) -> list[Completion]:
        """One response per prompt.

        Prompts that occur several times are read once. Every draw depends on (seed, sequence id, position) only, so
        batches and blocks change a response only through the rounding of the model's own sums.

        Raises:
            EngineError: the engine is closed, a prompt is empty, one row does not fit into `cache_gib`, or logits are
                not finite.
        """
        self._running()
        if len(prompts) != len(sequence_ids):
            raise EngineError(f"{len(prompts)} prompts but {len(sequence_ids)} sequence ids: one id per prompt")
        if not all(map(len, prompts)):
            raise EngineError("a prompt is empty: give it at least a beginning-of-sequence token")
        if not prompts:
            return []
        size = self._rows_at_a_time(len(prompts), max(map(len, prompts)) + sampling.max_tokens)
        found: list[Completion] = []
        with _at_rest(self.model) if self.precision is None else nullcontext():
            for start in range(0, len(prompts), size):
                some = slice(start, start + size)
                reports = return_distributions, return_top, return_support
                found += self._block(prompts[some], sampling, seed, sequence_ids[some], reports)
        return found

    def _rows_at_a_time(self, rows: int, tokens: int) -> int:
        """Rows of a block: as many as have room for this many tokens each, in blocks of about the same size."""
        if self.cache_gib is None:
            return rows
        size = block_rows(rows, tokens * self._token_bytes, self.cache_gib)
        if not size:
            raise EngineError(
                f"one response of {tokens} tokens with its prompt takes {tokens * self._token_bytes / GIB:.3g} GiB of "
                f"keys and values, and {self.cache_gib:g} GiB are allowed: raise engine.cache_gib "
                "(evaluation.cache_gib in evaluations), or lower sampling.max_tokens or batch.max_prompt_tokens"
            )
        return size

    def _block(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        seed: int,
        sequence_ids: Sequence[int],
        reports: tuple[bool, int, bool],
    ) -> list[Completion]:
        """One response per prompt, all at once."""
        decoder = self._running()
        distinct = {prompt: index for index, prompt in enumerate(dict.fromkeys(map(tuple, prompts)))}
        owners = torch.tensor([distinct[tuple(prompt)] for prompt in prompts], device=self._device)
        owners, rows = owners.sort(stable=True)
        ids = torch.tensor(list(sequence_ids), device=self._device)
        record = _Record(len(prompts), sampling.max_tokens, self._device, *reports)
        # What is recorded must be usable in a graph, so its tensors are made outside.
        with torch.inference_mode():
            everywhere = torch.ones(len(prompts), sampling.max_tokens, dtype=torch.bool, device=self._device)
            uniforms = token_uniforms(seed, ids, everywhere)[rows].t().contiguous()
            batch, logits = decoder.start(list(distinct), owners, sampling.max_tokens)
            first = next_tokens(logits, uniforms[0], sampling)
            self._decode(batch, rows, first, uniforms[1:], sampling, record)
        return record.completions(self.eos_token_id, self.policy_version)

    def _decode(
        self, batch: Decoding, rows: Tensor, drawn: Drawn, uniforms: Tensor, sampling: Sampling, record: _Record
    ) -> None:
        """Draw until every row has ended; ended rows draw on unread until enough of them can leave together."""
        running = torch.ones_like(rows, dtype=torch.bool)
        record.add(rows, drawn)
        for position in range(len(uniforms)):
            tokens = drawn.tokens
            running = running & (tokens != self.eos_token_id)
            live = int(running.sum())
            if live == 0:
                return
            if live < COMPACT_BELOW * len(rows):
                kept = running.nonzero().squeeze(1)
                batch.keep(kept)
                rows, tokens, running, uniforms = rows[kept], tokens[kept], running[kept], uniforms[:, kept]
            drawn = batch.step(tokens, uniforms[position], sampling)
            record.add(rows, drawn)

    def _running(self) -> Decoder:
        if self._decoder is None:
            raise EngineError("the engine is closed: make a new one")
        return self._decoder


class _Record:
    """What has been drawn so far, for all rows."""

    def __init__(
        self, rows: int, longest: int, device: torch.device, distributions: bool, top: int, support: bool
    ) -> None:
        self.tokens = torch.full((rows, longest), -1, dtype=torch.long, device=device)
        self.logprobs = torch.zeros(rows, longest, device=device)
        self.distributions, self.top, self.support = distributions, top, support
        self.drawn: list[tuple[Tensor, list[Tensor], list[Tensor]]] = []
        self.wide: list[tuple[Tensor, dict[str, Tensor]]] = []
        self.supports: list[tuple[Tensor, Tensor, Tensor]] = []

    def add(self, rows: Tensor, drawn: Drawn) -> None:
        """Record one token per row."""
        if not self.drawn or self.drawn[-1][0] is not rows:
            self.drawn.append((rows, [], []))
        _, tokens, logprobs = self.drawn[-1]
        tokens.append(drawn.tokens)
        logprobs.append(drawn.logprobs)
        wide = {"distributions": drawn.distribution} if self.distributions else {}
        if self.top:
            top = drawn.distribution.topk(min(self.top, drawn.distribution.shape[1]))
            wide |= {"top_logprobs": top.values, "top_ids": top.indices}
        if self.support:
            ids, sizes = support_of(drawn.distribution)
            self.supports.append((rows, ids, sizes))
        self.wide.append((rows, wide))

    def _collect(self) -> None:
        """Write the tokens and their log-probabilities into their tables."""
        first = 0
        for rows, tokens, logprobs in self.drawn:
            span = slice(first, first := first + len(tokens))
            self.tokens[rows, span], self.logprobs[rows, span] = (torch.stack(x, dim=1) for x in (tokens, logprobs))

    def completions(self, eos_token_id: int, version: int) -> list[Completion]:
        """The rows, each up to its first end token."""
        self._collect()
        ended = self.tokens == eos_token_id
        stopped = ended.any(dim=1)
        lengths = torch.where(stopped, ended.long().argmax(dim=1) + 1, (self.tokens >= 0).sum(dim=1)).tolist()
        dense = self._dense()
        supports = self._supports() if self.support else []
        found = []
        for row, (tokens, length, stop) in enumerate(zip(self.tokens.tolist(), lengths, stopped.tolist(), strict=True)):
            logprobs = self.logprobs[row, :length].clone()
            if not bool(torch.isfinite(logprobs).all()):
                raise EngineError("the engine's logits are not finite: its weights have diverged or are damaged")
            named = {}
            if supports:
                named["support_ids"], named["support_sizes"] = first_rows(*supports[row], length)
            found.append(
                Completion(
                    token_ids=tuple(tokens[:length]),
                    logprobs=logprobs,
                    finish_reason="stop" if stop else "length",
                    policy_version=version,
                    **{name: values[row, :length] for name, values in dense.items()},
                    **named,
                )
            )
        return found

    def _dense(self) -> dict[str, Tensor]:
        dense = {
            name: values.new_empty(len(self.tokens), len(self.wide), values.shape[1])
            for name, values in self.wide[0][1].items()
        }
        while self.wide:  # from the last, each let go once it is written
            rows, wide = self.wide.pop()
            for name, values in wide.items():
                dense[name][rows, len(self.wide)] = values
        return dense

    def _supports(self) -> list[tuple[Tensor, Tensor]]:
        """Of each row, the tokens that could be drawn, step after step, and their numbers."""
        table = torch.zeros(len(self.tokens), len(self.supports), dtype=torch.int32, device=self.tokens.device)
        for step, (rows, _, sizes) in enumerate(self.supports):
            table[rows, step] = sizes
        owner = torch.cat([rows.repeat_interleave(sizes.long()) for rows, _, sizes in self.supports])
        ids = torch.cat([ids for _, ids, _ in self.supports])[owner.argsort(stable=True)]
        return list(zip(ids.split(table.sum(dim=1).tolist()), table, strict=True))


def _weights(model: torch.nn.Module, precision: str | None) -> dict[str, Tensor]:
    """A copy of the state dict, no wider than the engine needs it; nothing where the engine runs the model itself."""
    if precision is None:
        return {}
    narrow = Numerics.of(precision).layers == "bfloat16"
    return copied(
        model.state_dict(),
        lambda x: x.to(torch.bfloat16 if narrow and x.is_floating_point() else x.dtype, copy=True),
    )


@contextmanager
def _at_rest(model: Any) -> Iterator[None]:
    """A model in the middle of its training, as it is used: not in training mode, layers not compiled anew for this."""
    training = model.training
    model.eval()
    try:
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        model.train(training)
