"""verl's own trainer on Ray, FSDP2 and a real rollout, once with its loss and with ours, on this machine's CPU."""

import math
import statistics

import pytest

from holdfast.integrations.verl.names import loss_overrides
from holdfast.rollout.store import read_rollouts
from integrations.verl.runs import EPOCHS, start

pytestmark = pytest.mark.slow

FAST = "actor_rollout_ref.actor.optim.lr=1e-2"
LEVEL_2 = "trainer.v1.trainer_mode=holdfast_sync"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tmp_path_factory.mktemp("verl")


@pytest.fixture(scope="module")
def vanilla(base):
    return start(base, "vanilla", 3, *EPOCHS, micro=2)


def assert_same_training(run, other):
    for name in ("actor/pg_loss", "actor/grad_norm", "actor/entropy", "critic/score/mean"):
        assert run.column(name) == pytest.approx(other.column(name), rel=2e-5, abs=1e-6), name


def test_our_ppo_trains_as_verls_vanilla_step_by_step(base, vanilla):
    ours = start(base, "ppo", 3, *EPOCHS, "actor_rollout_ref.actor.policy_loss.loss_mode=holdfast_ppo", micro=2)
    assert_same_training(ours, vanilla)
    # A loss that never clips would prove little.
    assert all(share > 0.1 for share in vanilla.column("actor/pg_clipfrac"))
    assert len(set(vanilla.column("actor/pg_loss"))) == 3


def test_two_ranks_and_another_split_train_the_same_at_level_2(base, vanilla):
    """KL-Cov with coefficient 0: the forward pass for whole-step statistics runs on both ranks and changes nothing."""
    settings = {"penalties": [{"kind": "kl_cov", "beta": 0.0, "share": 0.2}]}
    ours = start(base, "ranks", 3, *EPOCHS, *loss_overrides("ppo", settings), LEVEL_2, ranks=2, micro=4)
    assert_same_training(ours, vanilla)


def test_trust_region_training_learns_under_mismatch_and_records_it(base):
    """Rejected sequences out of the baseline, rewards rising under masks, records that agree with the log."""
    records = base / "mismatch" / "records"
    run = start(
        base,
        "mismatch",
        12,
        FAST,
        LEVEL_2,
        *loss_overrides("trm+sspo+kl_cov", {"share": 0.05}, records=str(records), baseline="accepted"),
        HOLDFAST_CPU_NOISE="0.06",
    )
    rewards, masked = run.column("critic/score/mean"), run.column("actor/holdfast/masked_sequences")
    assert statistics.mean(rewards[-2:]) > statistics.mean(rewards[:4]) + 0.2
    assert 0.1 < statistics.mean(masked) < 0.9
    assert all(k3 > 1e-3 for k3 in run.column("actor/holdfast/rollout_k3_mean"))
    files = sorted(records.glob("*.parquet"))
    assert [file.name for file in files[:2]] == [
        "step_000001_rank_0000_update_00.parquet",
        "step_000002_rank_0000_update_00.parquet",
    ]
    for step, file in enumerate(files, start=1):
        rollouts = list(read_rollouts(file))
        assert len(rollouts) == 16 and {rollout.step for rollout in rollouts} == {step}
        rejected = sum(not any(rollout.trust_mask) for rollout in rollouts) / 16
        assert rejected == pytest.approx(masked[step - 1], abs=1e-6)
        assert statistics.mean(r.reward for r in rollouts) == pytest.approx(rewards[step - 1], abs=1e-5)
        # KL(rollout‖trainer) estimated from the file by k3 = ρ − 1 − log ρ is what verl's log says
        assert k3(rollouts) == pytest.approx(run.column("actor/holdfast/rollout_k3_mean")[step - 1], rel=1e-3)


def test_a_resumed_run_goes_on_as_if_it_had_never_stopped(base):
    """verl's synchronous checkpoint: no batch that is already trained is written, restored or trained again."""
    whole = start(base, "uninterrupted", 3, *EPOCHS, *loss_overrides("ppo"), LEVEL_2)
    keep = f"trainer.default_local_dir={base}/kept"
    first = start(base, "first", 2, *EPOCHS, *loss_overrides("ppo"), LEVEL_2, keep, "trainer.save_freq=2")
    resume = (keep, "trainer.resume_mode=auto", "trainer.save_freq=3")
    second = start(base, "second", 3, *EPOCHS, *loss_overrides("ppo"), LEVEL_2, *resume)
    assert first.column("training/global_step") == [1, 2] and second.column("training/global_step") == [3]
    for name in ("actor/pg_loss", "actor/grad_norm", "actor/entropy", "critic/score/mean", "prompt_length/mean"):
        assert first.column(name) == pytest.approx(whole.column(name)[:2], rel=2e-5, abs=1e-6), name
        assert second.column(name) == pytest.approx(whole.column(name)[2:], rel=2e-5, abs=1e-6), name
    for step in ("global_step_2", "global_step_3"):
        assert {path.name for path in (base / "kept" / step).iterdir()} == {"actor", "data.pt"}


def k3(rollouts):
    logs = [
        trainer - engine
        for rollout in rollouts
        for trainer, engine in zip(rollout.trainer_logprobs, rollout.rollout_logprobs, strict=True)
    ]
    return statistics.mean(math.expm1(log) - log for log in logs)


def test_bounds_from_the_engines_top_k_mask_sequences(base):
    settings = {"detector": "tv_upper", "delta": 0.054}
    run = start(
        base,
        "top_k",
        2,
        FAST,
        LEVEL_2,
        *loss_overrides("trm_max+sspo+kl_cov", settings, top_k=True),
        HOLDFAST_CPU_NOISE="0.06",
        HOLDFAST_CPU_TOP_K="96",
    )
    lower = run.column("actor/holdfast/tv_rollout_lower_mean")
    upper = run.column("actor/holdfast/tv_rollout_upper_mean")
    assert all(0.005 < low < high < 0.06 for low, high in zip(lower, upper, strict=True))
    assert any(0 < share < 1 for share in run.column("actor/holdfast/masked_sequences"))
