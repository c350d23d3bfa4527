"""One golden row per preset, worked by hand: the expected loss is written as its arithmetic.

Two sequences. Ratios r = θ/old, q = old/rollout, so ρ = θ/rollout = r q:
  sequence 1, A = +1:  r = 1.5, 0.5        q = 1, 1.25       ρ = 1.5, 0.625
  sequence 2, A = −1:  r = 0.5, 1.1, 1.6   q = 0.8, 1, 3     ρ = 0.4, 1.1, 4.8
old = 0.4 everywhere, so θ = 0.6, 0.2 and 0.2, 0.44, 0.64. The teacher gives .5, .3 and .1, .11, .32, the reference .5.
"""

from math import atan, erf, exp, log, pi, sqrt

import pytest
import torch

from holdfast import Batch, TokenStats, list_presets, preset

R1, R2 = (1.5, 0.5), (0.5, 1.1, 1.6)
P1, P2 = (1.5, 0.625), (0.4, 1.1, 4.8)
Q1, Q2 = (1.0, 1.25), (0.8, 1.0, 3.0)
L1, L2 = (log(0.6), log(0.2)), (log(0.2), log(0.44), log(0.64))
H = (0.5, 0.7, 0.2, 0.1, 0.4)
KL = (0.01, 0.2, 0.2, 0.01, 0.01)


def sigmoid_gate(r, tau):
    return 4 / tau / (1 + exp(-tau * (r - 1)))


def geometric(gate, ratios):
    product = 1.0
    for r in ratios:
        product *= gate(r)
    return product ** (1 / len(ratios))


def sspo(gate):
    """−(s_1 − s_2)/2 with τ = 1 where A > 0 and 1.05 where A < 0."""
    return -(geometric(lambda r: gate(r, 1.0), R1) - geometric(lambda r: gate(r, 1.05), R2)) / 2


S1, S2 = (1.5 * 0.5) ** (1 / 2), (0.5 * 1.1 * 1.6) ** (1 / 3)
# PPO's clip at .2: A > 0 caps r at 1.2; A < 0 lifts r to .8, and the last two tokens stay.
CLIPPED = (1.2 + 0.5) - (0.8 + 1.1 + 1.6)
# Covariances (log θ − mean)(A − mean) over the five tokens, for KL-Cov's choice; mean A = (2 − 3)/5 = −.2.
MEAN_LOG = (sum(L1) + sum(L2)) / 5
COV = [(lp - MEAN_LOG) * (1 + 0.2) for lp in L1] + [(lp - MEAN_LOG) * (-1 + 0.2) for lp in L2]
SQUARES = sum(log(r) ** 2 for r in P1 + P2)
TOP_TWO = sorted(range(5), key=lambda t: -COV[t])[:2]

