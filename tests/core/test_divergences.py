"""Divergences against hand-worked numbers, float64 and mpmath oracles, and random distributions."""

import importlib.util
import math
import sys

import mpmath
import pytest
import torch

from holdfast.core import divergences
from holdfast.core.divergences import (
    Divergence,
    Kind,
    Support,
    abs_log,
    binary_kl,
    binary_tv,
    exact_from_hidden,
    exact_from_logits,
    expm1_minus,
    k1,
    k2,
    k3,
    top_k,
)
from holdfast.errors import ConfigError, DataError

LN2 = math.log(2)


def reference(logits, rollout_logits):
    """KL(p‖q), TV and χ² by their definitions in float64."""
    log_p, log_q = rollout_logits.double().log_softmax(-1), logits.double().log_softmax(-1)
    p, q = log_p.exp(), log_q.exp()
    return (p * (log_p - log_q)).sum(-1), 0.5 * (p - q).abs().sum(-1), ((q - p) ** 2 / p).sum(-1)


def planted_pair(kl, vocabulary, generator):
    """Float32 logits (current, rollout) whose KL(rollout‖current) is close to `kl`, with an offset between the two."""
    rollout = 3 * torch.randn(4, vocabulary, generator=generator, dtype=torch.float64)
    direction = torch.randn(4, vocabulary, generator=generator, dtype=torch.float64)
    scale = torch.full((4, 1), (2 * kl) ** 0.5, dtype=torch.float64)
    for _ in range(40):
        scale = scale * (kl / reference(rollout + scale * direction, rollout)[0])[:, None] ** 0.5
    return (rollout + scale * direction - 1.5).float(), rollout.float()


def test_sampled_estimators_by_hand():
    log_ratio = torch.tensor([LN2, -LN2], dtype=torch.float64)
    assert k1(log_ratio).value.tolist() == [-LN2, LN2]
    assert k2(log_ratio).value.tolist() == pytest.approx([LN2**2 / 2] * 2)
    # k3: 2 - 1 - ln 2 = .306853 and 1/2 - 1 + ln 2 = .193147
    assert k3(log_ratio).value.tolist() == pytest.approx([0.306852819440055, 0.193147180559945])
    assert abs_log(log_ratio).value.tolist() == [LN2, LN2]
    assert {d(log_ratio).kind for d in (k1, k2, k3, abs_log)} == {Kind.ESTIMATE}


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 5e-7), (torch.float64, 1e-15)])
def test_expm1_minus_keeps_its_digits(dtype, tolerance):
    magnitudes = torch.cat(
        [torch.logspace(-18, 1, 200, dtype=dtype), torch.tensor([0.2499, 0.25, 0.2501], dtype=dtype)]
    )
    x = torch.cat([magnitudes, -magnitudes])
    with mpmath.workdps(60):
        expected = [float(mpmath.expm1(mpmath.mpf(v)) - mpmath.mpf(v)) for v in x.tolist()]
    torch.testing.assert_close(
        expm1_minus(x).double(), torch.tensor(expected, dtype=torch.float64), rtol=tolerance, atol=0
    )


def test_estimators_are_finite_with_gradient_at_extreme_ratios():
    log_ratio = torch.tensor([-50.0, -0.25, 0.0, 0.25, 50.0], requires_grad=True)
    value = k3(log_ratio).value
    value.sum().backward()
    assert value.isfinite().all()
    torch.testing.assert_close(log_ratio.grad, torch.expm1(log_ratio.detach()))


def test_binary_by_hand():
    p, q = torch.tensor([0.5, 0.9]), torch.tensor([0.25, 0.99])
    assert binary_tv(q.log(), p.log()).value.tolist() == pytest.approx([0.25, 0.09], rel=1e-5)
    # .5 ln(.5/.25) + .5 ln(.5/.75) = .143841;  .9 ln(.9/.99) + .1 ln(.1/.01) = .144479
    assert binary_kl(q.log(), p.log()).value.tolist() == pytest.approx([0.1438410, 0.1444793], rel=1e-5)


