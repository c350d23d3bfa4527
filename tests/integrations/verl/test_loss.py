"""Level 1: what `register_policy_loss` gives verl, next to verl's own loss."""

from types import SimpleNamespace

import pytest
import torch
from verl.trainer.ppo import core_algos
from verl.workers.config import DistillationLossConfig, PolicyLossConfig

from holdfast import ConfigError, DataError, list_presets, preset
from holdfast.integrations.verl.config import loss_config
from holdfast.integrations.verl.loss import policy_loss
from integrations.verl.batches import actor, sequences
from integrations.verl.steps import in_micro_batches


def padded(rows, name):
    return torch.nested.as_nested_tensor([getattr(r, name) for r in rows], layout=torch.jagged).to_padded_tensor(0)


def call(function, config, rows, advantages=None, weights=None):
    """(loss, gradient of each row's log-probabilities, metrics)."""
    logprobs = padded(rows, "logprobs").requires_grad_()
    mask = padded(rows, "mask").bool()
    loss, metrics = function(
        old_log_prob=padded(rows, "old"),
        log_prob=logprobs,
        advantages=torch.stack([r.advantage for r in rows])[:, None] * mask if advantages is None else advantages,
        response_mask=mask,
        loss_agg_mode=config.loss_agg_mode,
        config=config,
        rollout_is_weights=weights,
    )
    (gradient,) = torch.autograd.grad(loss, logprobs)
    return loss.detach(), gradient, metrics


def whole(rows):
    return {"dp_size": 1, "batch_num_tokens": sum(int(r.mask.sum()) for r in rows), "global_batch_size": len(rows)}


def test_every_name_is_registered():
    registered = {name for name in core_algos.POLICY_LOSS_REGISTRY if name.startswith("holdfast")}
    assert registered == {"holdfast", *(f"holdfast_{row}" for row in list_presets())}
    assert all(core_algos.POLICY_LOSS_REGISTRY[name] is policy_loss for name in registered)


def test_ppo_is_verls_vanilla_loss():
    rows = sequences(drift=0.6)
    info = {"global_batch_info": whole(rows)}
    ours = call(policy_loss, actor("holdfast_ppo", **info), rows)
    theirs = call(core_algos.compute_policy_loss_vanilla, actor("vanilla", **info), rows)
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(ours[1], theirs[1], rtol=1e-6, atol=1e-8)
    assert ours[2]["actor/ppo_kl"] == pytest.approx(theirs[2]["actor/ppo_kl"], rel=1e-5)
    assert 0.1 < theirs[2]["actor/pg_clipfrac"] < 0.9


def test_verls_clip_fractions_are_verls():
    """Tokens with A = 0 and a ratio outside the clip, and the dual clip, which verl counts apart."""
    rows = sequences(count=12, drift=0.9)
    for row in rows[::3]:
        row.advantage = torch.tensor(0.0)
    info = {"global_batch_info": whole(rows)}
    ours = call(policy_loss, actor("holdfast_ppo", **info), rows)[2]
    dual = {"loss_mode": "holdfast_ppo", "settings": {"dual": 1.5}}
    with_dual = call(policy_loss, actor(dual, **info), rows)[2]
    theirs = call(core_algos.compute_policy_loss_vanilla, actor("vanilla", clip_ratio_c=1.5, **info), rows)[2]
    assert theirs["actor/pg_clipfrac_lower"] > 0.02
    for name in ("actor/pg_clipfrac", "actor/pg_clipfrac_lower"):
        assert with_dual[name] == pytest.approx(theirs[name], abs=1e-6), name
    assert ours["actor/pg_clipfrac"] == pytest.approx(theirs["actor/pg_clipfrac"], abs=1e-6)
    assert ours["actor/holdfast/clip_share"] > ours["actor/pg_clipfrac"] + 0.05
    step = in_micro_batches(preset("ppo", dual=1.5), rows, [[0, 1, 2, 3], list(range(4, 12))])[2]
    for name in ("actor/pg_clipfrac", "actor/pg_clipfrac_lower"):
        assert step[name] == pytest.approx(theirs[name], abs=1e-6), name
    soft = call(policy_loss, actor("holdfast_sspo", **info), rows)[2]
    assert "actor/pg_clipfrac" not in soft and "actor/holdfast/clip_share" in soft


def test_a_distillation_that_calls_our_loss_is_refused_by_name():
    fields = DistillationLossConfig.__dataclass_fields__
    assert "policy_loss_mode" in fields and "policy_loss" not in fields
    config = SimpleNamespace(policy_loss_mode="holdfast_ppo")  # as verl's DistillationLossConfig has it
    with pytest.raises(ConfigError, match="policy_loss_mode = holdfast_ppo: verl's distillation calls this loss"):
        loss_config(config)


@pytest.mark.parametrize("row", ["ppo", "grpo", "dr_grpo", "sspo", "cispo"])
def test_micro_batches_and_ranks_add_up(row):
    rows = sequences()
    loss, gradient, _ = call(policy_loss, actor(f"holdfast_{row}", global_batch_info=whole(rows)), rows)
    # verl averages the gradient over the ranks: with 2 of them each share counts double.
    split = actor(f"holdfast_{row}", global_batch_info=whole(rows) | {"dp_size": 2})
    parts = [call(policy_loss, split, rows[a:b]) for a, b in ((0, 1), (1, 4), (4, 6))]
    torch.testing.assert_close(sum(part[0] for part in parts) / 2, loss)
    width = gradient.shape[1]
    pieces = [torch.nn.functional.pad(part[1] / 2, (0, width - part[1].shape[1])) for part in parts]
    torch.testing.assert_close(torch.cat(pieces), gradient)