GOLDEN = {
    "reinforce": ({}, -(sum(L1) - sum(L2)) / 5),
    "rloo": ({}, -(sum(L1) - sum(L2)) / 2),
    "reinforce_pp": ({}, -CLIPPED / 5),
    "ppo": ({}, -CLIPPED / 5),
    "grpo": ({}, -((1.2 + 0.5) / 2 - (0.8 + 1.1 + 1.6) / 3) / 2),
    "dr_grpo": ({"length": 10}, -CLIPPED / (2 * 10)),
    "dapo": ({}, -((1.28 + 0.5) - (0.8 + 1.1 + 1.6)) / 5),
    "clip_higher": ({}, -((1.28 + 0.5) - (0.8 + 1.1 + 1.6)) / 5),
    # s_1 = .866 < 1.0004 stays; s_2 = .958 is lifted to 1 − 3e-4.
    "gspo": ({}, -(S1 - 0.9997) / 2),
    "gspo_token": ({}, -(S1 - 0.9997) / 2),
    "luspo": ({}, -(2 * S1 - 3 * 0.998) / 2),
    # log 1.5 = .405 is cut to .4; A < 0: log .5 = −.693 is lifted to −.4.
    "gmpo": ({}, -(exp((0.4 + log(0.5)) / 2) - exp((-0.4 + log(1.1) + log(1.6)) / 3)) / 2),
    "cispo": ({"high": 1.55}, -(1.5 * L1[0] + 0.5 * L1[1] - 0.5 * L2[0] - 1.1 * L2[1] - 1.55 * L2[2]) / 5),
    "sapo": ({}, -(sum(sigmoid_gate(r, 1.0) for r in R1) / 2 - sum(sigmoid_gate(r, 1.05) for r in R2) / 3) / 2),
    # W_1 = .75: W² e^(3(1−W)); W_2 = .88: W³ e^(2(1−W)).
    "vespo": ({}, -(0.75**2 * exp(3 * 0.25) * sum(L1) - 0.88**3 * exp(2 * 0.12) * sum(L2)) / 5),
    "sspo": ({}, sspo(lambda r, tau: exp(atan(tau * log(r)) / tau))),
    "sspo_sigmoid": ({}, sspo(sigmoid_gate)),
    "sspo_arctan": ({}, sspo(lambda r, tau: 1 + atan(tau * (r - 1)) / tau)),
    "sspo_erf": ({}, sspo(lambda r, tau: 1 + sqrt(pi) / (2 * tau) * erf(tau * (r - 1)))),
    "sspo_softsign": ({}, sspo(lambda r, tau: 1 + (r - 1) / (1 + tau * abs(r - 1)))),
    # Π ρ = 2.112 for sequence 2, limited to 1; sequence 1 has weight 1 whatever its ratio.
    "topr": ({}, -(sum(L1) - sum(L2)) / 5),
    # θ − rollout: .6 − .4 = .2 ≤ .2 stays; A < 0 and falling: .2 − .5 = −.3 goes; rising tokens of A < 0 stay.
    "dppo_tv": ({"max_divergence": 0.2001}, -(1.5 * L1[0] + 0.625 * L1[1] - 1.1 * L2[1] - 4.8 * L2[2]) / 5),
    # KL({.4,.6}‖{.6,.4}) = .081 > .05 goes; KL({.5,.5}‖{.2,.8}) = .223 goes.
    "dppo_kl": ({}, -(0.625 * L1[1] - 1.1 * L2[1] - 4.8 * L2[2]) / 5),
    # θ − rollout = .2, −.12 and −.3, .04, .507; penalties on all five tokens whatever the mask says.
    "prime_rl": ({"max_divergence": 0.2001}, (-(1.5 + 0.625 - 1.1 - 4.8) + 0.001 * SQUARES) / 5),
    "ipo": ({"max_divergence": 0.15}, (-(0.625 - 1.1) + 0.001 * SQUARES) / 5),
    # Only −.3 has fallen by more than .2; A_t = log(teacher/θ) of every token, whatever the batch's advantages are.
    "opd": ({}, (-(1.5 * log(0.5 / 0.6) + 0.625 * log(0.3 / 0.2) + 1.1 * log(0.11 / 0.44) + 4.8 * log(0.32 / 0.64))
                 + 0.001 * SQUARES) / 5),
    "maxrl": ({}, -CLIPPED / 5),
    # S_1 = log √.75, S_2 = log ∛.88, τ = 1: e^−S_1/(1 + e^−S_1) = .536, e^S_2/(1 + e^S_2) = .489; one group of two.
    "real": ({"tau": 1.0}, -(2 * S1**-1 / (1 + S1**-1) * sum(L1) / 2 - 2 * S2 / (1 + S2) * sum(L2) / 3) / 2),
    "otb": ({}, -CLIPPED / 5),
    # Half-life 1, so γ = .5. Sequence 1: log 1.5 + .5 log .5 = .059, log .5 < 0; sequence 2: log .5 + .5 log 1.1 +
    # .25 log 1.6 = −.528, log 1.1 + .5 log 1.6 = .330, log 1.6 = .470. Weights in [1, 1.5].
    "fipo": ({"half_life": 1.0, "future_kl.high": 1.5},
             -(1.2 * 1.5 * sqrt(0.5) + 0.5 - 0.8 - 1.1 * 1.1 * sqrt(1.6) - 1.6 * 1.5) / 5),
    "dro": ({}, (-(sum(L1) - sum(L2)) + 0.1 * sum(log(r) ** 2 / 2 for r in R1 + R2)) / 5),
    # A > 0: r = 1.5 is above 1.2 and gone, r = .5 turns over to 2; A < 0: r = .5 is below .8 and gone.
    "aspo": ({}, -(2 * L1[1] - 1.1 * L2[1] - 1.6 * L2[2]) / 5),
    # |θ − rollout| = .2 at the first token of sequence 1, .3 of sequence 2 (over the budget); the others move back.
    "cppo": ({"budget": 0.25}, -(1.5 * L1[0] + 0.625 * L1[1] - 1.1 * L2[1] - 4.8 * L2[2]) / 5),
    # Moving away: log² 1.5 = .164 and log² .4 = .840; only the mean of the first alone is within .2.
    "m2po": ({"max_second_moment": 0.2}, -(1.5 + 0.625 - 1.1 - 4.8) / 5),
    "decoupled_ppo": ({"weights": [{"kind": "importance_weight", "high": 2.5, "outside": "zero"}]},
                      -(1.2 * 1 + 0.5 * 1.25 - 0.8 * 0.8 - 1.1 * 1) / 5),
    "tis": ({}, -(1.2 * 1 + 0.5 * 1.25 - 0.8 * 0.8 - 1.1 * 1 - 1.6 * 2) / 5),
    "mis": ({}, -(1.2 * 1 + 0.5 * 1.25 - 0.8 * 0.8 - 1.1 * 1) / 5),
    "icepop": ({"importance_weight.low": 0.9}, -(1.2 * 1 + 0.5 * 1.25 - 1.1 * 1 - 1.6 * 3) / 5),
    # Geometric means of ρ: √.9375 = .968 and ∛2.112 = 1.283.
    "geo_rs": ({"ratio_band.low": 0.9, "ratio_band.high": 1.1}, -(1.2 + 0.625) / 5),
    # Geometric means of q: √1.25 = 1.118 and ∛2.4 = 1.339; what is kept has its raw weight.
    "seq_mask_tis": ({"ratio_band.low": 1.1, "ratio_band.high": 1.2}, -(1.2 * 1 + 0.5 * 1.25) / 5),
    # rollout = old/q = .4, .32 and .5, .4, .133: KL_bin(.32‖.4) = .0138, mean .0069; KL_bin(.5‖.4) = .0204 and
    # KL_bin(.133‖.4) = .172, mean .0641.
    "flash_reinforce": ({"delta_avg": 0.05}, -(1.2 * 1 + 0.5 * 1.25) / 5),
    # mean(log rollout − log θ) = −.249 for sequence 2: kept. The sign makes the drift of 4.8 and .4 cancel.
    "opsm": ({}, -((1.2 + 0.5) / 2 - (0.8 + 1.1 + 1.6) / 3) / 2),
    # k2: log² 1.5/2 = .082, log² .625/2 = .110; sequence 2 has log² 4.8/2 = 1.23.
    "trm_max": ({"delta": 0.12}, -(1.5 + 0.625) / 5),
    # Exact KL .01, .2 and .2, .01, .01 against δ = .05: single tokens go, or all from the first on.
    "trm_token": ({}, -(1.5 - 1.1 - 4.8) / 5),
    "trm_prefix": ({}, -1.5 / 5),
    # k3: .5 − log 1.5 = .0945, −.375 − log .625 = .0950, mean .0948; sequence 2 has mean .87.
    "trm_avg": ({"delta_avg": 0.095}, -(1.5 + 0.625) / 5),
    "trm": ({"delta": 0.12, "delta_avg": 0.0947}, 0.0),
    # horizon 3, ε = .1, δ/2 = .01: w = min(.1 k, √(.01 k)) for k = 2, 1, 0 left: .1414, .1, 0.
    # Sequence 1: (.5·.1414 + .375·.1)/.2414 = .448; sequence 2: (.6·.1414 + .1·.1)/.2414 = .393.
    "ln_trm": ({"max_weighted": 0.4, "horizon": 3}, -(-0.4 - 1.1 - 4.8) / 5),
    # mean |ρ − 1|: (.5 + .375)/2 = .4375 and (.6 + .1 + 3.8)/3 = 1.5.
    "ser": ({"max_deviation": 0.44}, -(1.5 + 0.625) / 5),
    # 1.6 is cut to 1.55 where A < 0.
    "two_sided": ({"dual": 1.55}, -((1.2 + 0.5) - (0.8 + 1.1 + 1.55)) / 5),
    # The .6 quantile of the entropies .1 .2 .4 .5 .7 is .44.
    "top_entropy": ({"top": 0.4}, -(1.2 + 0.5) / 5),
    # r (e^d − d − 1), d = log ref/θ with ref = .5 everywhere.
    "unbiased_kl": ({"coefficient": 0.1}, -CLIPPED / 5 + 0.1 * sum(
        r * (0.5 / (0.4 * r) - log(0.5 / (0.4 * r)) - 1) for r in R1 + R2) / 5),
    "entropy_bonus": ({"alpha": 0.1}, -CLIPPED / 5 - 0.1 * sum(H) / 5),
    # mean entropy .38 is above the target: no bonus.
    "adaptive_entropy": ({"alpha": 0.1}, -CLIPPED / 5),
    # All five tokens are eligible and all are drawn: nothing is left.
    "clip_cov": ({"clip_share": 1.0, "clip_cov.low": -9.0, "clip_cov.high": 9.0}, 0.0),
    # ⌊.4·5⌋ = 2 tokens: the largest covariances.
    "kl_cov": ({"share": 0.4}, (-(1.5 + 0.5 - 0.5 - 1.1 - 1.6) + sum(log((R1 + R2)[t]) ** 2 / 2 for t in TOP_TWO)) / 5),
}  # fmt: skip


