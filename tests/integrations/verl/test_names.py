import pytest

from holdfast import ConfigError, list_presets, preset
from holdfast.integrations.verl import names


def test_every_row_of_the_table_has_a_loss_name():
    assert names.loss_names() == {f"holdfast_{row}": row for row in list_presets()}
    assert all(names.is_ours(name) for name in (*names.loss_names(), "holdfast"))
    assert not any(names.is_ours(name) for name in ("vanilla", "gspo", "holdfastish"))


@pytest.mark.parametrize(
    ("loss_mode", "objective", "expected"),
    [("holdfast_grpo", "", "grpo"), ("holdfast", "trm+sspo", "trm+sspo"), ("holdfast_grpo", "grpo", "grpo")],
)
def test_the_objective_is_named_once(loss_mode, objective, expected):
    assert names.objective_name(loss_mode, objective) == expected


def test_no_objective_and_two_objectives_are_refused():
    with pytest.raises(ConfigError, match=r"policy_loss.objective, which is empty.*loss_mode=holdfast_sspo"):
        names.objective_name("holdfast", "")
    with pytest.raises(ConfigError, match=r"holdfast_grpo and policy_loss.objective=ppo name two objectives"):
        names.objective_name("holdfast_grpo", "ppo")


def test_overrides_are_checked_by_our_objects():
    with pytest.raises(ConfigError, match="delta = -1"):
        names.loss_overrides("trm", {"delta": -1.0})
    with pytest.raises(ConfigError, match="unknown preset 'grppo'"):
        names.loss_overrides("grppo")


def test_settings_name_a_part_as_hydra_nests_them():
    nested = names.with_settings("clip_cov+ppo", {"clip_cov": {"high": 3.0}, "dual": 5.0})
    assert nested == preset("clip_cov+ppo", **{"clip_cov.high": 3.0, "dual": 5.0})
    whole = names.with_settings("ppo", {"gate": {"kind": "clip", "low": 0.1, "high": 0.3}})
    assert whole == preset("ppo", gate={"kind": "clip", "low": 0.1, "high": 0.3})


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ("grpo", ["algorithm.adv_estimator=grpo", "algorithm.norm_adv_by_std_in_grpo=true"]),
        ("dr_grpo", ["algorithm.adv_estimator=grpo", "algorithm.norm_adv_by_std_in_grpo=false"]),
        ("rloo", ["algorithm.adv_estimator=rloo"]),
        ("reinforce_pp", ["algorithm.adv_estimator=reinforce_plus_plus", "algorithm.gamma=1"]),
    ],
)
def test_advantages_by_verls_names(row, expected):
    assert names.advantage_overrides(preset(row)) == expected


def test_an_estimator_that_verl_lacks_is_refused():
    with pytest.raises(ConfigError, match="verl has no estimator for A = R:"):
        names.advantage_overrides(preset("reinforce"))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.05, "0.05"),
        (True, "true"),
        (None, "null"),
        ("cosine", "cosine"),
        ("true", "'true'"),
        ("/shared/run-1", "/shared/run-1"),
        ("1", "'1'"),
        ("it's", r"'it\'s'"),
        ({"shape": "cosine", "steps": 50.0}, "{shape:cosine,steps:50.0}"),
        ([{"kind": "kl"}, 1], "[{kind:kl},1]"),
    ],
)
def test_values_in_hydras_grammar(value, expected):
    assert names.loss_overrides("grpo", records=value)[-1] == f"+{names.POLICY_LOSS}.records={expected}"
