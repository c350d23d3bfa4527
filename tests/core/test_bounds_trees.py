"""Every bound against the exact error of random policy pairs, enumerated to the last response (own enumeration)."""

import math
from dataclasses import dataclass

import pytest
import torch

from holdfast.core import bounds_measured
from holdfast.core.bounds import ByPosition, table, unified
from holdfast.core.bounds_measured import SampledDrift, hit_probability, masked_terms
from holdfast.errors import DataError
from holdfast.types import Batch, TokenStats

ROUNDING = 1e-11


@dataclass(frozen=True)
class Leaves:
    """N trees; leaf y of tree n has probability p[n, y]; token quantities are [N, leaves, T]."""

    p: torch.Tensor
    log_ratio: torch.Tensor
    kl: torch.Tensor
    tv: torch.Tensor
    chi2: torch.Tensor
    alive: torch.Tensor

    @property
    def z(self):
        """W - 1 - Σ(ρ - 1) by plain products, not by the code under test."""
        rho = self.log_ratio.exp()
        return rho.prod(-1) - 1 - (rho - 1).sum(-1)

    def mean(self, values):
        return (self.p * values).sum(-1)

    def sequences(self):
        """All leaves of all trees as one batch of sequences."""
        flat = [x.reshape(-1, x.shape[-1]) for x in (self.log_ratio, self.alive, self.kl, self.tv, self.chi2)]
        return SampledDrift(*flat)

    def per_leaf(self, values):
        return values.reshape(self.p.shape)


def enumerate_leaves(p_levels, q_levels, end_of_sequence):
    """Level t holds [N, V^t, V] next-token probabilities; token 0 ends the sequence where that is wanted."""
    n, _, v = p_levels[0].shape
    mass = torch.ones(n, 1, dtype=torch.float64)
    alive = torch.ones(n, 1, dtype=torch.bool)
    tokens = []
    for p, q in zip(p_levels, q_levels, strict=True):
        stop = torch.zeros(v, dtype=torch.float64)
        stop[0] = 1
        p = torch.where(alive[..., None], p, stop)
        q = torch.where(alive[..., None], q, stop)
        ratio = torch.where(p > 0, q / p, torch.ones_like(p))
        kl = torch.where(p > 0, p * -ratio.log(), torch.zeros_like(p)).sum(-1)
        tv = 0.5 * (p - q).abs().sum(-1)
        chi2 = (p * (ratio - 1).square()).sum(-1)
        context = [x[..., None].expand(n, mass.shape[1], v) for x in (kl, tv, chi2, alive)]
        step = [ratio.log(), *context]
        tokens = [[x.repeat_interleave(v, dim=1) for x in past] for past in tokens]
        tokens.append([x.reshape(n, -1) for x in step])
        mass = (mass[..., None] * p).reshape(n, -1)
        ended = torch.zeros(v, dtype=torch.bool)
        ended[0] = end_of_sequence
        alive = (alive[..., None] & ~ended).reshape(n, -1)
    columns = [torch.stack(column, dim=-1) for column in zip(*tokens, strict=True)]
    return Leaves(mass, *columns)


def random_trees(n, horizon, vocabulary, scale, sparsity, seed, end_of_sequence=False):
    generator = torch.Generator().manual_seed(seed)
    p_levels, q_levels = [], []
    for t in range(horizon):
        shape = (n, vocabulary**t, vocabulary)
        logits = 2 * torch.randn(shape, generator=generator, dtype=torch.float64)
        change = scale * torch.randn(shape, generator=generator, dtype=torch.float64)
        touched = torch.rand((*shape[:2], 1), generator=generator, dtype=torch.float64) > sparsity
        p_levels.append(logits.softmax(-1))
        q_levels.append((logits + change * touched).softmax(-1))
    return enumerate_leaves(p_levels, q_levels, end_of_sequence)


SHAPES = [  # trees, T, V, scale of the change in logits, share of untouched contexts, sequences may end early
    (2500, 1, 4, 1.0, 0.0, False),
    (2500, 2, 3, 2.0, 0.0, False),
    (2500, 3, 3, 0.5, 0.5, True),
    (1500, 4, 2, 1.5, 0.3, True),
    (1000, 5, 2, 3.0, 0.0, False),
    (400, 7, 2, 0.1, 0.0, False),
    (100, 8, 2, 1.0, 0.8, False),
]


@pytest.fixture(params=range(len(SHAPES)), ids=[f"T{s[1]}-V{s[2]}-scale{s[3]}" for s in SHAPES])
def leaves(request):
    n, horizon, vocabulary, scale, sparsity, ends = SHAPES[request.param]
    return random_trees(n, horizon, vocabulary, scale, sparsity, request.param, ends)


