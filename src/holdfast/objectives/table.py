"""THE TABLE: every published objective is one row.

A row says what it `sets` (what makes it itself, and what composes) and what it uses when `alone` (filled in only where
no other row of a combination sets it). `equation` names a place in the paper only where somebody looked it up there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from holdfast.objectives.advantages import Group, Raw, Whiten
from holdfast.objectives.covariance import ClipCov
from holdfast.objectives.gates import (
    Arctan,
    Box,
    Clip,
    Erf,
    Gamma,
    LogArctan,
    LogClip,
    One,
    Sigmoid,
    Softsign,
)
from holdfast.objectives.masks import TrmAvg, TrmMax
from holdfast.objectives.penalties import EntropyBonus, Kl, KlCov
from holdfast.objectives.ratio_masks import LnTrm, Opsm, RatioBand, Ser
from holdfast.objectives.reduce import Normalize, Pool
from holdfast.objectives.token_masks import Dppo, M2po
from holdfast.objectives.weights import ImportanceWeight

_SEQUENCE = Normalize("sequence_mean_token_mean")
_SEQUENCE_SUM = Normalize("sequence_mean_token_sum")
_GEOMETRIC = Pool("sequence_mean", "after")
_CLIPPED = {"gate": Clip(0.2, 0.2)}


@dataclass(frozen=True)
class Row:
    """One published objective: where it is from, what it sets, and how our row differs from the source."""

    title: str
    paper: str
    equation: str
    defaults: str
    differs: str
    sets: Mapping[str, Any] = field(default_factory=dict)
    alone: Mapping[str, Any] = field(default_factory=dict)


TABLE: Mapping[str, Row] = {
    "reinforce": Row(
        title="Policy gradient",
        paper="Williams 1992",
        equation="Σ R ∇log π",
        defaults="none to set",
        differs="divided by the step's tokens, not by sequences",
        sets={"gate": One(), "carrier": "score", "advantage": Raw()},
    ),
    "rloo": Row(
        title="REINFORCE with a leave-one-out baseline",
        paper="arXiv 2402.14740",
        equation="A_i = R_i − mean of the others",
        defaults="none to set",
        differs="none: one term per sequence, summed over its tokens",
        sets={
            "gate": One(),
            "carrier": "score",
            "advantage": Group("leave_one_out", "none"),
            "normalize": _SEQUENCE_SUM,
        },
    ),
    "reinforce_pp": Row(
        title="REINFORCE++: clipped, whitened over the batch",
        paper="arXiv 2501.03262",
        equation="A whitened over the batch",
        defaults="ε = .2, γ = 1: the paper",
        differs="its token-level KL reward belongs to the rewards; add the penalty `kl` instead",
        sets={"gate": Clip(0.2, 0.2), "advantage": Whiten()},
    ),
    "ppo": Row(
        title="Proximal policy optimisation, clipped, with dual clip",
        paper="arXiv 1707.06347; dual clip arXiv 1912.09729",
        equation="min(r A, clip(r) A), dual clip max(., c A) where A < 0",
        defaults="ε = .2, dual clip 3: the papers, and verl",
        differs="advantages are group-relative unless others are given",
        sets={"gate": Clip(0.2, 0.2, dual=3.0)},
    ),
    "grpo": Row(
        title="Group relative policy optimisation",
        paper="arXiv 2402.03300",
        equation="mean_i mean_t min(r A, clip(r) A), A = (R − mean)/std",
        defaults="ε = .2",
        differs="no KL penalty unless one is added; 1e-4 in the standard deviation, as TRL",
        sets={"gate": Clip(0.2, 0.2), "normalize": _SEQUENCE, "advantage": Group()},
    ),
    "dr_grpo": Row(
        title="GRPO without its length and difficulty biases",
        paper="arXiv 2503.20783",
        equation="A = R − mean, divided by a fixed length",
        defaults="ε = .2; length is a constant: 1024 unless set, and then only a factor on the learning rate",
        differs="none",
        sets={"gate": Clip(0.2, 0.2), "normalize": Normalize("fixed_length", 1024), "advantage": Group(scale="none")},
    ),
    "dapo": Row(
        title="Decoupled clip and dynamic sampling policy optimisation",
        paper="arXiv 2503.14476",
        equation="token mean of min(r A, clip(r, 1−.2, 1+.28) A)",
        defaults="ε = .2 / .28",
        differs="dynamic sampling and overlong shaping belong to the data, not to the objective",
        sets={"gate": Clip(0.2, 0.28), "normalize": Normalize("token_mean")},
    ),
    "clip_higher": Row(
        title="Clip-higher: DAPO's wider upper clip alone",
        paper="arXiv 2503.14476",
        equation="clip(r, 1−.2, 1+.28)",
        defaults="ε = .2 / .28",
        differs="none",
        sets={"gate": Clip(0.2, 0.28)},
    ),
    "gspo": Row(
        title="Group sequence policy optimisation",
        paper="arXiv 2507.18071",
        equation="s_i = exp(mean_t log r_t), clipped",
        defaults="clip 3e-4 / 4e-4: the paper",
        differs="none",
        sets={"gate": Clip(3e-4, 4e-4), "pool": Pool("sequence_mean", "before"), "normalize": _SEQUENCE},
    ),
    "gspo_token": Row(
        title="GSPO with a gradient per token",
        paper="arXiv 2507.18071",
        equation="sg[s_i] θ/sg[θ]",
        defaults="clip 3e-4 / 4e-4: the paper",
        differs="none; equals gspo while the advantage is one number per sequence",
        sets={"gate": Clip(3e-4, 4e-4), "pool": Pool("sequence_mean", "before", "token"), "normalize": _SEQUENCE},
    ),
    "luspo": Row(
        title="Length-unbiased sequence policy optimisation",
        paper="LUSPO, as in TRL 1.16",
        equation="GSPO with each sequence weighted by its length",
        defaults="clip of GSPO",
        differs="none",
        sets={"gate": Clip(3e-4, 4e-4), "pool": Pool("sequence_mean", "before"), "normalize": _SEQUENCE_SUM},
    ),
    "gmpo": Row(
        title="Geometric-mean policy optimisation",
        paper="arXiv 2507.20673",
        equation="Π_t clip(r_t)^(1/n), one-sided clip of log r_t at ±.4",
        defaults="±.4 in log space",
        differs="none",
        sets={"gate": LogClip(0.4, 0.4), "pool": _GEOMETRIC, "normalize": _SEQUENCE},
    ),
    "cispo": Row(
        title="Clipped importance sampling policy optimisation",
        paper="arXiv 2506.13585",
        equation="sg(min(r, cap)) A log π",
        defaults="absolute cap 5.0: released code; verl caps relative to 1 (`relative`), TRL defaults to .2, which scales every on-policy gradient by .2",
        differs="no lower cap unless `low` is set",
        sets={"gate": Box(None, 5.0), "carrier": "score", "normalize": Normalize("token_mean")},
    ),
    "sapo": Row(
        title="Soft adaptive policy optimisation",
        paper="arXiv 2511.20347",
        equation="f(r) = (4/τ) σ(τ(r−1)) on tokens",
        defaults="τ = 1.0 / 1.05",
        differs="none",
        sets={"gate": Sigmoid(1.0, 1.05), "normalize": _SEQUENCE},
    ),
    "vespo": Row(
        title="Variational sequence-level soft policy optimisation",
        paper="arXiv 2602.10693",
        equation="sg(W^k e^(λ(1−W))) A log π, W = Π_t r_t",
        defaults="(k, λ) = (2, 3) where A > 0, (3, 2) where A < 0",
        differs="W is θ/old; add a weight for old/rollout",
        sets={
            "gate": Gamma(),
            "pool": Pool("sequence_sum", "before"),
            "carrier": "score",
            "normalize": Normalize("token_mean"),
        },
    ),
    "sspo": Row(
        title="Soft sequence policy optimisation, arctan of the log-ratio",
        paper="arXiv 2602.19327",
        equation="s_i = Π_t f(r_t)^(1/n_i), J = mean_i A_i s_i",
        defaults="temperatures 1.0 / 1.05 are SAPO's; the paper's are not settled; this gate is the later versions' default",
        differs="temperatures, as said",
        sets={"gate": LogArctan(tau_pos=1.0, tau_neg=1.05), "pool": _GEOMETRIC, "normalize": _SEQUENCE},
    ),
    "sspo_sigmoid": Row(
        title="Soft sequence policy optimisation, sigmoid",
        paper="arXiv 2602.19327",
        equation="s_i = Π_t f(r_t)^(1/n_i), J = mean_i A_i s_i",
        defaults="temperatures 1.0 / 1.05 are SAPO's; the paper's are not settled; version 1's gate",
        differs="temperatures, as said",
        sets={"gate": Sigmoid(tau_pos=1.0, tau_neg=1.05), "pool": _GEOMETRIC, "normalize": _SEQUENCE},
    ),
    "sspo_arctan": Row(
        title="Soft sequence policy optimisation, arctan of the ratio",
        paper="arXiv 2602.19327",
        equation="s_i = Π_t f(r_t)^(1/n_i), J = mean_i A_i s_i",
        defaults="temperatures 1.0 / 1.05 are SAPO's; the paper's are not settled",
        differs="temperatures, as said",
        sets={"gate": Arctan(tau_pos=1.0, tau_neg=1.05), "pool": _GEOMETRIC, "normalize": _SEQUENCE},
    ),
    "sspo_erf": Row(
        title="Soft sequence policy optimisation, error function",
        paper="arXiv 2602.19327",
        equation="s_i = Π_t f(r_t)^(1/n_i), J = mean_i A_i s_i",
        defaults="temperatures 1.0 / 1.05 are SAPO's; the paper's are not settled",
        differs="temperatures, as said",
        sets={"gate": Erf(tau_pos=1.0, tau_neg=1.05), "pool": _GEOMETRIC, "normalize": _SEQUENCE},
    ),
    "sspo_softsign": Row(
        title="Soft sequence policy optimisation, softsign",
        paper="arXiv 2602.19327",
        equation="s_i = Π_t f(r_t)^(1/n_i), J = mean_i A_i s_i",
        defaults="temperatures 1.0 / 1.05 are SAPO's; the paper's are not settled",
        differs="temperatures, as said",
        sets={"gate": Softsign(tau_pos=1.0, tau_neg=1.05), "pool": _GEOMETRIC, "normalize": _SEQUENCE},
    ),
    "topr": Row(
        title="Tapered off-policy REINFORCE",
        paper="arXiv 2503.14286",
        equation="weight 1 where A > 0, Π_t ρ_t limited to [0, 1] where A < 0",
        defaults="limits 1 and [0, 1]: the paper",
        differs="advantages are group-relative unless others are given",
        sets={
            "gate": Box(1.0, 1.0, None, 1.0),
            "pool": Pool("sequence_sum", "before"),
            "carrier": "score",
            "denominator": "rollout",
        },
    ),
    "dppo_tv": Row(
        title="Divergence proximal policy optimisation, binary total variation",
        paper="arXiv 2602.04879",
        equation="token mask by TV > δ where the update moves away",
        defaults="δ = .2; ratio capped at 20",
        differs="the mask's policy and the ratio's denominator are the rollout",
        sets={
            "masks": (Dppo(0.2, "binary_tv"),),
            "gate": Box(None, 20.0),
            "carrier": "score",
            "denominator": "rollout",
        },
    ),
    "dppo_kl": Row(
        title="Divergence proximal policy optimisation, binary KL",
        paper="arXiv 2602.04879",
        equation="token mask by KL > δ where the update moves away",
        defaults="δ = .05; ratio capped at 20",
        differs="as dppo_tv",
        sets={
            "masks": (Dppo(0.05, "binary_kl"),),
            "gate": Box(None, 20.0),
            "carrier": "score",
            "denominator": "rollout",
        },
    ),
    "dro": Row(
        title="Direct reward optimisation",
        paper="arXiv 2405.19107",
        equation="A log π − (β/2) (log θ/old)²",
        defaults="β = .1, to be fitted",
        differs="advantages stand for R − V; the quadratic is per token, as in verl, not per sequence",
        sets={"gate": One(), "carrier": "score", "penalties": (Kl(0.1, "k2", "old"),)},
    ),
    "m2po": Row(
        title="Second-moment trust policy optimisation",
        paper="arXiv 2510.01161",
        equation="mask until the mean of (log r)² is ≤ τ",
        defaults="τ = .04",
        differs="the budget is over the whole optimiser step",
        sets={"masks": (M2po(),), "denominator": "rollout"},
    ),
    "decoupled_ppo": Row(
        title="Decoupled PPO: proximal and behaviour policy apart",
        paper="arXiv 2505.24298",
        equation="(old/rollout) min(r A, clip(r) A), r = θ/old",
        defaults="ε = .2; weights above 5 dropped: AReaL",
        differs="none",
        sets={"gate": Clip(0.2, 0.2), "denominator": "old", "weights": (ImportanceWeight(high=5.0, outside="zero"),)},
    ),
    "tis": Row(
        title="Truncated importance sampling of the engine mismatch",
        paper="Yao et al. 2025, off-policy RL notes",
        equation="min(old/rollout, 2) per token",
        defaults="cap 2",
        differs="none",
        sets={"weights": (ImportanceWeight(high=2.0),), "denominator": "old"},
        alone=_CLIPPED,
    ),
    "mis": Row(
        title="Masked importance sampling of the engine mismatch",
        paper="Liu et al. 2025, training-inference mismatch notes",
        equation="(old/rollout)·1[≤ 2] per token",
        defaults="cap 2, as TIS",
        differs="none",
        sets={"weights": (ImportanceWeight(high=2.0, outside="zero"),), "denominator": "old"},
        alone=_CLIPPED,
    ),
    "icepop": Row(
        title="IcePop: tokens whose engine and trainer disagree get no gradient",
        paper="arXiv 2510.18855",
        equation="(old/rollout)·1[.5 ≤ old/rollout ≤ 5]",
        defaults="[.5, 5]",
        differs="none",
        sets={"weights": (ImportanceWeight(0.5, 5.0, outside="zero"),), "denominator": "old"},
        alone=_CLIPPED,
    ),
    "geo_rs": Row(
        title="Rejection by the geometric mean of ratios",
        paper="verl 0.9.1, rollout correction",
        equation="keep iff lo ≤ exp(mean log ρ) ≤ hi",
        defaults="[.999, 1.001]: verl's documentation",
        differs="bounds are on θ/rollout; verl's k1 thresholds are on its inverse",
        sets={"masks": (RatioBand(0.999, 1.001, "sequence_mean"),), "denominator": "rollout"},
        alone=_CLIPPED,
    ),
    "opsm": Row(
        title="Off-policy sequence masking",
        paper="DeepSeek-V3.2",
        equation="drop iff A < 0 and mean(log rollout − log θ) > δ",
        defaults="δ = .05, to be fitted",
        differs="none",
        sets={"masks": (Opsm(),)},
        alone={"gate": Clip(0.2, 0.2), "normalize": _SEQUENCE},
    ),
    "trm_max": Row(
        title="Trust region masking by the maximum divergence",
        paper="arXiv 2512.23075",
        equation="keep iff max_t D_t ≤ δ",
        defaults="δ = .05 on k2: the paper's training runs",
        differs="divided by the step's tokens, not sequences, when alone: a positive factor per step",
        sets={"masks": (TrmMax(),), "denominator": "rollout"},
    ),
    "trm_avg": Row(
        title="Trust region masking by the mean divergence",
        paper="arXiv 2512.23075",
        equation="keep iff mean_t D_t ≤ δ",
        defaults="δ = .001 on k3: the paper's training runs",
        differs="as trm_max",
        sets={"masks": (TrmAvg(),), "denominator": "rollout"},
    ),
    "trm": Row(
        title="Trust region masking by maximum and mean together",
        paper="arXiv 2512.23075",
        equation="keep iff max_t D_t ≤ δ and mean_t D_t ≤ δ_avg",
        defaults="δ = .1 and δ_avg = .002: together stable where each alone collapsed",
        differs="as trm_max",
        sets={"masks": (TrmMax(0.1), TrmAvg(0.002)), "denominator": "rollout"},
    ),
    "ln_trm": Row(
        title="Length-neutral trust region masking",
        paper="arXiv 2512.23075",
        equation="keep iff Σ|ρ−1|w / Σw ≤ δ_W",
        defaults="δ_W = .05, ε = .1, KL .02, horizon 4096: to be fitted to the run",
        differs="as trm_max",
        sets={"masks": (LnTrm(),), "denominator": "rollout"},
    ),
    "ser": Row(
        title="Rejection by the mean deviation of the ratio",
        paper="arXiv 2512.23075",
        equation="keep iff mean_t |ρ_t − 1| ≤ d",
        defaults="d = .05, inside the published [.03, .10]",
        differs="as trm_max",
        sets={"masks": (Ser(),), "denominator": "rollout"},
    ),
    "entropy_bonus": Row(
        title="The classical entropy bonus",
        paper="Williams and Peng 1991; its bias: arXiv 2604.09676",
        equation="L − α H",
        defaults="α = .001, common in practice",
        differs="the mean of H uses the objective's normaliser",
        sets={"penalties": (EntropyBonus(),)},
        alone=_CLIPPED,
    ),
    "adaptive_entropy": Row(
        title="Entropy bonus that tracks a target",
        paper="arXiv 2505.22312 (Skywork-OR1)",
        equation="α ± step, active while H ≤ target",
        defaults="target .2 nats, steps of .005: the paper",
        differs="use the objective that `after_step` returns",
        sets={"penalties": (EntropyBonus(alpha=0.0, target=0.2, adapt=0.005),)},
        alone=_CLIPPED,
    ),
    "clip_cov": Row(
        title="Entropy control by clipping high-covariance tokens",
        paper="arXiv 2505.22617",
        equation="⌊rK⌋ of the tokens with 1 < Cov < 5 lose their gradient",
        defaults="r = 2e-4, 1 < Cov < 5",
        differs="statistics over the whole optimiser step; see ClipCov",
        sets={"masks": (ClipCov(),)},
        alone=_CLIPPED,
    ),
    "kl_cov": Row(
        title="Entropy control by a KL penalty on high-covariance tokens",
        paper="arXiv 2505.22617",
        equation="KL penalty on the top kK tokens by Cov",
        defaults="k = 2e-3 (its 7B runs), β = 1",
        differs="a smooth k2 instead of |log θ − log old|; see KlCov",
        sets={"penalties": (KlCov(),)},
    ),
}
