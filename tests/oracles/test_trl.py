"""TRL 1.16.0 as an oracle: values and gradients of its own loss code, in float64."""

from dataclasses import replace

import pytest
import torch

from holdfast import DataError, preset
from holdfast.objectives.parts.gates import LogClip
from holdfast.objectives.parts.penalties import EntropyBonus, Kl
from holdfast.objectives.parts.reduce import Normalize
from holdfast.objectives.parts.token_masks import TopEntropy
from holdfast.objectives.parts.weights import ImportanceWeight
from oracles import trl_rows
from oracles.draws import assert_same, differ, draw, per_sequence, run_ours
from oracles.rows import BATCHES
from oracles.trl_peer import run_trl, score, trainer


def named(rows):
    return {"argvalues": rows, "ids": [row.name for row in rows]}


def both(row, batch, stats):
    """(ours, theirs) for one row."""
    theirs = run_trl(dict(row.settings), batch, stats, gmpo=row.options.get("gmpo", False))
    return run_ours(row.objective, batch, stats), theirs


@pytest.mark.parametrize("row", **named(trl_rows.ROWS))
def test_loss_and_gradient_are_the_same(row):
    one_advantage = row.options.get("gmpo", False) or row.settings.get("loss_type") == "vespo"
    for seed in range(BATCHES):
        batch, stats = draw(seed, min_tokens=row.min_tokens, widest=row.widest)
        batch = per_sequence(batch) if one_advantage else batch
        if not row.options.get("rollout", True):
            batch = replace(batch, rollout_logprobs=None)
        size = float(batch.advantages.abs().max())
        assert_same(*both(row, batch, stats), size=size)
        if not row.settings.get("use_vllm"):
            assert_same(*both(row, replace(batch, old_logprobs=None), stats), size=size)