def batch_and_stats():
    def rows(first, second):
        return torch.tensor([[*first, float("nan")], [*second]], dtype=torch.float64)

    theta = rows([0.4 * r for r in R1], [0.4 * r for r in R2])
    rho = rows(P1, P2)
    batch = Batch(
        advantages=torch.tensor([1.0, -1.0], dtype=torch.float64),
        response_mask=torch.tensor([[True, True, False], [True, True, True]]),
        old_logprobs=rows([0.4] * 2, [0.4] * 3).log(),
        rollout_logprobs=(theta / rho).log(),
        ref_logprobs=rows([0.5] * 2, [0.5] * 3).log(),
        teacher_logprobs=rows([0.5, 0.3], [0.1, 0.11, 0.32]).log(),
        sequence_ids=torch.tensor([0, 1]),
        group_ids=torch.tensor([0, 0]),
    )
    return batch, TokenStats(logprobs=theta.log(), entropy=rows(H[:2], H[2:]), kl_rollout=rows(KL[:2], KL[2:]))


@pytest.mark.parametrize("name", GOLDEN)
def test_golden(name):
    overrides, expected = GOLDEN[name]
    loss = preset(name, **overrides)(*batch_and_stats()).loss
    assert loss.item() == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_every_preset_has_a_golden_row():
    assert set(GOLDEN) == set(list_presets())
