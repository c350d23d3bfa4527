"""Few tokens, few prompts: shares by hand."""

import numpy as np
import pytest

from holdfast.audit.judge.checks.drift.few_prompts_dominate import FewPromptsDominate
from holdfast.audit.judge.checks.drift.few_tokens_dominate import FewTokensDominate
from holdfast.audit.judge.checks.places import Places
from holdfast.audit.measure.view import View
from holdfast.audit.read.columns import chunk_of
from holdfast.types import Rollout


def k3(r):
    return np.exp(r) - 1 - r


def drifting(ratio, count, length=100, **more):
    return [Rollout((i,), (1,) * length, (-5.0,) * length, (-5.0 + ratio,) * length, **more) for i in range(count)]


def extreme(count, size=-4.0):
    return [Rollout((1000 + i,), (1, 2), (-1.0, -1.0), (-1.0, -1.0 + size)) for i in range(count)]


def test_a_few_extreme_tokens(look):
    """6 tokens at r = -4 (k3 3.018) among 10,000 at 0.01 (k3 5.0e-5): 18.11 of 18.61, 97.3 %."""
    (got,) = look(FewTokensDominate, [*drifting(0.01, 100), *extreme(6)])
    assert got.evidence["share of k3"] == pytest.approx(6 * k3(-4.0) / (6 * k3(-4.0) + 10_000 * k3(0.01)), rel=1e-3)
    assert got.evidence["share of tokens"] == pytest.approx(6 / 10_012)
    assert got.where.positions == tuple((100 + i, 1) for i in range(6))


@pytest.mark.parametrize("others", [
    [*drifting(0.01, 100), *extreme(4)],  # four are chance
    [*drifting(0.01, 100), *extreme(6, -2.9)],  # a ratio of 18 is not extreme
    [*drifting(0.04, 100), *extreme(6)],  # 18.1 of 18.1 + 10,000 · 8.1e-4 = 8.1: 69 %
    [*drifting(0.01, 10), *extreme(6)],  # 6 of 1,012 tokens are not few
])  # fmt: skip
def test_what_is_no_dominance(look, others):
    assert look(FewTokensDominate, others) == []


def test_one_prompt_carries_the_drift(look):
    """One prompt at 0.4 among 49 at 0.01: 40 of 40 + 49 = 45 % with 2 % of the tokens."""
    (got,) = look(FewPromptsDominate, [*drifting(0.01, 49, 300), *drifting(0.4, 1, 300, group_id=77, step=1)])
    assert look(FewPromptsDominate, [*drifting(0.01, 49, 299), *drifting(0.4, 1, 299, group_id=77, step=1)]) == []
    assert got.evidence["share of the drift"] == pytest.approx(40 / 89, rel=1e-3)
    assert got.evidence["share of tokens"] == pytest.approx(0.02)
    assert got.where.sequences == (49,)


def test_the_gradient_of_one_prompt(look):
    advantages = {"advantages": (0.1,) * 300}
    (got,) = look(FewPromptsDominate, [
        *drifting(0.01, 49, 300, **advantages),
        *drifting(0.01, 1, 300, group_id=77, step=1, advantages=(5.0,) * 300),
    ])  # fmt: skip
    assert got.evidence["share of the gradient"] == pytest.approx(5 / (5 + 4.9), rel=1e-3)
    assert got.kind == "training"


def test_advantages_of_tool_output_pull_nothing(look):
    tool = Rollout((99,), (1,) * 100, (-5.0,) * 100, (-4.99,) * 100, (True,) + (False,) * 99, advantages=(5.0,) * 100)
    assert look(FewPromptsDominate, [*drifting(0.01, 49, advantages=(0.2,) * 100), tool]) == []  # 5 of 5 + 980


@pytest.mark.parametrize("rollouts", [
    [*drifting(0.01, 30), *drifting(0.9, 1, group_id=77, step=1)],  # 31 prompts are too few to speak of 1 %
    [*drifting(0.01, 49), *drifting(0.07, 1, group_id=77, step=1)],  # 7 of 56 = 12.5 %
    [*drifting(0.01, 49), *drifting(0.01, 1, length=1000, group_id=77, step=1)],  # a long one carries its share
])  # fmt: skip
def test_what_is_no_dominating_prompt(look, rollouts):
    assert look(FewPromptsDominate, rollouts) == []


def test_healthy(look, healthy):
    for check in (FewTokensDominate, FewPromptsDominate):
        assert look(check, healthy()) == []


def test_places_keep_the_worst_ten_in_order():
    rollouts = [Rollout((1,), tuple(range(5)), (-1.0,) * 5, (-1.0,) * 5) for _ in range(4)]
    view, places = View(chunk_of(rollouts), first_sequence=100), Places()
    places.add(view, np.arange(10), np.arange(10.0))
    places.add(view, np.array([12, 19]), np.array([50.0, 5.0]))
    where = places.where()
    assert where.positions[:3] == ((102, 2), (101, 4), (101, 3))
    assert len(where.positions) == 10
    assert where.sequences == (102, 101, 103, 100)


def test_places_without_badness_keep_the_first():
    view, places = View(chunk_of([Rollout((1,), tuple(range(30)))])), Places()
    places.add(view, np.arange(30))
    assert places.where().positions == tuple((0, i) for i in range(10))