def bounds_of(leaves):
    """All bounds of N trees at once, from exact maxima, means and sequence divergences."""
    means = {key: (leaves.p[..., None] * getattr(leaves, key)).sum(1) for key in ("kl", "tv", "chi2")}
    reached = leaves.p[..., None] > 0
    maxima = {key: torch.where(reached, getattr(leaves, key), 0.0).amax((1, 2)) for key in means}
    rows = table(
        leaves.kl.shape[-1],
        **maxima,
        seq_kl=means["kl"].sum(-1),
        seq_tv=leaves.mean((leaves.log_ratio.sum(-1).exp() - 1).abs()) / 2,
        by_position=ByPosition(**means),
    )
    from_maxima = table(leaves.kl.shape[-1], **maxima)
    return rows, from_maxima


def test_no_bound_is_below_the_worst_case_error(leaves):
    worst = leaves.mean(leaves.z.clamp(min=0))  # R = 1 where z > 0
    assert torch.allclose(worst, leaves.mean((-leaves.z).clamp(min=0)), atol=1e-9)  # E z = 0, so R = 1[z < 0] as well
    for rows in bounds_of(leaves):
        assert len(rows) >= 10
        for name, row in rows.items():
            assert (worst <= row.halved + ROUNDING).all(), name
        best = unified(rows)
        assert (worst <= best.halved + ROUNDING).all()
        assert all((best.halved <= row.halved).all() for row in rows.values())


def test_path_of_sequences_bounds_the_error_and_is_below_the_plain_path(leaves):
    drift = leaves.sequences()
    value = leaves.mean(leaves.per_leaf(bounds_measured.path(drift)))
    worst = leaves.mean(leaves.z.clamp(min=0))
    after = leaves.tv.flip(-1).cumsum(-1).flip(-1) - leaves.tv
    plain = leaves.mean(((leaves.log_ratio.exp() - 1).abs() * after).sum(-1))
    assert (worst <= value + ROUNDING).all()
    assert (value <= plain + ROUNDING).all()


def test_error_identity_and_its_two_sides(leaves):
    """Error = E[R (k3 of the sequence - Σ k3 of its tokens)], between -E[R Σ k3] and E[(1 - R) Σ k3]; width S."""
    drift = leaves.sequences()
    assert torch.allclose(leaves.per_leaf(bounds_measured.error_terms(drift)), leaves.z, atol=1e-9)
    k3 = leaves.per_leaf(drift.k3.sum(-1))
    seq_kl = leaves.mean(leaves.kl.sum(-1))
    assert torch.allclose(leaves.mean(k3), seq_kl, atol=1e-9)
    generator = torch.Generator().manual_seed(0)
    for sharpness in (0.5, 3.0):
        reward = (sharpness * torch.randn(leaves.p.shape, generator=generator, dtype=torch.float64)).sigmoid()
        error = leaves.mean(reward * leaves.z)
        assert (error >= -leaves.mean(reward * k3) - ROUNDING).all()
        assert (error <= leaves.mean((1 - reward) * k3) + ROUNDING).all()


def test_compensated_bound_on_both_sides(leaves):
    """|Error| ≤ E shortfall + ½ E|noise| for every reward, and Error ≥ -E[R shortfall + (R - b) noise] for each."""
    shortfall, noise = (leaves.per_leaf(x) for x in bounds_measured.compensation(leaves.sequences()))
    worst = leaves.mean(leaves.z.clamp(min=0))
    assert (worst <= leaves.mean(shortfall + noise.abs() / 2) + ROUNDING).all()
    assert (leaves.mean(shortfall) <= leaves.mean(leaves.kl.sum(-1)) + ROUNDING).all()
    assert (leaves.mean(noise).abs() <= 1e-9).all()
    generator = torch.Generator().manual_seed(2)
    for reward in (torch.rand(leaves.p.shape, generator=generator, dtype=torch.float64), (leaves.z < 0).double()):
        error = leaves.mean(reward * leaves.z)
        assert (error >= -leaves.mean(reward * shortfall + (reward - 0.3) * noise) - 1e-9).all()


def coin_pair(horizon, eps):
    """T tosses of a fair coin, the current policy's lands heads with ½ + ε: every count of heads is one leaf."""
    heads = torch.arange(horizon + 1, dtype=torch.float64)
    n = torch.tensor(float(horizon), dtype=torch.float64)
    log_p = n.add(1).lgamma() - heads.add(1).lgamma() - (n - heads).add(1).lgamma() - n * math.log(2)
    up, down = math.log1p(2 * eps), math.log1p(-2 * eps)
    kl = -(up + down) / 2
    return log_p.exp(), heads * up + (n - heads) * down, heads * 2 * eps - (n - heads) * 2 * eps, kl * horizon


