"""verl 0.9.1 as an oracle: values and gradients of its registered losses, in float64."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from holdfast import preset
from holdfast.core.entropy import token_covariance
from holdfast.objectives.parts.masks import TrmMax
from holdfast.objectives.parts.penalties import Kl, KlCov
from holdfast.objectives.parts.token_masks import Dppo
from holdfast.objectives.parts.weights import ImportanceWeight
from oracles import verl_rows
from oracles.draws import assert_same, differ, draw, per_sequence, run_ours
from oracles.rows import BATCHES
from oracles.verl_peer import advantages, core_algos, correction, run_penalty, run_verl


def named(rows):
    return {"argvalues": rows, "ids": [row.name for row in rows]}


def drawn(row, seed):
    """A batch for this row: the losses that need one advantage per sequence get one."""
    batch, stats = draw(seed, min_tokens=row.min_tokens, widest=row.widest)
    return (per_sequence(batch) if row.options.get("loss_mode") == "geo_mean" else batch), stats


def cut_among_equals(batch, stats, share):
    """Whether the top tokens by covariance end between equal ones: verl takes those that topk takes, we draw."""
    mask = batch.response_mask
    advantages = batch.advantages if batch.advantages.ndim == 2 else batch.advantages[:, None].expand(mask.shape)
    ordered = token_covariance(stats.logprobs.detach(), advantages, mask)[mask].sort(descending=True).values
    count = int(share * len(ordered) + 1e-9)
    return 0 < count < len(ordered) and bool(ordered[count - 1] == ordered[count])


def both(row, batch, stats):
    """(ours, theirs) for one row; None where verl has no answer because nothing was kept, or none but by chance."""
    if "kl_cov_ratio" in row.settings and cut_among_equals(batch, stats, row.settings["kl_cov_ratio"]):
        return None
    survivors = row.options.get("survivors", False)
    try:
        theirs = run_verl(row.options["loss_mode"], dict(row.settings), batch, stats, survivors=survivors)
    except ZeroDivisionError:
        return None
    if survivors and theirs[0].isnan():
        return None
    return run_ours(row.objective, batch, stats), theirs


@pytest.mark.parametrize("row", **named(verl_rows.ROWS))
def test_loss_and_gradient_are_the_same(row):
    compared = 0
    for seed in range(BATCHES):
        batch, stats = drawn(row, seed)
        if (results := both(row, batch, stats)) is not None:
            assert_same(*results, size=float(batch.advantages.abs().max()))
            compared += 1
    assert compared >= 0.6 * BATCHES


@pytest.mark.parametrize("row", **named(verl_rows.PENALTIES))
def test_penalty_and_gradient_are_the_same(row):
    for seed in range(BATCHES):
        batch, stats = draw(seed, widest=row.widest)
        batch = replace(batch, advantages=torch.zeros(len(batch.response_mask)).double())
        assert_same(run_ours(row.objective, batch, stats), run_penalty(dict(row.settings), batch, stats))


@pytest.mark.parametrize("row", **named(verl_rows.MASKS))
def test_the_same_tokens_are_kept(row):
    shares = []
    for seed in range(2 * BATCHES):
        batch, stats = draw(seed, widest=row.widest)
        _, theirs = correction(dict(row.settings), stats.logprobs, batch.rollout_logprobs, batch.response_mask)
        ours = row.objective(batch, stats).trust_mask
        assert torch.equal(ours, theirs.bool())
        shares.append(ours.sum() / batch.response_mask.sum())
    assert 0.1 < torch.stack(shares).mean() < 0.9, "a threshold that splits no batch proves nothing"


@pytest.mark.parametrize("row", **named(verl_rows.ADVANTAGES))
def test_advantages_are_the_same(row):
    for seed in range(BATCHES):
        g = torch.Generator().manual_seed(seed)
        groups = torch.tensor([0, 0, 1, 1, 1, 2, 2, 2, 2, 2])[torch.randperm(10, generator=g)]
        batch, _ = draw(seed, sequences=10, min_tokens=16)
        rewards = (
            torch.randn(10, generator=g).double() if seed % 2 else torch.randint(0, 2, (10,), generator=g).double()
        )
        mask = batch.response_mask
        values = 1000 * torch.randn(mask.shape, generator=g).double()
        if row.note:
            rewards = 1000 * rewards
            # float32 holds 129/128 exactly
            chosen = torch.rand(mask.shape, generator=g).masked_fill(~mask, -1).flatten().topk(129).indices
            mask = torch.zeros(mask.numel(), dtype=torch.bool).scatter(0, chosen, True).view_as(mask)
        theirs = torch.where(mask, advantages(row.name, rewards, groups, mask, values, **row.settings), 0)
        ours = row.objective.estimate_advantages(rewards, groups, mask, values)
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9 * float(theirs.abs().max()))


def test_the_optimal_token_baseline_is_the_same():
    """Its masks have no holes here: verl's lengths count tokens, its places columns."""
    for seed in range(BATCHES):
        batch, stats = draw(seed, sequences=10, min_tokens=3)
        g = torch.Generator().manual_seed(seed)
        groups = torch.tensor([0, 0, 1, 1, 1, 2, 2, 2, 2, 3])[torch.randperm(10, generator=g)]
        mask = torch.arange(batch.response_mask.shape[1]) < batch.response_mask.sum(-1, keepdim=True)
        rewards, squares = torch.randn(10, generator=g).double(), torch.rand(mask.shape, generator=g).double()
        last = mask & (mask.cumsum(-1) == mask.sum(-1, keepdim=True))
        theirs, _ = core_algos.compute_optimal_token_baseline_advantage(
            token_level_rewards=last * rewards[:, None], response_mask=mask, index=np.array(groups.tolist()),
            old_log_probs=stats.logprobs, sum_pi_squared=squares,
        )  # fmt: skip
        norms = 1 - 2 * stats.logprobs.exp() + squares
        ours = preset("otb").estimate_advantages(rewards, groups, mask, score_norms=norms)
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9 * float(theirs.abs().max()))


