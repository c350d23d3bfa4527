"""Counts and statistics are those of the whole optimiser step, however TRL cuts it into micro-batches."""

from dataclasses import replace

import pytest
import torch

import holdfast
from holdfast import Batch, TokenStats
from holdfast.integrations.trl import whole_step
from holdfast.rollout.store import read_rollouts
from integrations.trl import runs

pytestmark = pytest.mark.filterwarnings("ignore")

EVERYTHING = holdfast.preset(
    "trm+sspo+clip_cov+kl_cov+entropy_bonus",
    **{
        "trm_max.delta": 2.0,
        "delta_avg": 0.05,
        "clip_share": 0.3,
        "clip_cov.low": 0.0,
        "share": 0.2,
        "alpha": 0.05,
        "target": 10.0,
    },
)
"""A mask on the engine, a pool, a drawn mask, a top share and a bonus that is on or off by the step's mean entropy."""


@pytest.mark.parametrize(
    "objective", [EVERYTHING, EVERYTHING.with_(**{"normalize.over": "accepted"})], ids=["all", "accepted"]
)
def test_micro_batches_change_no_gradient(objective, tmp_path):
    gradients = []
    for size, count in ((8, 1), (4, 2), (2, 4)):
        seen = runs.Gradients()
        settings = {
            "per_device_train_batch_size": size,
            "gradient_accumulation_steps": count,
            "num_iterations": 2,
            "max_steps": 2,
        }
        trainer = runs.mismatched(
            runs.Mismatched, tmp_path / str(size), settings=settings, objective=objective, callbacks=[seen]
        )
        trainer.train()
        masked = runs.logged(trainer, "trust_region/rejected_tokens")
        assert all(0.1 < share < 1 for share in masked), masked
        gradients.append(seen.steps)
    for other in gradients[1:]:
        for whole, split in zip(gradients[0], other, strict=True):
            assert (split - whole).norm() <= 2e-5 * whole.norm()


@pytest.mark.parametrize("step", [1, 2])
def test_gradient_is_the_objectives_own(step, tmp_path):
    """The gradient of a step against one call of the objective on everything that was recorded of it.

    Two steps are trained from one generation, with learning rate 0, so that the weights are known.
    """
    seen = runs.Gradients()
    base = runs.model()
    with torch.no_grad():
        for parameter in base.parameters():
            parameter.mul_(8 if parameter.ndim == 2 else 1)  # far from linear, so that int8 shows
    changes = {"trm_max.delta": 5e-4, "clip_share": 0.3, "clip_cov.low": 0.0, "share": 0.2}
    objective = holdfast.preset("trm+sspo+clip_cov+kl_cov", **changes)
    settings = {"max_steps": 2, "steps_per_generation": 4, "learning_rate": 0.0}
    runs.mismatched(
        runs.Mismatched, tmp_path, base=base, settings=settings, objective=objective, callbacks=[seen]
    ).train()
    records = list(read_rollouts(runs.recorded(tmp_path) / f"step_{step:04d}.parquet"))
    assert len(records) == 8

    base.zero_grad()
    width = max(len(r.response_ids) for r in records)

    def table(name, fill=0.0):
        return torch.tensor([list(getattr(r, name)) + [fill] * (width - len(r.response_ids)) for r in records])

    rows = []
    for record in records:
        ids = torch.tensor([record.prompt_ids + record.response_ids])
        scores = base.forward(input_ids=ids).logits[0, len(record.prompt_ids) - 1 : -1].log_softmax(-1)
        chosen = scores.gather(1, torch.tensor(record.response_ids)[:, None])[:, 0]
        rows.append(torch.nn.functional.pad(chosen, (0, width - len(chosen))))
    logprobs = torch.stack(rows)
    batch = Batch(
        advantages=table("advantages"),
        response_mask=table("response_mask", False),
        old_logprobs=logprobs.detach(),
        rollout_logprobs=table("rollout_logprobs"),
        sequence_ids=torch.tensor([r.sequence_id for r in records]),
    )
    stats = TokenStats(logprobs=logprobs)
    out = objective(batch, stats, plan=objective.prepare(batch, stats.detach(), step=step - 1))
    out.loss.backward()
    expected = torch.cat([p.grad.flatten() for p in base.parameters()])
    assert 0 < out.metrics["masked_sequences"] < 1
    assert (seen.steps[step - 1] - expected).norm() <= 1e-4 * expected.norm()
    assert out.reasons["clip_cov"].any()
    assert [any(row) for row in out.trust_mask.tolist()] == [any(r.trust_mask) for r in records]


def test_extra_pass_is_saved_while_no_update_lies_between(tmp_path):
    settings = {"max_steps": 2, "num_iterations": 2}
    run = runs.mismatched(runs.Mismatched, tmp_path, settings=settings, objective="grpo+kl_cov")
    passes, score = [], run._score
    run._score = lambda model, inputs: (passes.append(torch.is_grad_enabled()), score(model, inputs))[1]
    run.train()
    # Step 1 trains on what TRL has just scored; before step 2 the weights moved, and both micro-batches are looked at.
    assert passes == [True, True, False, False, True, True]


def test_advantages_leave_out_the_unscored():
    # Group of 4 with rewards 1, 0, none, 0: mean 1/3, advantages without scaling 2/3, -1/3, 0 (unscored), -1/3.
    objective = holdfast.preset("dr_grpo", length=8)
    rewards = torch.tensor([1.0, 0.0, torch.nan, 0.0, 0.0, 0.0, 0.0, 0.0])
    advantages = whole_step.advantages_of(objective, rewards, 4, torch.ones(8, 2, dtype=torch.bool))
    expected = torch.tensor([2 / 3, -1 / 3, 0, -1 / 3, 0, 0, 0, 0])
    torch.testing.assert_close(advantages, expected[:, None].expand(8, 2))
    nothing = whole_step.advantages_of(objective, rewards[2:3], 1, torch.ones(1, 2, dtype=torch.bool))
    assert nothing.tolist() == [[0, 0]]


def test_objectives_advantages_replace_trls(tmp_path):
    trainer = runs.mismatched(
        runs.Mismatched, tmp_path, settings={"max_steps": 1}, objective=replace(holdfast.preset("rloo"))
    )
    trainer.train()
    records = sorted(read_rollouts(runs.recorded(tmp_path) / "step_0001.parquet"), key=lambda r: r.sequence_id)
    rewards = torch.tensor([r.reward for r in records]).view(2, 4)
    # Leave one out: R_i - (sum - R_i) / 3.
    expected = rewards - (rewards.sum(1, keepdim=True) - rewards) / 3
    actual = torch.tensor([r.advantages[0] for r in records]).view(2, 4)
    torch.testing.assert_close(actual, expected)
    assert [r.group_id for r in records] == [0, 0, 0, 0, 1, 1, 1, 1]
    assert len({r.prompt_ids for r in records[:4]}) == 1