def test_compensated_bound_is_the_worst_case_of_the_pinsker_tight_pair():
    """T = 4096, KL 1e-4 per token: worst error .190, martingale .335, S = .41, compensated .190."""
    eps = math.sqrt((1 - math.exp(-2e-4)) / 4)  # KL = -½ log(1 - 4ε²) = 1e-4
    p, log_weight, linear, kl = coin_pair(4096, eps)
    assert kl == pytest.approx(0.4096, rel=1e-9)
    z = torch.expm1(log_weight) - linear
    worst = (p * z.clamp(min=0)).sum().item()
    assert worst == pytest.approx(0.190, abs=5e-4)
    shortfall = (kl - (torch.expm1(log_weight) - log_weight)).clamp(min=0)
    noise = linear - log_weight - kl
    value = (p * (shortfall + noise.abs() / 2)).sum().item()
    assert worst <= value <= worst * 1.005
    assert table(4096, chi2=4 * eps**2)["martingale"].value.item() == pytest.approx(0.335, abs=5e-4)


def test_martingale_differences_are_orthogonal(leaves):
    """E z² = Σ_k E[χ²(c_k) (W_{k-1} - 1)²] and E[Σ(ρ - 1)]² = Σ E χ²."""
    before = torch.nn.functional.pad(leaves.log_ratio.cumsum(-1)[..., :-1], (1, 0)).exp()
    terms = leaves.mean((leaves.chi2 * (before - 1).square()).sum(-1))
    squared = leaves.mean(leaves.z.square())
    assert ((squared - terms).abs() <= 1e-9 * squared.clamp(min=1)).all()
    linear = leaves.mean((leaves.log_ratio.exp() - 1).sum(-1).square())
    total = leaves.mean(leaves.chi2.sum(-1))
    assert ((linear - total).abs() <= 1e-9 * total.clamp(min=1)).all()


@pytest.mark.parametrize("threshold", [1e-3, 0.05, 0.5, 100.0])
def test_masked_certificates(leaves, threshold):
    drift = leaves.sequences()
    terms = masked_terms(drift, threshold)
    at = {name: leaves.per_leaf(getattr(terms, name)) for name in vars(terms)}
    kept, lost = leaves.per_leaf(terms.surrogate_kept), leaves.per_leaf(terms.lost_to_sequence_mask)
    hit = leaves.mean(at["weight_at_hit"])
    weight = leaves.log_ratio.sum(-1).exp()
    assert torch.allclose(hit, leaves.mean(weight * at["hit"]), atol=1e-9)  # E_p[W 1(hit)] with the whole weight
    by_pinsker_free = hit_probability(leaves.mean(at["hit"]).clamp(0, 1), leaves.mean(at["kl_before"]))
    assert (hit <= by_pinsker_free + 1e-9).all()
    generator = torch.Generator().manual_seed(1)
    for reward in (torch.rand(leaves.p.shape, generator=generator, dtype=torch.float64), (leaves.z > 0).double()):
        gain = leaves.mean(reward * (weight - 1))
        prefix = (gain - leaves.mean(reward * at["surrogate_before"])).abs()
        token = (gain - leaves.mean(reward * at["surrogate_outside"])).abs()
        sequence = (gain - leaves.mean(reward * kept)).abs()
        prefix_bound = hit + leaves.mean(at["kl_before"])
        assert (prefix <= prefix_bound + ROUNDING).all()
        assert (token <= hit + leaves.mean(at["kl_outside"]) + ROUNDING).all()
        assert (sequence <= prefix_bound + leaves.mean(lost) + ROUNDING).all()