CLIP = {"clip_ratio_low": 0.2, "clip_ratio_high": 0.2, "loss_agg_mode": "token-mean"}
MEAN = CLIP | {"loss_agg_mode": "seq-mean-token-mean"}


def wide(**options):
    """A batch of moderate drift with one advantage per sequence, none zero, and ragged lengths."""
    batch, stats = draw(5, sequences=6, **({"min_tokens": 4} | options))
    signs = torch.tensor([1.0, -1.0, 0.5, -0.5, 2.0, -2.0]).double()
    return replace(batch, advantages=signs), stats


def one_token(ratio):
    """One sequence of one token with this ratio θ/rollout = θ/old = θ/ref and A = −1."""
    batch, stats = draw(0, sequences=1)
    mask = torch.zeros_like(batch.response_mask)
    mask[0, 0] = True
    logprobs = torch.full_like(stats.logprobs, -9)
    other = logprobs - torch.tensor(ratio).double().log()
    advantages = -torch.ones(1).double()
    batch = replace(
        batch,
        advantages=advantages,
        response_mask=mask,
        old_logprobs=other,
        rollout_logprobs=other,
        ref_logprobs=other,
    )
    return batch, replace(stats, logprobs=logprobs)


def mean_epsilon():
    losses, mask = torch.tensor([[0.75, 0.5]]).double(), torch.tensor([[1, 0]])
    assert core_algos.agg_loss(losses, mask, "seq-mean-token-mean") == 0.75
    theirs = core_algos.agg_loss(losses, mask.double(), "seq-mean-token-mean")
    torch.testing.assert_close(theirs, torch.tensor(0.75).double() / (1 + 1e-8), rtol=1e-12, atol=0)


def whiten_epsilon():
    mask = torch.ones(4, 2).bool()
    rewards = 1e-3 * torch.tensor([1.0, 2.0, 3.0, 5.0]).double()
    theirs = advantages("reinforce_plus_plus", rewards, rewards.long(), mask, rewards[:, None].expand(4, 2))
    ours = preset("reinforce_pp").estimate_advantages(rewards, torch.arange(4), mask)
    deviation = rewards.repeat_interleave(2).std()
    factor = (deviation + 1e-8) / (deviation.square() + 1e-8).sqrt()
    assert abs(factor - 1) > 1e-4
    torch.testing.assert_close(factor * ours, theirs, rtol=1e-6, atol=1e-9)


def dppo_kl_epsilon():
    batch, stats = one_token(1.0)
    batch = replace(batch, advantages=torch.ones(1).double(), old_logprobs=torch.full_like(stats.logprobs, -2e-8))
    stats = replace(stats, logprobs=torch.full_like(stats.logprobs, -1e-12))
    settings = MEAN | {"clip_ratio_low": 1e-7, "clip_ratio_high": 1e-7}
    objective = preset("dppo_kl", max_divergence=1e-7, denominator="old", policy="old")
    assert run_verl("dppo_kl", settings, batch, stats)[1].any()
    assert not run_ours(objective, batch, stats)[1].any()


