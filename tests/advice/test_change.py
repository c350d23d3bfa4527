"""A change made to an objective's table is one that can be built, and is said in each framework's words."""

import shlex

import pytest

from holdfast.advice.change import as_toml, changed, in_framework
from holdfast.advice.lines import Change
from holdfast.audit.judge.fixes import FRAMEWORKS
from holdfast.integrations.verl.names import loss_overrides
from holdfast.objectives.presets import preset


@pytest.mark.parametrize(
    ("table", "change", "expected"),
    [
        ({"preset": "ppo"}, {"set": {"denominator": "rollout"}}, {"preset": "ppo", "denominator": "rollout"}),
        ({"preset": "trm+sspo+kl_cov", "delta": 0.2}, {"loss": "grpo"}, {"preset": "trm+kl_cov+grpo", "delta": 0.2}),
        ({"preset": "sspo", "tau_pos": 2.0}, {"loss": "gspo"}, {"preset": "gspo"}),
        (
            {"preset": "tis"},
            {"loss": "ppo", "drop": ["tis"], "set": {"denominator": "rollout"}},
            {"preset": "ppo", "denominator": "rollout"},
        ),
        ({"preset": "ppo+entropy_bonus", "alpha": 0.01}, {"drop": ["entropy_bonus"]}, {"preset": "ppo"}),
        ({"preset": "ppo"}, {"add": ["trm_max"], "set": {"delta": 0.4}}, {"preset": "ppo+trm_max", "delta": 0.4}),
        ({"preset": "ppo", "denominator": "old"}, {"set": {"denominator": "rollout"}}, None),
        # A truncated ratio to the engine and a ratio to the rollout policy count the drift twice.
        ({"preset": "tis"}, {"set": {"denominator": "rollout"}}, "none"),
        ({"preset": "entropy_bonus"}, {"drop": ["entropy_bonus"]}, "none"),
    ],
)
def test_changes(table, change, expected):
    found = changed(table, Change(**change))
    if expected == "none":
        assert found is None
        return
    assert found == (expected or {"preset": "ppo", "denominator": "rollout"})
    preset(**{"name" if key == "preset" else key: value for key, value in found.items()})


def test_toml_is_ready_to_paste():
    assert as_toml({"preset": "gspo", "denominator": "rollout"}) == (
        '[objective]\npreset = "gspo"\ndenominator = "rollout"'
    )


def test_frameworks():
    table = {"preset": "gspo", "denominator": "rollout", "low": 0.1}
    assert 'holdfast.preset("gspo", denominator="rollout", low=0.1)' in in_framework("TRL", table, ())
    verl = in_framework("verl", table, ())
    assert "policy_loss.objective=gspo" in verl and "policy_loss.settings.denominator=rollout" in verl
    assert "_target_=holdfast" in verl and "own loss" not in verl
    assert "bypass_mode=true" in in_framework("verl", table, ("clip_on_rollout",))
    annealed = {"preset": "ppo+kl_cov", "anneal": {"kind": "anneal", "steps": 32}}
    for_a_shell = shlex.split(in_framework("verl", annealed, ()))
    assert for_a_shell[1:] == loss_overrides("ppo+kl_cov", {"anneal": annealed["anneal"]})
    assert "anneal={'kind': 'anneal', 'steps': 32}" in in_framework("TRL", annealed, ())
    assert "use_decoupled_loss=false" in in_framework("AReaL", table, ("clip_on_rollout",))
    assert "no line is known for AReaL" in in_framework("AReaL", table, ())
    for framework in FRAMEWORKS:
        assert in_framework(framework, table, ("clip_on_rollout",)).strip()