def test_halving_is_attained_and_cannot_be_repeated():
    """T = 2, two tokens, p = (½, ½): q shifts ε up first, then up after 'up' and down after 'down'; R = 1 on uu and dd.

    z = d_1 d_2 with d = ±2ε, so z = 4ε² on half of the mass: error 2ε² = ½ · 4ε · ε = ½ · 2T(T-1)ε².
    """
    eps = 0.05
    up, down, half = [0.5 + eps, 0.5 - eps], [0.5 - eps, 0.5 + eps], [0.5, 0.5]

    def level(*rows):
        return torch.tensor([rows], dtype=torch.float64)

    pair = enumerate_leaves([level(half), level(half, half)], [level(up), level(up, down)], end_of_sequence=False)
    worst = pair.mean(pair.z.clamp(min=0)).item()
    assert worst == pytest.approx(2 * eps**2, rel=1e-9)
    rows, from_maxima = bounds_of(pair)
    for name in ("classical", "coupling", "mixed_tv", "adaptive"):
        assert from_maxima.get(name, rows[name]).halved.item() >= worst * (1 - 1e-9)
    assert from_maxima["coupling"].halved.item() == pytest.approx(worst, rel=1e-9)
    assert from_maxima["coupling"].halved.item() / 2 < worst
    assert from_maxima["path"].value.item() == pytest.approx(worst, rel=1e-9)
    assert from_maxima["martingale"].value.item() == pytest.approx(worst, rel=1e-9)  # ½ x = ½ · 4ε²


def test_sequence_kl_is_sharp():
    """θ writes with m = 1e-3 a token that p writes with q = 1e-9, and after it what p does not: error ≈ m ≈ S."""
    m, q, rest = 1e-3, 1e-9, 1e-4

    def level(*rows):
        return torch.tensor([rows], dtype=torch.float64)

    same = [0.5, 0.5]
    rollout = [level([q, 1 - q]), level([1 - rest, rest], same)]
    current = [level([m, 1 - m]), level([rest, 1 - rest], same)]
    pair = enumerate_leaves(rollout, current, end_of_sequence=False)
    worst = pair.mean(pair.z.clamp(min=0)).item()
    seq_kl = pair.mean(pair.kl.sum(-1)).item()
    assert 0.999 * seq_kl < worst <= seq_kl


def test_own_bounds_cannot_be_halved():
    """Searching random trees finds errors above half of S, and above half of every other bound of ours."""
    worst_share = dict.fromkeys(("sequence_kl", "martingale", "cauchy_schwarz", "survival", "split"), 0.0)
    for seed, (n, horizon, vocabulary, scale) in enumerate([(2000, 2, 2, 2.0), (2000, 2, 2, 0.2), (500, 5, 2, 3.0)]):
        leaves = random_trees(n, horizon, vocabulary, scale, 0.0, 100 + seed)
        worst = leaves.mean(leaves.z.clamp(min=0))
        rows, from_maxima = bounds_of(leaves)
        for name in worst_share:
            value = torch.minimum(rows[name].halved, from_maxima.get(name, rows[name]).halved)
            worst_share[name] = max(worst_share[name], (worst / value).max().item())
    assert all(0.5 < share <= 1 + 1e-9 for share in worst_share.values()), worst_share


def test_path_of_one_sequence_by_hand():
    # ρ = (1.5, .8, 1.2), TV = (.3, .1, .2):
    # t=1: .5 (.1 + .8 · .2) = .13; t=2: .2 · .2 = .04; t=3: 0. The product skips ρ_t itself and caps at 1.
    row = torch.tensor([[1.5, 0.8, 1.2]], dtype=torch.float64).log()
    tv = torch.tensor([[0.3, 0.1, 0.2]], dtype=torch.float64)
    drift = SampledDrift(row, torch.ones(1, 3, dtype=torch.bool), tv=tv)
    assert bounds_measured.path(drift).item() == pytest.approx(0.17, rel=1e-12)


def test_masked_terms_of_two_sequences_by_hand():
    # ρ = (2, 3, ½), KL = (.1, .9, .2), bad above .5: τ = 2, so W before it is 2, KL before .1, outside .1 + .2;
    # Σ(ρ - 1) before 1, outside 1 - ½. The second sequence never hits: KL .3, Σ(ρ - 1) = 1 + 2 - ½.
    rho = torch.tensor([[2.0, 3.0, 0.5]] * 2, dtype=torch.float64)
    kl = torch.tensor([[0.1, 0.9, 0.2], [0.1, 0.1, 0.1]], dtype=torch.float64)
    terms = masked_terms(SampledDrift(rho.log(), torch.ones(2, 3, dtype=torch.bool), kl=kl), 0.5)
    expected = {
        "hit": [1, 0],
        "weight_at_hit": [2, 0],
        "kl_before": [0.1, 0.3],
        "kl_outside": [0.3, 0.3],
        "surrogate_before": [1, 2.5],
        "surrogate_outside": [0.5, 2.5],
        "surrogate_kept": [0, 2.5],
        "lost_to_sequence_mask": [1, 0],
    }
    for name, values in expected.items():
        assert getattr(terms, name).tolist() == pytest.approx(values), name