def groups_of_one():
    rewards, groups, mask = torch.tensor([3.0]).double(), torch.tensor([0]), torch.ones(1, 2).bool()
    values = torch.zeros(1, 2).double()
    assert advantages("rloo", rewards, groups, mask, values).tolist() == [[3.0, 3.0]]
    assert advantages("grpo", rewards, groups, mask, values)[0, 0].item() == pytest.approx(3, rel=1e-5)
    assert not advantages("rloo_vectorized", rewards, groups, mask, values).any()
    for name in ("rloo", "grpo"):
        assert not preset(name).estimate_advantages(rewards, groups, mask).any()


def clip_ratio_alone():
    batch, stats = wide(widest=2.0)
    theirs = run_verl("vanilla", {"clip_ratio": 0.5}, batch, stats)
    assert_same(run_ours(preset("ppo"), batch, stats), theirs)
    assert differ(run_ours(preset("ppo", low=0.5, high=0.5), batch, stats), theirs)


def dppo_cap():
    batch, stats = one_token(10.0)
    objective = preset("dppo_tv", denominator="old", policy="old")
    for cap, settings in ((3.0, CLIP), (20.0, CLIP | {"clip_ratio_c": 20.0})):
        assert_same(run_ours(objective.with_(high=cap), batch, stats), run_verl("dppo_tv", settings, batch, stats))


def dppo_thresholds():
    batch, stats = wide(widest=2.0)
    settings = CLIP | {"clip_ratio_low": 0.02, "clip_ratio_high": 0.3, "clip_ratio_c": 20.0}
    theirs = run_verl("dppo_tv", settings, batch, stats)
    gradients = {}
    for threshold in (0.02, 0.3):
        objective = preset("dppo_tv", masks=(Dppo(threshold, policy="old"),), denominator="old")
        gradients[threshold] = run_ours(objective, batch, stats)[1]
        assert not torch.allclose(gradients[threshold], theirs[1])
    chosen = torch.where(batch.advantages[:, None] > 0, gradients[0.3], gradients[0.02])
    torch.testing.assert_close(chosen, theirs[1])


def gspo_limit():
    batch, stats = one_token(float(torch.tensor(12.0).exp()))
    assert not run_verl("gspo", MEAN, batch, stats)[1].any()
    assert run_ours(preset("gspo_token"), batch, stats)[1].any()


def unlimited():
    batch, stats = wide()
    batch = replace(batch, old_logprobs=stats.logprobs - 800)
    for loss, ours in (("clip_cov", "clip_cov"), ("kl_cov", "kl_cov")):
        assert not run_verl(loss, CLIP, batch, stats)[0].isfinite()
        assert run_ours(preset(ours), batch, stats)[0].isfinite()
    wide_clip = CLIP | {"clip_ratio_low": 0.4, "clip_ratio_high": 0.4}
    assert not run_verl("geo_mean", wide_clip, batch, stats)[0].isfinite()
    assert run_ours(preset("gmpo"), batch, stats)[0].isfinite()


def in_pieces(loss, settings, batch, stats, size):
    """verl's gradient from micro-batches of `size` rows, each told the counts of the whole step."""
    whole = {"batch_num_tokens": batch.response_mask.sum(), "global_batch_size": len(batch.response_mask)}
    pieces = []
    for rows in torch.arange(len(batch.response_mask)).split(size):
        pieces.append(run_verl(loss, settings, batch.select(rows), stats.select(rows), whole=whole)[1])
    return torch.cat(pieces)


def geo_mean_micro_batches():
    batch, stats = wide()
    settings = CLIP | {"clip_ratio_low": 0.4, "clip_ratio_high": 0.4}
    whole = run_verl("geo_mean", settings, batch, stats)[1]
    for size in (1, 2, 3):
        torch.testing.assert_close(in_pieces("geo_mean", settings, batch, stats, size), 6 / size * whole)
    torch.testing.assert_close(in_pieces("vanilla", CLIP, batch, stats, 2), run_verl("vanilla", CLIP, batch, stats)[1])
    assert_same(run_verl("geo_mean", settings | {"loss_agg_mode": "token-sum"}, batch, stats)[1:], (whole, 0 * whole))


