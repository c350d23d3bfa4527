"""Traits of published objectives, by which a line knows a run that follows it."""

import pytest

from holdfast.advice.traits import TRAITS, hold, key_of, traits_of
from holdfast.objectives.presets import preset


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("ppo", {}, {"clip"}),
        ("ppo", {"denominator": "rollout"}, {"clip", "ratio to the rollout policy"}),
        ("gspo", {}, {"clip", "sequence ratio"}),
        ("sspo", {}, {"sequence ratio", "soft sequence gate"}),
        ("sapo", {}, set()),
        ("tis", {}, {"clip", "engine weights"}),
        ("trm_max+ppo", {}, {"clip", "drift mask", "ratio to the rollout policy"}),
        ("trm_max", {}, {"drift mask", "ratio to the rollout policy"}),
        ("ppo+clip_cov", {}, {"clip", "Clip-Cov", "entropy control"}),
        ("ppo+kl_cov", {}, {"clip", "KL-Cov", "entropy control"}),
        ("ppo+entropy_bonus", {}, {"clip", "entropy bonus", "entropy control"}),
    ],
)
def test_traits(name, options, expected):
    assert traits_of(preset(name, **options)) == expected


def test_the_brake_is_of_the_run():
    found = traits_of(preset("reinforce"), brake=True)
    assert found == {"brake"} <= set(TRAITS)


def test_an_objective_is_known_by_what_it_does():
    assert key_of(preset("ppo")) == key_of(preset("ppo", low=0.2)) != key_of(preset("ppo", low=0.3))
    assert key_of(preset("trm_max+ppo")) == key_of(preset("ppo+trm_max"))


def test_conditions_hold_together():
    traits = frozenset({"clip"})
    assert hold(["clip", "!drift mask"], traits) and hold([], traits)
    assert not hold(["clip", "drift mask"], traits) and not hold(["!clip"], traits)