def test_binary_kl_near_agreement_and_at_the_edges():
    p = torch.cat(
        [torch.logspace(-6, -0.01, 50, dtype=torch.float64), 1 - torch.logspace(-6, -2, 5, dtype=torch.float64)]
    )
    current = (p * (1 - 1e-4)).log()
    with mpmath.workdps(50):
        q = [mpmath.exp(mpmath.mpf(v)) for v in current.float().tolist()]
        rollout = [mpmath.exp(mpmath.mpf(v)) for v in p.log().float().tolist()]
        expected = [
            float(a * mpmath.log(a / b) + (1 - a) * mpmath.log((1 - a) / (1 - b)))
            for a, b in zip(rollout, q, strict=True)
        ]
    measured = binary_kl(current.float(), p.log().float()).value.double()
    torch.testing.assert_close(measured, torch.tensor(expected, dtype=torch.float64), rtol=5e-3, atol=0)

    certain = torch.tensor([0.0, 0.0, -1e-9, -50.0, -LN2])
    other = torch.tensor([0.0, -LN2, -LN2, 0.0, 0.0])
    edge = binary_kl(certain, other).value
    assert edge.isfinite().all()
    assert edge[0] == 0
    # q = 1 - 2^-23 after the cap, p = 1/2: .5 ln(.5) + .5 ln(.5/2^-23) = 10.5 ln 2 = 7.27805
    assert edge[1] == pytest.approx(10.5 * LN2, rel=1e-5)


def test_lower_and_upper_bounds_hold_on_random_distributions():
    generator = torch.Generator().manual_seed(0)
    count, vocabulary = 10_000, 24
    rollout = torch.randn(count, vocabulary, generator=generator, dtype=torch.float64) * torch.logspace(
        -2, 1, count, dtype=torch.float64
    ).unsqueeze(1)
    spread = torch.logspace(-4, 1, count, dtype=torch.float64)[torch.randperm(count, generator=generator)].unsqueeze(1)
    current = rollout + spread * torch.randn(count, vocabulary, generator=generator, dtype=torch.float64)
    kl, tv, _ = reference(current, rollout)
    log_p, log_q = rollout.log_softmax(-1), current.log_softmax(-1)
    slack = 1e-12

    sampled = torch.distributions.Categorical(logits=log_p).sample()[:, None]
    for bound, truth in ((binary_kl, kl), (binary_tv, tv)):
        value = bound(log_q.gather(1, sampled)[:, 0], log_p.gather(1, sampled)[:, 0])
        assert value.kind is Kind.LOWER
        assert (value.value <= truth + slack).all()

    previous = None
    for size in (1, 4, 16, 24):
        ids = log_p.topk(size).indices
        bounds = top_k(log_q.gather(1, ids), log_p.gather(1, ids))
        assert (bounds.kl_lower.value <= kl + slack).all()
        assert (bounds.tv_lower.value <= tv + slack).all()
        assert (bounds.tv_upper.value >= tv - slack).all()
        if previous is not None:  # more tokens never loosen a bound
            assert (bounds.kl_lower.value >= previous.kl_lower.value - slack).all()
            assert (bounds.tv_lower.value >= previous.tv_lower.value - slack).all()
            assert (bounds.tv_upper.value <= previous.tv_upper.value + slack).all()
        previous = bounds
    torch.testing.assert_close(previous.kl_lower.value, kl, rtol=1e-6, atol=1e-12)
    torch.testing.assert_close(previous.tv_upper.value, tv, rtol=1e-6, atol=1e-12)


def test_top_k_by_hand_and_with_padding():
    # p = (.5, .2 | .3), q = (.4, .4 | .2): gap .1 + .2, tails .3 and .2
    # TV lower (.3 + .1)/2 = .2, upper (.3 + .5)/2 = .4, KL .5 ln 1.25 + .2 ln .5 + .3 ln 1.5 = .0945817
    p, q = torch.tensor([0.5, 0.2, 0.0]).log(), torch.tensor([0.4, 0.4, 0.0]).log()
    bounds = top_k(q, p)
    assert bounds.kl_lower.value.item() == pytest.approx(0.0945817, rel=1e-5)
    assert bounds.tv_lower.value.item() == pytest.approx(0.2, rel=1e-5)
    assert bounds.tv_upper.value.item() == pytest.approx(0.4, rel=1e-5)
    assert (bounds.kl_lower.kind, bounds.tv_lower.kind, bounds.tv_upper.kind) == (Kind.LOWER, Kind.LOWER, Kind.UPPER)


