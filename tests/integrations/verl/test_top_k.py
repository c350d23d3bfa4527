"""Level 3: the bounds that top-K tokens prove, from packed logits as verl hands them over."""

import pytest
import torch
from tensordict import TensorDict

from holdfast import DataError, preset
from holdfast.core.divergences import exact_from_logits
from holdfast.integrations.verl import top_k as module
from holdfast.integrations.verl.gather import plan_of
from holdfast.integrations.verl.step import StepLoss, batch_of, stats_of
from holdfast.integrations.verl.top_k import top_k_bounds
from integrations.verl import batches

VOCABULARY = 50


def packed(rows, kept, seed=0, noise=0.5):
    """(student logits [1, N, V], data with the engine's top `kept` per response token, exact divergences [N])."""
    g = torch.Generator().manual_seed(seed)
    data = batches.batch(rows)
    tokens = len(data["input_ids"].values())
    student = 2 * torch.randn(tokens, VOCABULARY, generator=g)
    engine = student + noise * torch.randn(student.shape, generator=g)
    top = engine.log_softmax(-1).topk(kept)
    # verl aligns row i with token i + 1; the last token of a sequence and all but the last of a prompt know nothing
    known = torch.cat([place(row) for row in rows])[:, None]
    data["teacher_ids"] = jagged(torch.where(known, top.indices, 0), data)
    data["teacher_logprobs"] = jagged(torch.where(known, top.values, 0.0), data)
    return student[None], data, known[:, 0], exact_from_logits(student, engine)


def place(row):
    known = torch.ones(len(row.prompt) + len(row.response), dtype=torch.bool)
    known[: len(row.prompt) - 1] = known[-1] = False
    return known


def jagged(values, data):
    return torch.nested.nested_tensor_from_jagged(values, data["input_ids"].offsets())


@pytest.mark.parametrize("kept", [1, 8, VOCABULARY])
def test_bounds_enclose_the_exact_divergence(kept, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 7)
    student, data, known, exact = packed(batches.sequences(), kept)
    found = {name: value[0] for name, value in top_k_bounds(student, data).items()}
    assert (found["kl_rollout_lower"][known] <= exact.kl.value[known] + 1e-5).all()
    assert (found["tv_rollout_lower"][known] <= exact.tv.value[known] + 1e-5).all()
    assert (found["tv_rollout_upper"][known] >= exact.tv.value[known] - 1e-5).all()
    assert not found["kl_rollout_lower"][~known].any() and (found["tv_rollout_upper"][~known] == 1).all()
    if kept == VOCABULARY:
        torch.testing.assert_close(found["kl_rollout_lower"][known], exact.kl.value[known], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(found["tv_rollout_upper"][known], exact.tv.value[known], rtol=1e-3, atol=1e-4)
    else:
        assert (found["tv_rollout_upper"] - found["tv_rollout_lower"])[known].min() > 1e-3


@pytest.mark.parametrize("row", ["trm_max", "trm_prefix", "trm_token"])
def test_the_mask_decides_by_the_bounds_of_its_own_tokens(row):
    rows = batches.sequences()
    student, data, _, exact = packed(rows, 40)
    whole = batch_of(data)
    output = batches.outputs(rows)
    tv = [
        exact.tv.value[a:b]
        for a, b in zip(*(data["input_ids"].offsets()[i:][: len(rows)] for i in (0, 1)), strict=True)
    ]
    worst = torch.stack([(t[len(r.prompt) - 1 : -1] * r.mask).max() for t, r in zip(tv, rows, strict=True)])
    delta = float(worst.median()) + 0.02
    objective = preset(f"{row}+sspo+kl_cov", detector="tv_upper", delta=delta, share=0.2)
    loss = StepLoss(objective, plan_of(objective, whole, stats_of(output, data), 0, None), ranks=1, recording=True)
    bounds = loss(student_logits=student, data=data)
    for name, value in bounds.items():
        output[name] = jagged(value[0], data)
    loss(model_output=output, data=data)
    (_, _, stats, out) = loss.seen[0]
    outside = stats.tv_rollout_upper.masked_fill(~whole.response_mask, 0) > delta
    if row != "trm_max":
        gone = outside if row == "trm_token" else outside.cumsum(dim=1) > 0
        assert torch.equal(out.trust_mask, whole.response_mask & ~gone)
        assert (out.trust_mask.any(dim=1) & gone.any(dim=1)).any(), "some sequence is kept in part"
        return
    kept = out.trust_mask.any(dim=1)
    assert torch.equal(kept, ~outside.any(dim=1))
    # what is kept is certified: its true TV is below the threshold; something is kept and something is not
    assert (worst[kept] <= delta).all() and kept.any() and not kept.all()


def test_a_rollout_without_its_top_k_is_named():
    rows = batches.sequences()
    student, data, _, _ = packed(rows, 4)
    bare = TensorDict({"input_ids": data["input_ids"]}, batch_size=len(rows))
    with pytest.raises(DataError, match=r"top_k = true, but the rollout returned no top-K: .*teacher_ids"):
        top_k_bounds(student, bare)
    with pytest.raises(DataError, match="the rollout's top-K covers"):
        top_k_bounds(student[:, :-1], data)


def test_no_gradient_reaches_the_logits():
    student, data, _, _ = packed(batches.sequences(), 4)
    assert not any(value.requires_grad for value in top_k_bounds(student.requires_grad_(), data).values())
