"""Stretches against a loop over single tokens."""

from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.audit.measure.stretches import CLASSES, SURPRISE_EDGES
from holdfast.audit.measure.view import View
from holdfast.audit.read.columns import chunk_of
from holdfast.types import Rollout


def random_rollout(rng, length, turns, versions):
    engine = -rng.exponential(1.0, length)
    trainer = np.minimum(engine + 0.1 * rng.normal(size=length), 0)
    trainer[rng.random(length) < 0.1] = np.nan
    return Rollout(
        (1,),
        tuple(range(length)),
        tuple(engine.tolist()),
        tuple(trainer.tolist()),
        response_mask=tuple((rng.random(length) < 0.8).tolist()),
        turn_ids=tuple(np.sort(rng.integers(0, 3, length)).tolist()) if turns else None,
        weight_versions=tuple(np.sort(rng.integers(4, 6, length)).tolist()) if versions else None,
    )


def by_hand(rollouts):
    """{(sequence, quarter, turn, version): [Σ|r|, tokens] per class and Σk3}, token by token."""
    table = defaultdict(lambda: np.zeros((3, CLASSES)))
    for i, r in enumerate(rollouts):
        length = len(r.response_ids)
        for t in range(length):
            quarter = max(q for q in range(4) if t >= length * q // 4)
            key = (i, quarter, r.turn_ids[t] if r.turn_ids else -1, r.weight_versions[t] if r.weight_versions else -1)
            cell = table[key]
            if not r.response_mask[t] or np.isnan(r.trainer_logprobs[t]):
                continue
            engine, trainer = np.float32(r.rollout_logprobs[t]), np.float32(r.trainer_logprobs[t])
            ratio = trainer - engine
            column = sum(-engine >= np.float32(edge) for edge in SURPRISE_EDGES)
            cell[:, column] += abs(ratio), 1, np.expm1(np.float64(ratio)) - ratio
    return table


@given(st.integers(0, 10_000), st.lists(st.integers(0, 23), min_size=1, max_size=5), st.booleans(), st.booleans())
def test_stretches_are_sums_over_tokens(seed, lengths, turns, versions):
    rng = np.random.default_rng(seed)
    rollouts = [random_rollout(rng, n, turns and n, versions and n) for n in lengths]
    got = View(chunk_of(rollouts)).stretches
    wanted = by_hand(rollouts)
    keys = list(zip(got.sequence, got.quarter, got.turn, got.version, strict=True))
    assert sorted(keys) == sorted(wanted)
    for row, key in enumerate(keys):
        assert got.sums[row] == pytest.approx(wanted[key][0], rel=1e-5, abs=1e-7)
        assert got.counts[row].tolist() == wanted[key][1].tolist()
        assert got.kl[row] == pytest.approx(wanted[key][2].sum(), rel=1e-4, abs=1e-7)
    assert got.tokens.sum() == sum(cell[1].sum() for cell in wanted.values())
