"""Long horizons against the enumeration at short ones, against published numbers, and against the bounds."""

import pytest
import torch

from holdfast.core import bounds, bounds_measured
from holdfast.errors import ConfigError
from holdfast.lab.chains import ChainPair, CoinPair, measure_chain
from holdfast.lab.oracle import as_rollouts, expectation
from holdfast.lab.pairs import make_pairs
from holdfast.lab.trees import TreePair, error_weights, measure, worst_error


def random_chain(states=3, size=0.4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(states, states, generator=generator, dtype=torch.float64)
    step = size * torch.randn(states, states, generator=generator, dtype=torch.float64)
    return ChainPair(logits.log_softmax(-1), (logits + step).log_softmax(-1))


def unroll(chain, horizon):
    """The chain as a tree: the context's last token is the state, the root's is 0."""
    states = [torch.zeros(1, dtype=torch.long)]
    for _ in range(horizon - 1):
        states.append(torch.arange(chain.rollout.shape[0]).repeat(len(states[-1])))
    return TreePair(tuple(chain.rollout[s][None] for s in states), tuple(chain.current[s][None] for s in states))


@pytest.mark.parametrize("horizon", [1, 2, 5])
def test_chain_agrees_with_its_tree(horizon):
    chain = random_chain()
    tree = unroll(chain, horizon)
    exact, drift = measure(tree), measure_chain(chain, horizon)
    by_state = error_weights(tree).reshape(-1, 3).sum(0)  # the last token is the last state
    assert drift.error == pytest.approx(worst_error(by_state[None]).item(), abs=1e-15)
    for name in ("mean_kl", "mean_tv", "mean_chi2"):
        torch.testing.assert_close(getattr(drift, name), getattr(exact, name)[0])
    assert drift.seq_kl == pytest.approx(exact.seq_kl.item())
    if horizon > 1:  # by then every state was met
        for name in ("kl_max", "tv_max", "chi2_max"):
            assert getattr(drift, name) == pytest.approx(getattr(exact, name).item())


def test_bounds_hold_on_chains_of_four_thousand_tokens():
    for seed, size in enumerate([1e-4, 1e-3, 1e-2, 0.1, 0.5]):
        drift = measure_chain(random_chain(8, size, seed), 4096)
        table = bounds.table(
            4096,
            kl=drift.kl_max,
            tv=drift.tv_max,
            chi2=drift.chi2_max,
            by_position=bounds.ByPosition(tv=drift.mean_tv, kl=drift.mean_kl, chi2=drift.mean_chi2),
        )
        assert drift.error > 0
        for name, bound in table.items():
            assert drift.error <= bound.halved.item() * (1 + 1e-9), name


def test_an_absorbing_state_ends_the_drift():
    # from state 0 end with probability ½ (p) or .4 (q); the end stays: survival ½^t
    p = torch.tensor([[0.5, 0.5], [0.0, 1.0]], dtype=torch.float64).log()
    q = torch.tensor([[0.6, 0.4], [0.0, 1.0]], dtype=torch.float64).log()
    drift = measure_chain(ChainPair(p, q), 4)
    assert drift.mean_tv.tolist() == pytest.approx([0.1, 0.05, 0.025, 0.0125])
    # T = 2: e = q - p - g on (alive, ended): alive .36 - .25 - .25 · (.2 + .2) = .01
    assert measure_chain(ChainPair(p, q), 2).error == pytest.approx(0.01)


def test_coin_agrees_with_its_tree_and_by_hand():
    coin = CoinPair(0.5, 0.6)
    assert coin.worst_error(1) == pytest.approx(0, abs=1e-16)
    assert coin.worst_error(2) == pytest.approx(0.02)  # 2 ε²
    assert coin.worst_error(3) == pytest.approx(0.03)
    lopsided = CoinPair(0.3, 0.35)
    levels = [torch.tensor([0.7, 0.3], dtype=torch.float64), torch.tensor([0.65, 0.35], dtype=torch.float64)]
    tree = TreePair(*(tuple(p.log().expand(1, 2**t, 2) for t in range(6)) for p in levels))
    drift = measure(tree)
    shortfall, noise = bounds_measured.compensation(as_rollouts(tree))
    assert lopsided.compensated(6) == pytest.approx(expectation(tree, shortfall + noise.abs() / 2).item())
    assert lopsided.worst_error(6) == pytest.approx(worst_error(error_weights(tree)).item())
    assert lopsided.seq_tv(6) == pytest.approx(drift.seq_tv.item())
    assert (lopsided.kl, lopsided.tv, lopsided.chi2) == pytest.approx(
        (drift.kl_max.item(), drift.tv_max.item(), drift.chi2_max.item())
    )


def test_published_worst_case_of_a_pinsker_tight_pair():
    coin = CoinPair.of_kl(1e-4)
    assert coin.kl == pytest.approx(1e-4, rel=1e-9)
    assert coin.chi2 == pytest.approx(2e-4, rel=1e-3)
    assert coin.worst_error(4096) == pytest.approx(0.190, abs=5e-4)
    table = bounds.table(4096, kl=coin.kl, tv=coin.tv, chi2=coin.chi2, seq_kl=4096 * coin.kl)
    assert table["martingale"].halved.item() == pytest.approx(0.335, abs=5e-4)


@pytest.mark.parametrize("kl", [1e-8, 1e-4, 1e-2])
def test_bounds_hold_on_coins_at_any_horizon(kl):
    coin = CoinPair.of_kl(kl)
    for horizon in (2, 10, 100, 4096, 200_000):
        table = bounds.table(
            horizon,
            kl=coin.kl,
            tv=coin.tv,
            chi2=coin.chi2,
            seq_kl=horizon * coin.kl,
            seq_tv=coin.seq_tv(horizon),
        )
        error = coin.worst_error(horizon)
        for name, bound in table.items():
            assert error <= bound.halved.item() * (1 + 1e-7), (name, horizon)


def test_a_tight_pair_of_many_tokens_is_a_coin():
    size = torch.tensor([0.05], dtype=torch.float64)
    tree = make_pairs("tight", size, vocabulary=4, horizon=5, generator=torch.Generator().manual_seed(0))
    coin = CoinPair(0.5, 0.5 * (1 + torch.tanh(size).item()))
    assert worst_error(error_weights(tree)).item() == pytest.approx(coin.worst_error(5))


def test_impossible_chains_and_coins_are_refused():
    with pytest.raises(ConfigError, match=r"current is 1\.0"):
        CoinPair(0.5, 1.0)
    with pytest.raises(ConfigError, match=r"kl is -1\.0"):
        CoinPair.of_kl(-1.0)
    with pytest.raises(ConfigError, match="horizon is 0"):
        CoinPair(0.5, 0.6).worst_error(0)
    with pytest.raises(ConfigError, match="horizon is 0"):
        measure_chain(random_chain(), 0)