def cov_micro_batches():
    batch, stats = wide()
    everywhere = {"clip_cov_lb": -100.0, "clip_cov_ub": 100.0, "clip_ratio_low": 1.0, "clip_ratio_high": 100.0}
    silenced = {}
    for size in (6, 1):
        gradient = in_pieces("clip_cov", CLIP | everywhere, batch, stats, size)
        silenced[size] = int((batch.response_mask & (gradient == 0)).sum())
    assert silenced == {6: 1, 1: 6}
    objective = preset("clip_cov", **{"clip_cov.low": -100.0, "clip_cov.high": 100.0})
    assert objective(batch, stats).trust_mask.equal(batch.response_mask)
    parts = in_pieces("kl_cov", CLIP | {"kl_cov_ratio": 0.2}, batch, stats, 1)
    assert not torch.allclose(parts, run_verl("kl_cov", CLIP | {"kl_cov_ratio": 0.2}, batch, stats)[1])


def clip_cov_draw():
    batch, stats = wide(widest=0.5)
    settings = CLIP | {"clip_cov_ratio": 0.2, "clip_cov_lb": 0.1, "clip_cov_ub": 3.0}
    objective = preset("clip_cov", clip_share=0.2, **{"clip_cov.low": 0.1, "clip_cov.high": 3.0})
    mask, advantage = batch.response_mask, batch.advantages[:, None].expand(batch.response_mask.shape)
    ratio = stats.logprobs - batch.old_logprobs
    silent = ((advantage > 0) & (ratio.exp() > 1.2)) | ((advantage < 0) & (ratio.exp() < 0.8))
    covariance = token_covariance(stats.logprobs, advantage, mask)
    eligible = (mask & ~silent & (covariance > 0.1) & (covariance < 3.0)).nonzero()
    gradients = []
    for seed in range(4):
        torch.manual_seed(seed)
        gradients.append(run_verl("clip_cov", settings, batch, stats)[1])
        torch.manual_seed(seed)
        drawn = eligible[torch.randperm(len(eligible))[: int(0.2 * mask.sum())]]
        chosen = torch.zeros_like(mask).index_put((drawn[:, 0], drawn[:, 1]), torch.tensor(True))
        plan = replace(objective.prepare(batch, stats), prepared=(chosen,))
        torch.testing.assert_close(run_ours(objective, batch, stats, plan)[1], gradients[-1], rtol=1e-9, atol=1e-13)
    assert not torch.equal(gradients[0], gradients[1])


def kl_cov_on_policy():
    batch, stats = wide()
    batch = replace(batch, old_logprobs=stats.logprobs)
    settings = CLIP | {"kl_cov_ratio": 0.3}
    reinforce = run_ours(preset("reinforce"), batch, stats)[1]
    torch.testing.assert_close(run_verl("kl_cov", settings, batch, stats)[1], reinforce)
    noisy = replace(batch, old_logprobs=stats.logprobs + 1e-9 * torch.randn(stats.logprobs.shape).double())
    default, one = (run_verl("kl_cov", settings | coef, noisy, stats)[1] for coef in ({}, {"ppo_kl_coef": 1.0}))
    torch.testing.assert_close((one - reinforce).abs().max(), 1 / batch.response_mask.sum().double(), rtol=1e-6, atol=0)
    torch.testing.assert_close(10 * (default - reinforce), one - reinforce, rtol=1e-5, atol=1e-8)
    smooth = run_ours(preset("kl_cov", share=0.3), noisy, stats)[1]
    torch.testing.assert_close(smooth, reinforce, rtol=1e-6, atol=1e-8)
    assert KlCov().form == "k2"


def weights_and_penalties():
    batch, stats = wide()
    settings = CLIP | {"dro_beta": 0.3, "rollout_is": "token", "rollout_is_threshold": 2.0}
    theirs = run_verl("dro", settings, batch, stats)
    assert differ(run_ours(preset("dro+tis", coefficient=0.3), batch, stats), theirs)
    weight = ImportanceWeight(high=2.0)
    without = replace(batch, advantages=torch.zeros(6).double())
    penalty = run_ours(preset("dro", coefficient=0.3), without, stats)[1]
    weights, _ = correction(settings, batch.old_logprobs, batch.rollout_logprobs, batch.response_mask)
    policy = run_ours(preset("reinforce", weights=(weight,)), batch, stats)[1]
    torch.testing.assert_close(policy + weights * penalty, theirs[1])


def geo_mean_weights():
    batch, stats = wide(widest=0.3, min_tokens=64)
    clip = CLIP | {"clip_ratio_low": 0.4, "clip_ratio_high": 0.4}
    for cap, same in ((100.0, True), (1.1, False)):
        settings = clip | {"rollout_is": "token", "rollout_is_threshold": cap}
        objective = preset("gmpo", weights=(ImportanceWeight(high=cap, over="sequence_mean"),))
        ours = run_ours(objective, batch, stats)
        assert differ(ours, run_verl("geo_mean", settings, batch, stats)) != same


