"""A small language model pair that can be known exactly: a trainer that learns and an engine that is nearly it.

A context is a number that follows from the prompt and the tokens so far, and every policy is a table of logits
[contexts, vocabulary]. Most contexts are almost certain of their next token and some are open, as in text. The
engine's table is the trainer's plus noise: `COPIES` perturbed copies, of which each token's forward pass uses one (the
numerics of a batch), the last one far off (another routing in a mixture of experts). Tokens are really sampled from
the engine's distribution, so a wrong temperature, support or shift looks as it would in a real log.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from holdfast.audit.read.columns import Column

CONTEXTS, VOCABULARY, COPIES = 256, 64, 6
_COPY_SCALES = np.array([0.4, 0.7, 1.0, 1.3, 2.0])


@dataclass(frozen=True)
class World:
    """All policies of a simulated run; `version` v is the trainer after v updates.

    `noise` is the standard deviation of the engine's logits about the trainer's at equal weights (a forward pass in
    bfloat16: 0.01 to 0.05), `flips` the share of tokens at which the engine is `flip_noise` off, `update` the size of
    one weight update in logits. From the first version to the last the trainer's logits grow by `sharpen` times
    themselves, as those of a policy that learns do. With a `tail` of ν > 2 the engine's noise has Student's t
    distribution with ν degrees of freedom instead of a normal one, of the same variance and one scale for all logits of
    a context (flips stay normal). Sampling is from softmax(logits / temperature) renormalised on the top-p set.
    """

    seed: int = 0
    versions: int = 8
    noise: float = 0.02
    flips: float = 0.0
    flip_noise: float = 0.5
    update: float = 0.03
    sharpen: float = 0.0
    tail: float = 0.0
    temperature: float = 1.0
    top_p: float = 1.0

    @cached_property
    def trainer_logits(self) -> Column:
        """[versions, contexts, vocabulary]; a few contexts move much more than most with each update."""
        rng = np.random.default_rng([self.seed, 1])
        sharpness = np.exp(rng.normal(2.1, 0.9, (CONTEXTS, 1)))
        start = sharpness * rng.normal(size=(CONTEXTS, VOCABULARY))
        pace = np.exp(rng.normal(-0.3, 0.8, (CONTEXTS, 1)))
        moves = self.update * pace * rng.normal(size=(self.versions, CONTEXTS, VOCABULARY))
        moves[0] = 0
        grown = 1 + self.sharpen * np.linspace(0, 1, self.versions)[:, None, None]
        return grown * (start + np.cumsum(moves, 0))

    @cached_property
    def engine_logits(self) -> Column:
        """[versions, copies, contexts, vocabulary]"""
        rng = np.random.default_rng([self.seed, 2])
        unevenness = np.exp(rng.normal(-0.2, 0.6, (CONTEXTS, 1)))
        scales = np.append(self.noise * _COPY_SCALES, self.flip_noise)[:, None, None]
        shape = (self.versions, COPIES, CONTEXTS, VOCABULARY)
        noise = scales * unevenness * rng.normal(size=shape)
        if self.tail:
            noise[:, :-1] *= np.sqrt(
                (self.tail - 2) / rng.chisquare(self.tail, (self.versions, COPIES - 1, CONTEXTS, 1))
            )
        return self.trainer_logits[:, None] + noise

    @cached_property
    def support(self) -> Column:
        """[versions · copies · contexts, vocabulary] bool: the smallest sets of likeliest tokens with mass ≥ top_p."""
        return top_p_set(self._rows(self.engine_logits) / self.temperature, self.top_p)

    @cached_property
    def engine_logprobs(self) -> Column:
        """[versions · copies · contexts, vocabulary] of the distribution that is sampled; -inf off its support."""
        return log_softmax(np.where(self.support, self._rows(self.engine_logits) / self.temperature, -np.inf))

    @cached_property
    def cumulative(self) -> Column:
        """Flat: row + cumulative probability, so that one sorted search samples any number of rows at once."""
        sums = np.cumsum(np.exp(self.engine_logprobs), -1)
        sums = np.minimum(sums / sums[:, -1:], 1.0)
        return (sums + np.arange(len(sums))[:, None]).ravel()

    def trainer_logprobs(self, age: int) -> Column:
        """[versions · copies · contexts, vocabulary]: the trainer `age` updates after each row's engine version.

        On the engine's support and temperature, as a trainer that does it right computes them. Rows whose trainer
        would be beyond the last version hold that last one.
        """
        later = np.minimum(np.arange(self.versions) + age, self.versions - 1)
        logits = np.repeat(self.trainer_logits[later][:, None], COPIES, axis=1)
        return log_softmax(np.where(self.support, self._rows(logits) / self.temperature, -np.inf))

    def rows(self, version: Column, copy: Column, context: Column) -> Column:
        """Row numbers of the tables above."""
        return (version * COPIES + copy) * CONTEXTS + context

    def copies(self, sequence: Column, position: int) -> Column:
        """[N] which copy computes the token at this position of these sequences: fixed by the seed."""
        mixed = (sequence.astype(np.uint64) * np.uint64(1_000_003) + np.uint64(position)) ^ np.uint64(self.seed << 20)
        mixed *= np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(31)
        uniform = (mixed * np.uint64(0xBF58476D1CE4E5B9) >> np.uint64(11)).astype(np.float64) / 2**53
        ordinary = np.minimum(uniform / max(1 - self.flips, 1e-12), 1) * len(_COPY_SCALES)
        return np.where(uniform < 1 - self.flips, ordinary.astype(np.int64) % len(_COPY_SCALES), COPIES - 1)

    @staticmethod
    def _rows(table: Column) -> Column:
        return table.reshape(-1, VOCABULARY)


@lru_cache(maxsize=4)
def shared(world: World) -> World:
    """The one instance of an equal world, with the tables it has already computed."""
    return world


def next_context(context: Column, token: Column, position: int) -> Column:
    """[N] the context after the token at this position, which counts too: or a likely token could lead to itself."""
    return (context * 5 + token * 37 + 11 * (position + 1)) % CONTEXTS


def first_context(prompt: Column) -> Column:
    """[N] the context in which a response starts, of prompts [N, length]."""
    return (prompt * np.arange(3, 3 + 2 * prompt.shape[1], 2)).sum(1) % CONTEXTS


def log_softmax(logits: Column) -> Column:
    """Log-probabilities over the last axis; -inf stays -inf."""
    top = logits.max(-1, keepdims=True)
    return logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))


def top_p_set(logits: Column, top_p: float) -> Column:
    """The likeliest tokens until their mass reaches top_p, as engines keep them: [rows, vocabulary] bool."""
    if top_p >= 1:
        return np.ones(logits.shape, bool)
    order = np.argsort(-logits, -1)
    probabilities = np.take_along_axis(np.exp(log_softmax(logits)), order, -1)
    kept_sorted = np.cumsum(probabilities, -1) - probabilities < top_p
    kept = np.zeros(logits.shape, bool)
    np.put_along_axis(kept, order, kept_sorted, -1)
    return kept
