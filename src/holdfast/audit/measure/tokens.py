"""What a chunk's tokens say one by one, computed once: masks, log-ratios, estimators, positions, sums."""

from __future__ import annotations

import copy
from functools import cached_property
from typing import Literal, TypeVar

import numpy as np

from holdfast.audit.measure.adding import hash_numbers
from holdfast.audit.read.columns import Chunk, Column

FOLDS = 64
"""Groups of sequences that are resampled together; all rollouts of a prompt fall into one."""
V = TypeVar("V", bound="TokenView")
Unit = Literal["prompt", "sequence"]
"""What is resampled as a whole: prompts, or single sequences where the log has too few prompts to tell."""
FILE_BITS = 40
"""A sequence's number is its file's place in the log times 2^40, and its own place in that file: equal in any shard."""
UNKNOWN = np.iinfo(np.int64).min
LOOP = 16
"""Own tokens from which on a response can be one token over and over."""
LOG_RATIO_LIMIT = 20.0
"""|log ratio| above this enters k3 as if it were this: exp(20) = 4.9e8."""


class TokenView:
    """A chunk and what follows from it; every property is computed when first asked for.

    Flat arrays have one entry per response token, `sequence_*` one per sequence. The log-ratio is
    log p(trainer) - log p(engine); estimators are of KL(engine‖trainer): k1 = -r, k2 = r²/2, k3 = exp(r) - 1 - r.
    """

    def __init__(self, chunk: Chunk, first_sequence: int = 0, unit: Unit = "prompt") -> None:
        self.chunk = chunk
        self.first_sequence = first_sequence
        """Number of the chunk's first sequence: the file's place << FILE_BITS, and how many came before in the file."""
        self.unit: Unit = unit

    def by(self: V, unit: Unit) -> V:
        """The same chunk with another unit; what does not depend on it is computed once for both."""
        other = copy.copy(self)
        for name in ("fold", "token_fold"):
            other.__dict__.pop(name, None)
        other.unit = unit
        return other

    @cached_property
    def key(self) -> int:
        """A hash of where the chunk stands in the log: those of the smallest keys are a uniform sample of all."""
        return int(hash_numbers(self.first_sequence)[0])

    def has(self, *columns: str) -> bool:
        """Whether at least one sequence has each of these fields."""
        return all(name in self.chunk.present for name in columns)

    def tokens(self, name: str) -> Column:
        """A token column that `has` says is there."""
        return self.chunk.tokens[name]

    def numbers(self, name: str) -> Column:
        """A per-sequence column that `has` says is there."""
        return self.chunk.numbers[name]

    def given(self, name: str) -> Column:
        """Flat: whether this token's sequence has the field."""
        present = self.chunk.present.get(name)
        if present is None:
            return np.zeros(self.chunk.token_count, bool)
        return np.ones(self.chunk.token_count, bool) if present.all() else np.repeat(present, self.lengths)

    @cached_property
    def lengths(self) -> Column:
        """[N] response tokens of each sequence, the policy's own and others."""
        return np.diff(self.chunk.offsets)

    @cached_property
    def sequence(self) -> Column:
        """Flat: which sequence of the chunk a token belongs to."""
        return np.repeat(np.arange(len(self.chunk), dtype=np.int32), self.lengths)

    @cached_property
    def position(self) -> Column:
        """Flat: position in the response, from 0."""
        starts = np.repeat(self.chunk.offsets[:-1].astype(np.int32), self.lengths)
        return np.arange(self.chunk.token_count, dtype=np.int32) - starts

    @cached_property
    def depth(self) -> Column:
        """Flat: bin of the position at a doubling resolution: 0 for the first token, b ≥ 1 for [2^(b-1), 2^b)."""
        table = np.frexp(np.arange(int(self.lengths.max(initial=0)), dtype=np.float64))[1].astype(np.int8)
        return np.concatenate([table[:n] for n in self.lengths]) if len(self.chunk) else table

    @cached_property
    def own(self) -> Column:
        """Flat: the policy sampled this token itself. Without a recorded mask every response token counts as such."""
        mask = self.chunk.tokens.get("response_mask")
        if mask is None:
            return np.ones(self.chunk.token_count, bool)
        return mask | ~self.given("response_mask")

    @cached_property
    def measured(self) -> Column:
        """Flat: an own token with a finite, non-positive log-probability from both policies."""
        engine, trainer = self.chunk.tokens.get("rollout_logprobs"), self.chunk.tokens.get("trainer_logprobs")
        if engine is None or trainer is None:
            return np.zeros(self.chunk.token_count, bool)
        both = np.isfinite(engine) & np.isfinite(trainer) & (engine <= 1e-3) & (trainer <= 1e-3)
        return self.own & both

    @cached_property
    def log_ratio(self) -> Column:
        """Flat float32: log-ratio of measured tokens, 0 elsewhere."""
        if not self.has("rollout_logprobs", "trainer_logprobs"):
            return np.zeros(self.chunk.token_count, np.float32)
        with np.errstate(invalid="ignore"):
            difference = self.tokens("trainer_logprobs") - self.tokens("rollout_logprobs")
        return np.where(self.measured, difference, np.float32(0))

    @cached_property
    def size(self) -> Column:
        """Flat: |log-ratio|."""
        return np.abs(self.log_ratio)

    @cached_property
    def bounded_ratio(self) -> Column:
        """Flat float64: the log-ratio, clamped to ±LOG_RATIO_LIMIT."""
        return np.clip(self.log_ratio, -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).astype(np.float64)

    @cached_property
    def weight_change(self) -> Column:
        """Flat: exp(r) - 1, the importance weight less one, of the clamped r; its mean is 0 in a true log."""
        return np.expm1(self.bounded_ratio)

    @cached_property
    def k3(self) -> Column:
        """Flat: exp(r) - 1 - r of the clamped r."""
        return self.weight_change - self.bounded_ratio

    @cached_property
    def sequence_size(self) -> Column:
        """[N] sum of |log-ratio| over measured tokens."""
        return self.sum(self.size)

    @cached_property
    def sequence_measured(self) -> Column:
        """[N] measured tokens of each sequence."""
        return self.sum(self.measured)

    @cached_property
    def sequence_k3(self) -> Column:
        """[N] sum of k3 over measured tokens."""
        return self.sum(self.k3)

    @cached_property
    def step(self) -> Column:
        """[N] training step, -1 where not recorded."""
        return self.chunk.numbers.get("step", np.full(len(self.chunk), -1))

    @cached_property
    def freshness(self) -> Column:
        """[N] weight version less step, the larger the fresher; UNKNOWN where not recorded or changed on the way."""
        if not self.has("weight_versions", "step"):
            return np.full(len(self.chunk), UNKNOWN)
        versions, starts = self.tokens("weight_versions"), self.chunk.offsets
        first, last = (np.zeros(len(self.chunk), np.int64) for _ in range(2))
        first[self.filled], last[self.filled] = versions[starts[self.filled]], versions[starts[self.filled + 1] - 1]
        known = self.chunk.present["weight_versions"] & self.chunk.present["step"] & (first == last)
        return np.where(known & (self.sequence_measured > 0), last - self.step, UNKNOWN)

    @cached_property
    def group(self) -> Column:
        """[N] a number for the prompt: the recorded group and step, else the prompt's hash."""
        recorded = self.chunk.numbers.get("group_id")
        if recorded is None:
            return self.chunk.prompt_hashes
        return np.where(self.chunk.present["group_id"], recorded * 1_000_003 + self.step, self.chunk.prompt_hashes)

    @cached_property
    def fold(self) -> Column:
        """[N] in 0..FOLDS-1, equal for what belongs to one `unit` of the bootstrap: rollouts of a prompt, say."""
        if self.unit == "sequence":
            return (hash_numbers(self.numbers_in_log) % np.uint64(FOLDS)).astype(np.int64)
        mixed = self.group.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        return (mixed >> np.uint64(32)).astype(np.int64) % FOLDS

    @cached_property
    def numbers_in_log(self) -> Column:
        """[N] number of each sequence."""
        return self.first_sequence + np.arange(len(self.chunk), dtype=np.int64)

    @cached_property
    def token_fold(self) -> Column:
        """Flat: the sequence's fold."""
        return np.repeat(self.fold, self.lengths)

    @cached_property
    def looped(self) -> Column:
        """[N] bool: of at least LOOP own tokens nine in ten are the response's first one, over and over."""
        first = np.repeat(self.tokens("response_ids")[self.chunk.offsets[:-1][self.filled]], self.lengths[self.filled])
        own = self.sum(self.own)
        return (own >= LOOP) & (self.sum(self.own & (self.tokens("response_ids") == first)) >= 0.9 * own)

    @cached_property
    def filled(self) -> Column:
        """Indices of the sequences that have tokens at all."""
        return np.flatnonzero(self.lengths)

    def sum(self, values: Column) -> Column:
        """[N] sum of a flat array over each sequence, in float64 (counts for booleans)."""
        out = np.zeros(len(self.chunk))
        out[self.filled] = np.add.reduceat(values, self.chunk.offsets[self.filled], dtype=np.float64)
        return out

    def where(self, keep: Column, values: Column) -> Column:
        """The flat values at those tokens, 0 elsewhere; of a log without gaps they are the values themselves."""
        return values if keep.all() else np.where(keep, values, values.dtype.type(0))

    def max(self, values: Column) -> Column:
        """[N] largest value of a flat array in each sequence; 0 for an empty one."""
        out = np.zeros(len(self.chunk), values.dtype)
        out[self.filled] = np.maximum.reduceat(values, self.chunk.offsets[self.filled])
        return out

    def runs(self, bin_: Column) -> Column:
        """Where a stretch of one sequence with one value of `bin_` (flat) starts: sums over runs are fast."""
        starts = np.empty(self.chunk.token_count, bool)
        starts[0] = True
        np.not_equal(bin_[1:], bin_[:-1], out=starts[1:])
        starts[self.chunk.offsets[self.filled]] = True
        return np.flatnonzero(starts)