def test_hit_probability_by_hand():
    # h = 0: -log(1 - q) = S, so q = 1 - e^-.1. S = 0: q = h.
    # h = ½: ½ log(1 / (4 q (1 - q))) = S at q = ½ + √(1 - e^(-2S)) / 2.
    half = 0.5 + math.sqrt(1 - math.exp(-0.2)) / 2
    h, s = torch.tensor([0.0, 0.3, 0.5, 1.0]).double(), torch.tensor([0.1, 0.0, 0.1, 5.0]).double()
    assert hit_probability(h, s).tolist() == pytest.approx([1 - math.exp(-0.1), 0.3, half, 1.0], abs=1e-7)


def batch_of(log_ratio, kl=None, tv=None, chi2=None):
    log_ratio = torch.as_tensor(log_ratio)
    rollout = torch.full_like(log_ratio, -1.0)
    batch = Batch(torch.zeros(len(rollout)), torch.ones(rollout.shape, dtype=torch.bool), rollout_logprobs=rollout)
    return batch, TokenStats(rollout + log_ratio, kl_rollout=kl, tv_rollout=tv, chi2_rollout=chi2)


def test_observed_uses_means_and_sampled_maxima():
    kl = torch.tensor([[0.02, 0.01], [0.04, 0.0]])
    tv = torch.tensor([[0.1, 0.05], [0.1, 0.0]])
    rows = bounds_measured.observed(*batch_of([[0.1, 0.0], [0.2, -0.1]], kl=kl, tv=tv), horizon=5)
    assert rows["sequence_kl"].value.item() == pytest.approx(0.035)  # (.03 + .04) / 2
    assert rows["linear"].value.item() == pytest.approx(4 * 0.125)  # D̄ = (.1, .025)
    assert rows["classical"].value.item() == pytest.approx(2 * 5 * 4 * 0.01)  # ε = .1
    # path: sequence 1 (e^.1 - 1) · .05, sequence 2 (e^.2 - 1) · 0; mean .0026293
    assert rows["path"].value.item() == pytest.approx(math.expm1(0.1) * 0.05 / 2, rel=1e-6)
    # compensated: log-ratio sums .1, .1: k3(W) = e^.1 - 1.1 = .0051709; shortfalls .03 and .04 less that;
    # Σ k3_t: .0051709 and (e^.2 - 1.2) + (e^-.1 - .9) = .0262402; noise -.0248291 and -.0137598.
    expected = (0.0248291 + 0.0248291 / 2 + 0.0348291 + 0.0137598 / 2) / 2
    assert rows["compensated"].value.item() == pytest.approx(expected, rel=1e-4)
    from_kl = bounds_measured.observed(*batch_of([[0.1, 0.0], [0.2, -0.1]], kl=kl))
    assert from_kl["path"].value.item() == pytest.approx(math.expm1(0.1) * math.sqrt(0.01 / 2) / 2, rel=1e-6)
    with pytest.raises(DataError, match="batch has 2 positions"):
        bounds_measured.observed(*batch_of([[0.1, 0.0]]), horizon=1)


def test_tiny_drift_does_not_break_pinsker_by_rounding():
    kl, tv = torch.tensor([[1e-9, 2e-9]]), torch.tensor([[2.3e-5, 3.3e-5]])
    assert "adaptive" in bounds_measured.observed(*batch_of([[1e-5, 1e-5]], kl=kl, tv=tv))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"log_ratio": [[float("nan"), 0.0]]}, "log-ratios are not finite"),
        ({"kl": torch.tensor([[-0.5, 0.0]])}, "kl_rollout ranges from -0.5"),
        ({"tv": torch.tensor([[1.5, 0.0]])}, "from 0 to 1"),
        ({"chi2": torch.tensor([[math.inf, 0.0]])}, "chi2_rollout"),
    ],
)
def test_unusable_measurements_are_named(changes, words):
    with pytest.raises(DataError, match=words):
        bounds_measured.sampled_drift(*batch_of(**({"log_ratio": [[0.1, 0.0]]} | changes)))


def test_missing_measurements_are_named():
    batch, stats = batch_of([[0.1, 0.0]])
    with pytest.raises(DataError, match="rollout_logprobs is None"):
        bounds_measured.sampled_drift(Batch(batch.advantages, batch.response_mask), stats)
    drift = bounds_measured.sampled_drift(batch, stats)
    with pytest.raises(DataError, match="tv_rollout"):
        bounds_measured.path(drift)
    with pytest.raises(DataError, match="kl_rollout"):
        bounds_measured.compensation(drift)
    with pytest.raises(DataError, match="kl_rollout"):
        masked_terms(drift, 0.1)