def sapo_aggregation():
    batch, stats = wide()
    theirs = run_verl("sapo", MEAN, batch, stats)
    assert_same(run_verl("sapo", CLIP, batch, stats), theirs)
    assert differ(run_ours(preset("sapo", **{"normalize.reduction": "token_mean"}), batch, stats), theirs)


def kl_limit():
    for ratio, limited in ((1 / 12, False), (1 / 14, True)):
        batch, stats = one_token(ratio)
        batch = replace(batch, advantages=torch.zeros(1).double())
        settings = {"kl_loss_coef": 1.0, "entropy_coeff": 0.0, "loss_agg_mode": "token-mean", "kl_loss_type": "k3"}
        assert bool(run_penalty(settings, batch, stats)[1].any()) != limited
        assert run_ours(preset("grpo", penalties=(Kl(1.0),)), batch, stats)[1].any()


def kl_straight_through():
    batch, stats = wide(widest=2.0)
    batch = replace(batch, advantages=torch.zeros(6).double())
    settings = {"kl_loss_coef": 1.0, "entropy_coeff": 0.0, "loss_agg_mode": "token-mean"}
    theirs = run_penalty(settings | {"kl_loss_type": "k3+"}, batch, stats)
    torch.testing.assert_close(theirs[0], run_ours(preset("clip_higher", penalties=(Kl(1.0, "k3"),)), batch, stats)[0])
    torch.testing.assert_close(theirs[1], run_ours(preset("clip_higher", penalties=(Kl(1.0, "k2"),)), batch, stats)[1])


def kept(option, threshold, ratio):
    """Whether verl keeps a token of this ratio θ/rollout."""
    batch, stats = one_token(ratio)
    settings = {"rollout_rs": option, "rollout_rs_threshold": threshold}
    return bool(correction(settings, stats.logprobs, batch.rollout_logprobs, batch.response_mask)[1][0, 0])


def k1_direction():
    assert kept("token_k1", "0.5_1.2", 1.5) and not kept("token_k1", "0.5_1.2", 0.667)


def k2_threshold():
    assert kept("seq_max_k2", "2.5", 9.35) and not kept("seq_max_k2", "2.5", 9.36)
    assert TrmMax().delta == 0.05
    assert kept("seq_max_k2", "0.05", 1.37) and not kept("seq_max_k2", "0.05", 1.38)


def everything_rejected():
    batch, stats = one_token(9.0)
    settings = CLIP | {"rollout_rs": "seq_max_k2", "rollout_rs_threshold": "0.1"}
    assert run_verl("bypass_mode", settings, batch, stats, survivors=True)[0].isnan()
    assert run_ours(preset("trm_max+ppo", **{"normalize.over": "accepted"}), batch, stats)[0] == 0
    batch = replace(batch, old_logprobs=stats.logprobs)
    with pytest.raises(ZeroDivisionError):
        run_verl("vanilla", CLIP | {"rollout_is": "token", "rollout_is_threshold": "0.5_5.0"}, batch, stats)
    assert run_ours(preset("ppo+icepop"), batch, stats)[0] == 0


def sums_of_k2_and_k3():
    batch, stats = wide(widest=0.3)
    for kind in ("k2", "k3"):
        settings = {"rollout_rs": f"seq_sum_{kind}", "rollout_rs_threshold": "0.2"}
        _, mask = correction(settings, stats.logprobs, batch.rollout_logprobs, batch.response_mask)
        drift = torch.where(batch.response_mask, stats.logprobs - batch.rollout_logprobs, 0)
        total = (drift.square() / 2 if kind == "k2" else drift.expm1() - drift).sum(-1, keepdim=True)
        assert torch.equal(mask.bool(), batch.response_mask & (total <= 0.2))


def baseline_then_whiten():
    rewards = torch.tensor([1.0, 2.0, 4.0, 0.0, 0.0, 3.0]).double()
    groups, mask = torch.arange(6) // 3, torch.ones(6, 2).bool()
    theirs = advantages("reinforce_plus_plus_baseline", rewards, groups, mask, torch.zeros(6, 2).double())
    for name in ("grpo", "dr_grpo", "reinforce_pp"):
        assert not torch.allclose(preset(name).estimate_advantages(rewards, groups, mask), theirs, rtol=1e-2)


@pytest.mark.parametrize("difference", verl_rows.DIFFERENCES, ids=lambda difference: difference.key)
def test_difference(difference):
    globals()[difference.key]()
