import pytest

from holdfast import ConfigError, list_presets, preset
from holdfast.integrations.verl.levels import Given, check, check_whole_step
from holdfast.objectives.parts.penalties import Kl
from holdfast.objectives.parts.reduce import Normalize

BARE = Given(level=1, rollout=False)
FULL = Given(level=2, rollout=True, entropy=True, reference=True)


@pytest.mark.parametrize(
    ("objective", "given", "message"),
    [
        (preset("trm"), BARE, r"level 1: 'trm' needs rollout_logprobs.*trainer_mode=holdfast_sync.*bypass_mode=true"),
        (preset("trm"), Given(2, rollout=False), r"level 2: 'trm' needs rollout_logprobs.*calculate_log_probs=true"),
        (preset("entropy_bonus"), BARE, r"needs entropy: .*holdfast_sync"),
        (preset("ppo", penalties=(Kl(),)), BARE, r"needs ref_logprobs: .*use_kl_loss=true"),
        (preset("ppo", penalties=(Kl(),)), Given(2, rollout=True), r"needs ref_logprobs: set actor.use_kl_loss"),
        (preset("trm_max", detector="kl_exact"), FULL, r"needs kl_rollout: .*no full distributions"),
        (preset("trm_max", detector="tv_upper"), FULL, r"needs tv_rollout_upper: .*top_k=true"),
        (preset("trm_token"), FULL, r"needs kl_rollout: .*a top-K one \(tv_upper\)"),
        (preset("trm_prefix", detector="tv_upper"), FULL, r"needs tv_rollout_upper: .*top_k=true"),
        (preset("adaptive_entropy"), FULL, r"changes its entropy coefficient after every step"),
    ],
)
def test_what_a_level_lacks_is_named_with_the_fix(objective, given, message):
    with pytest.raises(ConfigError, match=message):
        check(objective, given)


def test_each_level_gives_what_it_says():
    check(preset("ppo"), BARE)
    check(preset("trm+sspo"), Given(level=1, rollout=True))
    check(preset("trm+sspo+entropy_bonus", penalties=(Kl(),)), FULL)
    for row in ("trm_max", "trm_token", "trm_prefix"):
        check(preset(row, detector="tv_upper"), Given(level=3, rollout=True, top_k=True))


def test_level_2_trains_every_row_without_a_teacher_or_whole_distributions():
    refused = []
    for row in list_presets():
        try:
            check(preset(row), FULL)
        except ConfigError:
            refused.append(row)
    assert refused == ["opd", "real", "trm_token", "trm_prefix", "adaptive_entropy"]


@pytest.mark.parametrize(
    ("name", "changes", "expected"),
    [
        ("ppo", {}, []),
        ("ppo+tis", {}, []),
        ("clip_cov", {}, ["clip_cov"]),
        ("trm+sspo+kl_cov", {}, ["kl_cov"]),
        ("tis", {"batch_normalize": True}, ["importance_weight"]),
        ("trm", {"normalize": Normalize(over="accepted")}, ["normalize over 'accepted'"]),
    ],
)
def test_parts_that_look_at_the_whole_step(name, changes, expected):
    objective = preset(name, **changes)
    if expected:
        with pytest.raises(ConfigError, match=f"level 1: '{objective.name.replace('+', '.')}'.*looks at the whole"):
            check_whole_step(objective)
    else:
        check_whole_step(objective)