@pytest.mark.parametrize("row", **named(trl_rows.ADVANTAGES))
@pytest.mark.parametrize(("groups", "size"), [(1, 2), (1, 5), (3, 3)])
def test_advantages_are_the_same(row, groups, size):
    for seed in range(BATCHES):
        g = torch.Generator().manual_seed(seed)
        batch, _ = draw(seed, sequences=groups * size)
        drawn = torch.randn(groups * size, generator=g), torch.randint(0, 2, (groups * size,), generator=g)
        rewards = drawn[seed % 2].double()
        theirs = score(dict(row.settings) | {"num_generations": size}, batch, rewards)["advantages"]
        ours = row.objective.advantage.estimate(rewards, torch.arange(groups * size) // size, batch.response_mask)
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def wide(seed=1, **options):
    """A batch of moderate drift with one advantage per sequence and ragged lengths."""
    batch, stats = draw(4 * seed + 1, sequences=6, min_tokens=3, **options)
    return per_sequence(batch), stats


def empty_rows():
    batch, stats = wide()
    mask = batch.response_mask.clone()
    mask[2] = False
    batch = replace(batch, response_mask=mask)
    for settings, ours in (({"loss_type": "grpo"}, "grpo"), ({"loss_type": "luspo", "epsilon_low": 3e-4}, "luspo")):
        settings = settings | (
            {"importance_sampling_level": "sequence", "epsilon_high": 4e-4} if ours == "luspo" else {}
        )
        theirs = run_trl(settings, batch, stats)
        assert differ(run_ours(preset(ours), batch, stats), theirs)
        assert_same(run_ours(preset(ours), batch, stats), tuple(6 / 5 * value for value in theirs))


def unclamped_ratio():
    batch, stats = wide()
    batch = replace(batch, advantages=-batch.advantages.abs() - 1, old_logprobs=stats.logprobs - 800)
    assert not run_trl({"loss_type": "grpo"}, batch, stats)[0].isfinite()
    assert all(value.isfinite().all() for value in run_ours(preset("grpo"), batch, stats))


def delta_below_clip():
    batch, stats = wide(widest=2.0)
    theirs = run_trl({"loss_type": "grpo", "delta": 1.1}, batch, stats)
    assert_same(run_ours(preset("grpo", high=0.1, dual=1.2), batch, stats), theirs)
    assert differ(run_ours(preset("grpo", dual=1.1), batch, stats), theirs)


def cispo_default_cap():
    batch, stats = wide()
    batch = replace(batch, old_logprobs=None)
    _, gradient, _ = run_trl({"loss_type": "cispo"}, batch, stats)
    torch.testing.assert_close(gradient, 0.2 * run_ours(preset("reinforce"), batch, stats)[1])
    torch.testing.assert_close(gradient, 0.2 * run_ours(preset("cispo"), batch, stats)[1])


def vespo_correction():
    batch, stats = wide(widest=0.3)
    corrected = {
        "loss_type": "vespo",
        "use_vllm": True,
        "vllm_importance_sampling_mode": "token_truncate",
        "vllm_importance_sampling_clip_max": 1.05,
    }
    theirs = run_trl(corrected, batch, stats)
    assert differ(run_ours(preset("vespo", denominator="rollout"), batch, stats), theirs)
    assert differ(run_ours(preset("vespo", weights=(ImportanceWeight(high=1.05),)), batch, stats), theirs)
    rollout = batch.old_logprobs.clone()
    rollout[0, 0] -= 1
    batch = replace(batch, rollout_logprobs=rollout)
    _, gradient, _ = run_trl(corrected | {"vllm_importance_sampling_mode": "token_mask"}, batch, stats)
    assert gradient[0].abs().max() < 1e-12 < gradient[1:].abs().max()


def vespo_floor():
    batch, stats = wide()
    batch = replace(batch, advantages=torch.ones(6).double(), old_logprobs=stats.logprobs + 15)
    batch = replace(
        batch, old_logprobs=batch.old_logprobs.clamp(max=0), response_mask=torch.ones_like(batch.response_mask)
    )
    stats = replace(stats, logprobs=stats.logprobs - 30)
    ours, theirs = run_ours(preset("vespo"), batch, stats)[1], run_trl({"loss_type": "vespo"}, batch, stats)[1]
    assert 0 < ours.abs().max() < theirs.abs().max() < 1e-14


def entropy_normaliser():
    batch, stats = wide()
    theirs = run_trl({"loss_type": "grpo", "entropy_coef": 0.02}, batch, stats)
    ours = run_ours(preset("grpo+entropy_bonus", alpha=0.02), batch, stats)
    torch.testing.assert_close(ours[1], theirs[1])
    assert differ(ours[2:], theirs[2:]) and theirs[2][batch.response_mask].unique().numel() == 1


def entropy_top_tokens():
    batch, stats = wide()
    theirs = run_trl({"loss_type": "dapo", "entropy_coef": 0.02, "top_entropy_quantile": 0.5}, batch, stats)
    objective = preset("clip_higher", high=0.2, masks=(TopEntropy(0.5),), penalties=(EntropyBonus(0.02),))
    ours = run_ours(objective, batch, stats)
    torch.testing.assert_close(ours[1], theirs[1])
    assert (ours[2] != 0).sum() == batch.response_mask.sum() > (theirs[2] != 0).sum()


def sequence_kl_weight():
    batch, stats = wide()
    batch = replace(batch, advantages=torch.zeros(6).double())
    settings = {"loss_type": "grpo", "importance_sampling_level": "sequence", "beta": 1.0}
    theirs = run_trl(settings | {"use_bias_correction_kl": True}, batch, stats)
    objective = preset("gspo", penalties=(Kl(1.0, ratio_weighted=True),))
    assert differ(run_ours(objective, batch, stats), theirs)
    assert_same(run_ours(objective.with_(ratio_weighted=False), batch, stats), run_trl(settings, batch, stats))


def gmpo_top_entropy():
    batch, stats = wide()
    objective = preset("gmpo", masks=(TopEntropy(0.5),))
    theirs = run_trl({"epsilon_low": 0.4, "epsilon_high": 0.4, "top_entropy_quantile": 0.5}, batch, stats, gmpo=True)
    assert differ(run_ours(objective, batch, stats), theirs)
    kept = objective(batch, stats).trust_mask
    fewer = replace(batch, response_mask=kept & batch.response_mask)
    assert_same(run_ours(preset("gmpo"), fewer, stats), tuple(v * 6 / kept.any(-1).sum() for v in theirs), size=1)


def gmpo_ignores():
    batch, stats = wide()
    plain = {"epsilon_low": 0.4, "epsilon_high": 0.4}
    theirs = run_trl(plain, batch, stats, gmpo=True)
    for setting in ({"use_vllm": True}, {"off_policy_mask_threshold": 1e-6}, {"entropy_coef": 0.5}):
        assert_same(run_trl(plain | setting, batch, stats, gmpo=True), theirs)
    objective = preset("gmpo+opsm+entropy_bonus", max_mean_k1=1e-6, weights=(ImportanceWeight(),))
    assert isinstance(objective.gate, LogClip) and differ(run_ours(objective, batch, stats), theirs)


def in_two(settings, batch, stats):
    """Gradient of TRL's loss with the batch in two micro-batches of one accumulation window."""
    parts = [torch.arange(3), torch.arange(3, 6)]
    settings = settings | {"current_gradient_accumulation_steps": 2, "steps_per_generation": 2}
    items = batch.response_mask.sum()
    return torch.cat([run_trl(settings, batch.select(rows), stats.select(rows), items=items)[1] for rows in parts])


def micro_batches():
    batch, stats = wide()
    sequence = {"importance_sampling_level": "sequence"}
    for settings in (
        {"loss_type": "grpo"},
        {"loss_type": "dapo"},
        {"loss_type": "dr_grpo"},
        {"loss_type": "luspo"} | sequence,
    ):
        torch.testing.assert_close(in_two(settings, batch, stats), run_trl(settings, batch, stats)[1])
    for settings in ({"loss_type": "bnpo"}, {"loss_type": "grpo", "top_entropy_quantile": 0.3}):
        assert not torch.allclose(in_two(settings, batch, stats), run_trl(settings, batch, stats)[1], rtol=1e-3)
    for objective in (preset("grpo", normalize=Normalize("token_mean")), preset("grpo", masks=(TopEntropy(0.3),))):
        plan = objective.prepare(batch, stats)
        halves = [
            run_ours(objective, batch.select(rows), stats.select(rows), plan.select(rows))[1]
            for rows in (torch.arange(3), torch.arange(3, 6))
        ]
        torch.testing.assert_close(torch.cat(halves), run_ours(objective, batch, stats)[1])


def nan_logprobs():
    batch, stats = wide(widest=0.3)
    rollout = batch.rollout_logprobs.clone()
    rollout[0, 0] = float("nan")
    batch = replace(batch, rollout_logprobs=rollout)
    weights = score({"use_vllm": True, "vllm_importance_sampling_mode": "token_mask"}, batch, torch.zeros(6))
    assert weights["importance_sampling_ratio"][0, 0] == 1
    assert run_trl({"off_policy_mask_threshold": 0.1}, batch, stats)[0].isfinite()
    with pytest.raises(
        DataError, match="rollout_logprobs is not finite at 1 response token, first at sequence 0, token 0"
    ):
        run_ours(preset("grpo+tis"), batch, stats)


def adaptive_entropy():
    batch, stats = wide()
    settings = {"use_adaptive_entropy": True, "entropy_target": 5.0, "entropy_coef": 0.1, "loss_type": "dapo"}
    assert not run_trl(settings, batch, stats)[2].any()
    theirs = run_trl(settings | {"_last_world_entropy": 1.0}, batch, stats)
    bonus = EntropyBonus(0.1, target=5.0, adapt=0.005)
    objective = preset("grpo", normalize=Normalize("token_mean"), penalties=(bonus,))
    assert_same(run_ours(objective, batch, stats), theirs)
    settings |= {"entropy_coef_delta": 0.005, "entropy_coef_max": 0.105}
    stand_in = trainer(**settings)
    bonus = replace(bonus, alpha_max=0.105)
    for entropy in (4.0, 5.0, 6.0, 6.0, 6.0, 4.0):
        run_trl(settings, batch, replace(stats, entropy=torch.full_like(stats.entropy, entropy)), stand_in=stand_in)
        bonus = bonus.after_step(entropy)
        assert bonus.alpha == pytest.approx(stand_in.entropy_coef, abs=1e-15)


def float32_constants():
    batch, stats = wide()
    theirs = run_trl({"loss_type": "sapo"}, batch, stats)
    assert differ(run_ours(preset("sapo"), batch, stats), theirs, rtol=1e-9)
    assert_same(run_ours(preset("sapo"), batch, stats), theirs, rtol=1e-6)
    rewards = torch.linspace(0, 1, 8).double().square()
    theirs = score({"num_generations": 4}, draw(1, sequences=8)[0], rewards)["advantages"]
    ours = preset("grpo").advantage.estimate(rewards, torch.arange(8) // 4, torch.ones(8, 1).bool())
    assert 1e-9 < (ours / theirs - 1).abs().max() < 1e-7


@pytest.mark.parametrize("difference", trl_rows.DIFFERENCES, ids=lambda difference: difference.key)
def test_difference(difference):
    globals()[difference.key]()