def test_rollout_weights_multiply_every_tokens_term():
    rows = sequences()
    config = actor("holdfast_ppo", global_batch_info=whole(rows))
    weights = torch.rand(padded(rows, "old").shape) + 0.5
    theirs = actor("vanilla", global_batch_info=whole(rows))
    ours = call(policy_loss, config, rows, weights=weights)
    expected = call(core_algos.compute_policy_loss_vanilla, theirs, rows, weights=weights)
    torch.testing.assert_close(ours[1], expected[1], rtol=1e-6, atol=1e-8)
    assert not torch.allclose(ours[1], call(policy_loss, config, rows)[1])


def test_a_trust_region_needs_the_rollout_or_bypass_mode():
    rows = sequences()
    with pytest.raises(ConfigError, match="'trm' needs rollout_logprobs: verl hands a policy loss none"):
        call(policy_loss, actor("holdfast_trm", global_batch_info=whole(rows)), rows)
    settings = {"loss_mode": "holdfast_trm_max", "bypass_mode": True, "settings": {"delta": 0.02}}
    _, gradient, metrics = call(policy_loss, actor(settings, global_batch_info=whole(rows)), rows)
    # k2 = (log θ − log old)²/2 at most .02 on every sampled token, old being the rollout.
    drift = ((padded(rows, "logprobs") - padded(rows, "old")).square() / 2).masked_fill(~padded(rows, "mask").bool(), 0)
    kept = drift.amax(dim=1) <= 0.02
    assert kept.tolist() == gradient.any(dim=1).tolist()
    assert metrics["actor/holdfast/masked_sequences"] == pytest.approx(1 - kept.float().mean().item())


def test_whole_step_statistics_of_a_part_of_the_step_are_refused():
    rows = sequences()
    config = actor("holdfast_kl_cov", global_batch_info=whole(rows))
    call(policy_loss, config, rows)
    with pytest.raises(ConfigError, match="level 1: 'kl_cov': kl_cov looks at the whole optimiser step"):
        call(policy_loss, config, rows[:3])


def test_metrics_are_means_of_the_micro_batch():
    rows = sequences(drift=0.3)
    settings = {"loss_mode": "holdfast_trm_max", "bypass_mode": True, "settings": {"delta": 0.1}}
    part = rows[:3]
    _, _, metrics = call(policy_loss, actor(settings, global_batch_info=whole(rows)), part)
    alone = call(policy_loss, actor(settings, global_batch_info=whole(part)), part)[2]
    assert metrics == pytest.approx(alone)
    assert 0 < metrics["actor/holdfast/masked_sequences"] < 1
    assert not [name for name in metrics if name.endswith("_max") or "_q1" in name]


def test_a_rejected_micro_batch_warns_and_has_no_gradient(caplog):
    rows = sequences(drift=3.0)
    settings = {"loss_mode": "holdfast_trm_max", "bypass_mode": True, "settings": {"delta": 1e-9}}
    loss, gradient, _ = call(policy_loss, actor(settings, global_batch_info=whole(rows)), rows)
    assert loss == 0 and not gradient.any()
    assert "rejects every token" in caplog.text


def test_nan_is_legal_on_tool_tokens_only():
    rows = sequences()
    config = actor("holdfast_ppo", global_batch_info=whole(rows))
    loss, gradient, _ = call(policy_loss, config, rows)
    rows[1].old = rows[1].old.masked_fill(rows[1].mask == 0, float("nan"))
    assert rows[1].old.isnan().any()
    again = call(policy_loss, config, rows)
    assert torch.equal(again[0], loss) and torch.equal(again[1], gradient)
    rows[2].old[0] = float("nan")
    with pytest.raises(DataError, match="old_logprobs is not finite at 1 response token, first at sequence 2, token 0"):
        call(policy_loss, config, rows)


def test_counts_of_several_ranks_cannot_be_guessed():
    rows = sequences()
    with pytest.raises(ConfigError, match="verl gave no counts of the step over 2 ranks"):
        call(policy_loss, actor("holdfast_ppo", global_batch_info={"dp_size": 2}), rows)
    alone = call(policy_loss, actor("holdfast_ppo", global_batch_info={}), rows)
    torch.testing.assert_close(
        alone[1], call(policy_loss, actor("holdfast_ppo", global_batch_info=whole(rows)), rows)[1]
    )


@pytest.mark.parametrize("option", [{"records": "/folder"}, {"baseline": "accepted"}, {"top_k": True}])
def test_options_of_a_higher_level_are_refused(option):
    rows = sequences()
    config = actor({"loss_mode": "holdfast_ppo", **option}, global_batch_info=whole(rows))
    with pytest.raises(ConfigError, match=rf"level 1: policy_loss.{next(iter(option))} would do nothing"):
        call(policy_loss, config, rows)


def test_settings_are_checked_when_the_config_is_made():
    with pytest.raises(ConfigError, match="low = -1"):
        actor({"loss_mode": "holdfast_ppo", "settings": {"low": -1.0}})
    with pytest.raises(ConfigError, match="baseline = 'some': allowed: all, accepted"):
        actor({"loss_mode": "holdfast_ppo", "baseline": "some"})
    actor({"loss_mode": "vanilla", "settings": {"low": -1.0}})


def test_verls_own_class_means_the_defaults_of_the_row():
    assert isinstance(actor("holdfast_ppo").policy_loss, PolicyLossConfig)
    with pytest.raises(ConfigError, match=r"policy_loss.objective, which is empty"):
        call(policy_loss, actor("holdfast", global_batch_info={}), sequences())


def test_records_are_an_absolute_folder():
    with pytest.raises(ConfigError, match="records = 'rollouts' must be an absolute folder that every node sees"):
        actor({"loss_mode": "holdfast_ppo", "records": "rollouts"})
