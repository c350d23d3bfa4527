"""The certificate: what its test is of, when it brakes, and what a person is told."""

import pytest
import torch

from held_out import brake_config, held_out, updater_of
from holdfast.errors import DataError
from holdfast.train.brake.certificate import Certificate, Proof


class Answering(Certificate):
    """A certificate whose updated policy has these rewards."""

    def __init__(self, settings, answers, weights=(1.0,)):
        self.config, self.answers = settings, answers
        self.updater = updater_of([torch.tensor([weight]) for weight in weights])

    def _answers(self, held, step):
        return self.answers


def test_the_test_by_hand():
    # Groups 4 and 9: (1 · 2 + 0 · 1)/2 - (1 + 0)/2 = .5 and (1 · 1 + .5 · .5)/2 - 0 = .625. At the stakes of the test
    # E_2 = mean_j (1 + .5 λ_j)(1 + .625 λ_j) = (1.011281 + 1.034031 + 1.115625 + 1.365625 + 1.7875 + 2.265625)/6.
    held, before = held_out([1.0, 0.0, 1.0, 0.5], [2.0, 1.0, 1.0, 0.5], [4, 4, 9, 9])
    found = Answering(brake_config(), [1.0, 0.0, 0.0, 0.0]).judge(held, before, 1)
    assert (found.braked, found.prompts, found.reward) == (False, 2, 0.25)
    assert found.e_value == pytest.approx(1.429948, abs=1e-5)
    # Rewards from -1 to 3 are a quarter of it above -1: the same test, and a limit in units of the rewards.
    scaled, _ = held_out([3.0, -1.0, 3.0, 1.0], [1.0] * 4, [4, 4, 9, 9])
    wide = Answering(brake_config(guard={"brake_rewards": [-1.0, 3.0]}), [3.0, -1.0, -1.0, -1.0]).judge(
        scaled, before, 1
    )
    assert wide.e_value == pytest.approx(found.e_value) and wide.harm == pytest.approx(4 * found.harm)
    assert wide.reward == 0.0


def test_an_engine_outside_is_compared_with_itself():
    """It answers before and after, so that its own numerics are in both and no weight is between them."""
    held, before = held_out([1.0, 0.0, 1.0, 0.5], [2.0, 1.0, 1.0, 0.5], [4, 4, 9, 9])
    outside = {"engine": {"kind": "server", "precision": "float32"}}
    found = Answering(brake_config(**outside), [1.0, 0.0, 0.0, 0.0]).judge(held, before, 1)
    # 0 and .75: E_2 = mean_j (1 + .75 λ_j) = 7.455/6.
    assert found.e_value == pytest.approx(7.455 / 6)


def test_it_brakes_from_the_level_on():
    held, before = held_out([1.0] * 7, [1.0] * 7, range(7))
    assert Answering(brake_config(), [0.0] * 7).judge(held, before, 1).braked  # mean_j (1 + λ_j)^7 = 21.1
    assert (
        not Answering(brake_config(guard={"brake_level": 0.95}), [0.0] * 6)
        .judge(*held_out([1.0] * 6, [1.0] * 6, range(6)), 1)
        .braked
    )
    assert not Answering(brake_config(), [1.0] * 7).judge(held, before, 1).braked


def test_weights_that_are_no_numbers_need_no_answer():
    held, before = held_out([1.0], [1.0], [0])
    found = Answering(brake_config(), None, weights=(1.0, float("nan"))).judge(held, before, 1)
    assert found == Proof(True, 1)
    assert found.warnings() == ["brake: the step was not taken: it leaves weights that are not finite"]


def test_new_answers_out_of_range_are_named():
    held, before = held_out([1.0], [1.0], [0])
    said = r"step 3: a reward of 1\.5 lies outside guard\.brake_rewards = \[0\.0, 1\.0\]"
    with pytest.raises(DataError, match=said):
        Answering(brake_config(), [1.5]).judge(held, before, 3)
    rounded = Answering(brake_config(guard={"brake_rewards": [-0.1, 0.1]}), [0.1])  # in float32 it lies outside
    assert not rounded.judge(held_out([-0.1], [1.0], [0])[0], before, 1).braked