def test_top_k_where_one_policy_excludes_a_token():
    # p = (.5, 0 | .5), q = (.5, .25 | .25): KL = .5 ln 2
    p, q = torch.tensor([0.5, 0.0]).log(), torch.tensor([0.5, 0.25]).log()
    assert top_k(q, p).kl_lower.value.item() == pytest.approx(LN2 / 2, rel=1e-5)
    disjoint = top_k(torch.tensor([0.0, -torch.inf]), torch.tensor([-torch.inf, 0.0]))
    assert disjoint.tv_upper.value.item() == 1


def test_bounds_of_a_report_that_sums_to_more_than_1_do_not_cross():
    # p = (.6, .41), q = (.5, .3 | .2): gap .1 + .11 = .21. The tails alone would give TV ≥ (.21 + .21)/2 = .21 and
    # TV ≤ (.21 + .2 + 0)/2 = .205; the smaller number serves as both.
    bounds = top_k(torch.tensor([0.5, 0.3]).log(), torch.tensor([0.6, 0.41]).log())
    assert bounds.tv_upper.value.item() == pytest.approx(0.205, abs=1e-6)
    assert bounds.tv_lower.value.item() == bounds.tv_upper.value.item()
    assert bounds.kl_lower.value.item() >= 0


def test_top_k_upper_bound_survives_float32():
    generator = torch.Generator().manual_seed(1)
    rollout = 4 * torch.randn(2000, 100, generator=generator)
    current = rollout + 0.01 * torch.randn(2000, 100, generator=generator)
    log_p, log_q = rollout.double().log_softmax(-1).float(), current.double().log_softmax(-1).float()
    tv = 0.5 * (log_p.double().exp() - log_q.double().exp()).abs().sum(-1)
    bounds = top_k(log_q, log_p)
    assert (bounds.tv_upper.value.double() >= tv).all()


@pytest.mark.parametrize("kl", [3e-9, 3e-7, 3e-5, 3e-3, 0.3])
@pytest.mark.parametrize("vocabulary", [17, 32_000])
def test_exact_divergences_on_planted_values(kl, vocabulary):
    current, rollout = planted_pair(kl, vocabulary, torch.Generator().manual_seed(int(1 / kl)))
    expected_kl, expected_tv, expected_chi2 = reference(current, rollout)
    assert expected_kl.mean().item() == pytest.approx(kl, rel=0.05)
    exact = exact_from_logits(current, rollout)
    torch.testing.assert_close(exact.kl.as_upper().double(), expected_kl, rtol=1e-3, atol=0)
    torch.testing.assert_close(exact.tv.as_upper().double(), expected_tv, rtol=3e-4, atol=0)
    torch.testing.assert_close(exact.chi2.as_upper().double(), expected_chi2, rtol=1e-3, atol=0)


def test_exact_kl_of_hand_distribution():
    # p = (1/2, 1/4, 1/4), q = (1/4, 1/4, 1/2): KL = ln2/2 - ln2/4 = .173287, TV = 1/4, chi2 = 1/8 + 1/4 = .375
    p, q = torch.tensor([0.5, 0.25, 0.25]).log(), torch.tensor([0.25, 0.25, 0.5]).log()
    exact = exact_from_logits(q + 3, p - 2)
    assert exact.kl.value.item() == pytest.approx(LN2 / 4, rel=1e-5)
    assert exact.tv.value.item() == pytest.approx(0.25, rel=1e-5)
    assert exact.chi2.value.item() == pytest.approx(0.375, rel=1e-5)
    assert exact.kept_mass.item() == pytest.approx(1)


