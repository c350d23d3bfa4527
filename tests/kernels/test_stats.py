"""Values of the head against hand-worked numbers, a float64 oracle and themselves."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.kernels import Chunked, Head, Tiling, lm_head_stats

WAYS = ["naive", "chunked", Chunked(Tiling(16, 64))]


@pytest.mark.parametrize("way", ["naive", "chunked"])
def test_hand_worked_numbers(way):
    # p = (1, 2, 5)/8 and p_r = (1, 1, 2)/4 over three tokens, token 1 sampled.
    current = torch.tensor([[1.0], [2.0], [5.0]]).log()
    rollout = torch.tensor([[1.0], [1.0], [2.0]]).log()
    stats = lm_head_stats(
        torch.ones(1, 1),
        current,
        torch.tensor([1]),
        rollout=(torch.ones(1, 1), rollout),
        outputs=("entropy", "sum_p2", "entropy_change", "kl_rollout", "tv_rollout", "chi2_rollout"),
        gather_ids=torch.tensor([[2, 0]]),
        implementation=way,
    )
    entropy = 3 * math.log(2) / 8 + 2 * math.log(4) / 8 + 5 * math.log(8 / 5) / 8
    # dH/dz_v = -p_v (log p_v + H); times (onehot - p): g_1 - Σ g_v p_v
    slope = [-p * (math.log(p) + entropy) for p in (1 / 8, 2 / 8, 5 / 8)]
    expected = {
        "logprobs": math.log(2 / 8),
        "entropy": entropy,
        "sum_p2": (1 + 4 + 25) / 64,
        "entropy_change": slope[1] - (slope[0] * 1 + slope[1] * 2 + slope[2] * 5) / 8,
        "kl_rollout": math.log(2) / 4 + 0 + math.log(4 / 5) / 2,  # Σ p_r log(p_r / p): ratios 2, 1, 4/5
        "tv_rollout": (1 / 8 + 0 + 1 / 8) / 2,
        "chi2_rollout": 1 / 16 + 1 / 4 + 25 / 32 - 1,  # Σ p²/p_r - 1
    }
    for name, value in expected.items():
        assert getattr(stats, name).item() == pytest.approx(value, rel=2e-6, abs=1e-7), name
    assert stats.gathered_logprobs.tolist()[0] == pytest.approx([math.log(5 / 8), math.log(1 / 8)])


@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("plain", [True, False])
def test_float64_is_the_oracle(tools, way, plain):
    case = tools.make_case(plain=plain).to(torch.float64)
    expected = tools.oracle(case)
    ids = torch.randint(301, (37, 4), generator=torch.Generator().manual_seed(1))
    found = lm_head_stats(
        case.hidden,
        case.head,
        case.targets,
        rollout=case.rollout,
        outputs=tools.ALL,
        gather_ids=ids,
        implementation=way,
        **case.settings,
    )
    for name in ("logprobs", *tools.ALL):  # their series ends where float32 does
        limit = 1e-8 if name.endswith("_rollout") else 1e-11
        assert tools.error(getattr(found, name), expected[name]) < limit, name
    assert tools.error(found.gathered_logprobs, expected["log_p"].gather(1, ids)) < 1e-13


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_float32_at_large_logits(way):
    # Multiples of 1/8 make every float32 GEMM exact: what is left is the error of the reductions.
    g = torch.Generator().manual_seed(6)
    hidden, weight = (torch.randint(-15, 16, (n, 40), generator=g) / 8 for n in (400, 3001))
    logits = hidden.double() @ weight.double().T
    assert 36 < logits.abs().max() <= 45
    targets = torch.multinomial(logits.softmax(dim=1), 1, generator=g)[:, 0]
    log_p = torch.log_softmax(logits, dim=1)
    found = lm_head_stats(hidden, weight, targets, implementation=way)
    assert (found.logprobs - log_p.gather(1, targets[:, None])[:, 0]).abs().max() <= 3e-6
    assert (found.entropy + (log_p.exp() * log_p).sum(dim=1)).abs().max() <= 3e-6


@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("drift", [2e-5, 1e-3, 0.05])
def test_kl_keeps_its_digits(tools, way, drift):
    case = tools.make_case(rows=64, width=64, vocabulary=5003, plain=True, drift=drift)
    expected = tools.oracle(case)
    found = lm_head_stats(
        case.hidden,
        case.head,
        case.targets,
        rollout=case.rollout,
        outputs=("kl_rollout", "tv_rollout", "chi2_rollout"),
        implementation=way,
    )
    if drift == 2e-5:
        assert 5e-11 < expected["kl_rollout"].median() < 3e-9
    for name in ("kl_rollout", "tv_rollout", "chi2_rollout"):
        assert (getattr(found, name) >= 0).all()
        relative = (getattr(found, name) - expected[name]).abs() / expected[name]
        assert relative.max() < (0.03 if drift == 2e-5 else 1e-3), name
    median = ((found.kl_rollout - expected["kl_rollout"]).abs() / expected["kl_rollout"]).median()
    assert median < 0.01


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_equal_policies_have_no_divergence(tools, way):
    case = tools.make_case()
    found = lm_head_stats(
        case.hidden,
        case.head,
        case.targets,
        rollout=(case.hidden, case.head),
        outputs=("kl_rollout", "tv_rollout", "chi2_rollout"),
        implementation=way,
        **case.settings,
    )
    assert found.kl_rollout.abs().max() == 0
    assert found.tv_rollout.abs().max() == 0
    assert found.chi2_rollout.abs().max() == 0


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_truncated_support(way):
    # The engine kept tokens 0 and 1 only: KL = Σ_kept p_r log(p_r/p), and χ² is infinite.
    logits = torch.log(torch.tensor([[0.25, 0.75, 0.0, 0.0]]))
    p = torch.tensor([[0.3], [0.5], [0.15], [0.05]])
    found = lm_head_stats(
        torch.ones(1, 1),
        p.log(),
        torch.tensor([0]),
        rollout=logits,
        outputs=("kl_rollout", "tv_rollout", "chi2_rollout"),
        implementation=way,
    )
    assert found.kl_rollout.item() == pytest.approx(0.25 * math.log(0.25 / 0.3) + 0.75 * math.log(0.75 / 0.5))
    assert found.tv_rollout.item() == pytest.approx((0.05 + 0.25 + 0.15 + 0.05) / 2)
    assert found.chi2_rollout.item() == math.inf


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_far_apart_policies_stay_finite(way):
    weight = torch.tensor([[300.0], [0.0], [-300.0]])
    found = lm_head_stats(
        torch.ones(2, 1),
        weight,
        torch.tensor([0, 2]),
        rollout=(torch.ones(2, 1), -weight),
        outputs=("kl_rollout", "tv_rollout"),
        implementation=way,
    )
    assert found.kl_rollout.tolist() == pytest.approx([600.0, 600.0])
    assert found.tv_rollout.tolist() == pytest.approx([1.0, 1.0])
    assert found.logprobs.tolist() == pytest.approx([0.0, -600.0])


def test_very_negative_rows():
    weight = torch.full((70, 1), -1e4) - torch.arange(70.0)[:, None]
    found = lm_head_stats(torch.ones(1, 1), weight, torch.tensor([0]), implementation=Chunked(Tiling(16, 16)))
    expected = -torch.log(torch.exp(-torch.arange(70.0)).sum())
    assert found.logprobs.item() == pytest.approx(expected.item(), abs=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 90), st.integers(1, 12), st.integers(1, 33), st.integers(0, 99))
def test_no_tiling_changes_a_number(rows, vocabulary, tile_rows, tile_columns, seed):
    g = torch.Generator().manual_seed(seed)
    hidden, other = (torch.randn(rows, 5, generator=g, dtype=torch.float64) for _ in range(2))
    weight = torch.randn(vocabulary, 5, generator=g, dtype=torch.float64)
    targets = torch.randint(vocabulary, (rows,), generator=g)
    outputs = ("entropy", "sum_p2", "entropy_change", "kl_rollout", "tv_rollout", "chi2_rollout")
    tiled, whole = (
        lm_head_stats(hidden, weight, targets, rollout=(other, weight), outputs=outputs, implementation=way)
        for way in (Chunked(Tiling(tile_rows, tile_columns)), "naive")
    )
    for name in ("logprobs", *outputs):
        torch.testing.assert_close(getattr(tiled, name), getattr(whole, name), rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("way", ["naive", "chunked"])
def test_a_row_alone_and_in_a_batch_is_the_same_to_the_last_bit(tools, way):
    case = tools.make_case(rows=2100 if way == "naive" else 600, width=48, vocabulary=2500 if way == "chunked" else 200)
    case = case.trainable()
    temperature = case.settings["temperature"]
    training = lm_head_stats(case.hidden, case.head, case.targets, temperature=temperature, implementation=way)
    with torch.no_grad():
        old = lm_head_stats(
            case.hidden, case.head, case.targets, temperature=temperature, outputs=(), implementation=way
        )
    assert torch.equal(training.logprobs, old.logprobs)
    for rows in ([0], [599], [3, 411], list(range(255, 300))):
        part = lm_head_stats(
            case.hidden[rows], case.head, case.targets[rows], temperature=temperature[rows], implementation=way
        )
        assert torch.equal(part.logprobs, training.logprobs[rows])
        assert torch.equal(part.entropy, training.entropy[rows])


def test_a_large_ragged_vocabulary_and_16_bits(tools):
    case = tools.make_case(rows=3, width=8, vocabulary=151669, plain=True)
    low = case.to(torch.bfloat16)
    found = lm_head_stats(low.hidden, low.head, low.targets)
    expected = tools.oracle(low)
    assert found.logprobs.dtype == torch.float32
    assert (found.logprobs - expected["logprobs"]).abs().max() < 3e-6
    assert (found.entropy - expected["entropy"]).abs().max() < 3e-6


@pytest.mark.parametrize("way", ["naive", "chunked"])
def test_poisoned_memory(tools, way):
    case = tools.make_case()
    torch.use_deterministic_algorithms(True)  # fills what torch.empty returns with NaN
    try:
        case = case.trainable()
        found = lm_head_stats(
            case.hidden, case.head, case.targets, rollout=case.rollout, outputs=tools.ALL, implementation=way
        )
        (found.logprobs.sum() + found.entropy.sum()).backward()
    finally:
        torch.use_deterministic_algorithms(False)
    for value in (*vars(found).values(), case.hidden.grad, case.head.weight.grad):
        assert value is None or torch.isfinite(value).all()


def test_rows_go_back_to_their_places():
    mask = torch.tensor([[True, False, True], [False, False, True]])
    hidden = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    weight, targets = torch.randn(9, 4, generator=torch.Generator().manual_seed(1)), torch.arange(6).view(2, 3)
    rows = lm_head_stats(hidden[mask], weight, targets[mask])
    stats = rows.token_stats(mask)
    assert torch.equal(stats.logprobs[mask], rows.logprobs)
    assert (stats.logprobs[~mask] == 0).all()
    assert stats.entropy.shape == mask.shape
    stats.logprobs.sum().backward()
    assert (hidden.grad[~mask] == 0).all()
    assert (hidden.grad[mask] != 0).all()
    assert type(rows.token_stats()).__name__ == "TokenStats"


def test_temperature_one_number_and_per_row_agree(tools):
    case = tools.make_case(plain=True)
    one = lm_head_stats(case.hidden, case.head, case.targets, temperature=0.7)
    many = lm_head_stats(case.hidden, case.head, case.targets, temperature=torch.full((37,), 0.7))
    divided = lm_head_stats(case.hidden, Head(case.head.weight / 0.7), case.targets)
    assert torch.equal(one.logprobs, many.logprobs)
    torch.testing.assert_close(one.logprobs, divided.logprobs, rtol=1e-5, atol=1e-5)