def test_exact_divergences_at_the_extremes():
    inf = torch.inf
    rollout = torch.tensor([[0.0, -300.0], [0.0, 0.0], [0.0, -200.0], [0.0, -30.0]])
    current = torch.tensor([[0.0, -300.0], [0.0, -inf], [-200.0, 0.0], [-30.0, 0.0]])
    exact = exact_from_logits(current, rollout)
    # KL of the last row is 30 (1 - 2 e^-30), its chi2 e^30
    assert exact.kl.value.tolist() == pytest.approx([0, inf, 200, 30])
    assert exact.tv.value.tolist() == pytest.approx([0, 0.5, 1, 1])
    assert exact.chi2.value.tolist() == pytest.approx([0, 1, inf, math.exp(30)])

    # p = e^-200 is 0 in float32, yet chi2 = e^(-2·80 + 200) = e^40 is not; where q excludes the token too, all is 0
    exact = exact_from_logits(torch.tensor([[0.0, -80.0], [0.0, -inf]]), torch.tensor([[0.0, -200.0], [0.0, -200.0]]))
    assert exact.kl.value.tolist() == pytest.approx([0, 0], abs=1e-30)
    assert exact.tv.value.tolist() == pytest.approx([0, 0], abs=1e-30)
    assert exact.chi2.value.tolist() == pytest.approx([math.exp(40), 0], rel=1e-4)


def test_policies_that_agree_never_have_a_negative_divergence():
    generator = torch.Generator().manual_seed(5)
    rollout = 5 * torch.randn(2000, 40, generator=generator)
    exact = exact_from_logits(rollout + 7.3, rollout)  # a common offset costs rounding, not divergence
    for divergence in (exact.kl, exact.tv, exact.chi2):
        assert divergence.value.min() >= 0
        assert divergence.value.max() < 2e-6
    assert exact.kl.value.max() < 1e-12


def test_half_precision_states_are_widened_before_the_head():
    generator = torch.Generator().manual_seed(4)
    hidden = torch.randn(6, 64, generator=generator).bfloat16()
    rollout_hidden = (hidden.float() + 0.01 * torch.randn(6, 64, generator=generator)).bfloat16()
    head = (torch.randn(300, 64, generator=generator) / 4).bfloat16()
    exact = exact_from_hidden(hidden, head, rollout_hidden, head)
    expected = reference(hidden.double() @ head.double().T, rollout_hidden.double() @ head.double().T)[0]
    torch.testing.assert_close(exact.kl.value.double(), expected, rtol=1e-4, atol=0)


def test_hidden_states_and_chunks_agree_with_logits():
    generator = torch.Generator().manual_seed(2)
    hidden, rollout_hidden = torch.randn(2, 3, 5, 8, generator=generator, dtype=torch.float64)
    head, rollout_head = torch.randn(2, 11, 8, generator=generator, dtype=torch.float64)
    support = Support(temperature=0.7, top_k=6)
    whole = exact_from_logits(hidden @ head.T, rollout_hidden @ rollout_head.T, support=support)
    chunked = exact_from_hidden(hidden, head, rollout_hidden, rollout_head, support=support, chunk_elements=22)
    for name in ("kl", "tv", "chi2"):
        assert getattr(whole, name).value.shape == (3, 5)
        torch.testing.assert_close(getattr(chunked, name).value, getattr(whole, name).value)
    assert exact_from_logits(torch.empty(0, 5), torch.empty(0, 5)).kl.value.shape == (0,)


def test_support_renormalises_both_policies_on_the_kept_tokens():
    generator = torch.Generator().manual_seed(3)
    rollout = 2 * torch.randn(50, 12, generator=generator, dtype=torch.float64)
    current = rollout + 0.3 * torch.randn(50, 12, generator=generator, dtype=torch.float64)
    support = Support(temperature=0.8, top_p=0.9)
    exact = exact_from_logits(current, rollout, support=support)
    for row in range(50):  # the plain loop: sort, take the smallest set of mass at least .9, renormalise
        p, q = (rollout[row] / 0.8).softmax(-1), (current[row] / 0.8).softmax(-1)
        order = p.argsort(descending=True).tolist()
        kept: list[int] = []
        while p[kept].sum() < 0.9:
            kept.append(order[len(kept)])
        mass = q[kept].sum()
        p, q = p[kept] / p[kept].sum(), q[kept] / mass
        assert exact.kl.value[row].item() == pytest.approx((p * (p / q).log()).sum().item(), rel=1e-9)
        assert exact.chi2.value[row].item() == pytest.approx(((q - p) ** 2 / p).sum().item(), rel=1e-9)
        assert exact.kept_mass[row].item() == pytest.approx(mass.item(), rel=1e-9)


def test_kept_sets():
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()
    assert Support().kept(logits).tolist() == [True, True, True, True]
    assert Support(top_k=2).kept(logits).tolist() == [True, True, False, False]
    assert Support(top_p=0.65).kept(logits).tolist() == [True, True, False, False]
    assert Support(top_p=0.75).kept(logits).tolist() == [True, True, True, False]
    assert Support(min_p=0.6).kept(logits).tolist() == [True, True, False, False]  # .6 * .4 = .24
    # top_p acts on what top_k left: (4/7, 3/7), and 4/7 > .55
    assert Support(top_k=2, top_p=0.55).kept(logits).tolist() == [True, False, False, False]
    # temperature 1/2 squares the odds: .16/.30 = .533
    assert Support(temperature=0.5, top_p=0.53).kept(logits).tolist() == [True, False, False, False]
    assert Support(top_k=2).kept(torch.tensor([1.0, 1.0, 1.0, 0.0])).tolist() == [True, True, True, False]
    assert Support(top_p=1e-9).kept(logits).tolist() == [True, False, False, False]
    dropped = torch.tensor([0.0, -torch.inf, 0.0])
    assert Support().kept(dropped).tolist() == [True, False, True]
    exact = exact_from_logits(torch.zeros(3), dropped)
    assert exact.kl.value.item() == pytest.approx(0, abs=1e-7)
    assert exact.kept_mass.item() == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"top_k": -1}, "top_k is -1"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"top_p": 1.1}, "top_p is 1.1"),
        ({"min_p": 1.0}, "min_p is 1.0"),
    ],
)
def test_impossible_supports_are_refused(setting, message):
    with pytest.raises(ConfigError, match=message):
        Support(**setting)


def test_different_vocabularies_are_refused():
    with pytest.raises(DataError, match="vocabulary of 4 and the rollout policy one of 5"):
        exact_from_hidden(torch.zeros(1, 2), torch.zeros(4, 2), torch.zeros(1, 3), torch.zeros(5, 3))


def test_kinds_cannot_be_confused():
    value = torch.tensor([0.1, 0.3])
    of = {kind: Divergence(value, kind.value, kind) for kind in Kind}
    for kind in (Kind.ESTIMATE, Kind.LOWER):
        with pytest.raises(DataError, match=f"of kind {kind.value}, but this needs upper or exact"):
            of[kind].as_upper()
    for kind in (Kind.ESTIMATE, Kind.UPPER):
        with pytest.raises(DataError, match="needs lower or exact"):
            of[kind].as_lower()
    assert of[Kind.UPPER].as_upper() is value
    assert of[Kind.EXACT].as_upper() is of[Kind.EXACT].as_lower() is value

    for kind in Kind:
        assert (
            (of[kind] + of[Kind.EXACT]).kind is (of[Kind.EXACT] + of[kind]).kind is (of[kind] + of[kind]).kind is kind
        )
    for a, b in ((Kind.LOWER, Kind.UPPER), (Kind.ESTIMATE, Kind.UPPER), (Kind.ESTIMATE, Kind.LOWER)):
        with pytest.raises(DataError, match="cannot add"):
            of[a] + of[b]
    mean = of[Kind.UPPER].reduce(torch.mean)
    assert (mean.kind, mean.value.item()) == (Kind.UPPER, pytest.approx(0.2))


def test_token_divergences_compile_without_a_graph_break(monkeypatch):
    # under another name the module escapes the run-time shape checks, which torch.compile cannot trace
    spec = importlib.util.spec_from_file_location("plain_divergences", divergences.__file__)
    plain = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, plain)
    spec.loader.exec_module(plain)

    def penalty(logprobs, rollout_logprobs):
        log_ratio = logprobs - rollout_logprobs
        both = (plain.binary_kl(logprobs, rollout_logprobs), plain.binary_tv(logprobs, rollout_logprobs))
        return sum(d.value for d in (plain.k2(log_ratio), plain.k3(log_ratio), *both))

    logprobs, rollout_logprobs = torch.tensor([[-0.5, -3.0]]), torch.tensor([[-0.4, -3.5]])
    compiled = torch.compile(penalty, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(logprobs, rollout_logprobs), penalty(logprobs, rollout_logprobs))
