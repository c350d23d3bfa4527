"""Rows of the table that control what trains: corrections of the engine mismatch, trust regions, entropy control."""

import math

from holdfast.objectives.parts.advantages import Group
from holdfast.objectives.parts.covariance import ClipCov
from holdfast.objectives.parts.gates import Clip
from holdfast.objectives.parts.masks import TrmAvg, TrmMax
from holdfast.objectives.parts.penalties import EntropyBonus, Kl, KlCov
from holdfast.objectives.parts.ratio_masks import LnTrm, Opsm, RatioBand, Ser
from holdfast.objectives.parts.reduce import Normalize
from holdfast.objectives.parts.token_masks import TopEntropy
from holdfast.objectives.parts.weights import ImportanceWeight
from holdfast.objectives.table.row import Row

_SEQUENCE = Normalize("sequence_mean_token_mean")
_CLIPPED = {"gate": Clip(0.2, 0.2)}

CONTROL_ROWS: dict[str, Row] = {
    "decoupled_ppo": Row(
        title="Decoupled PPO: proximal and behaviour policy apart",
        paper="arXiv 2505.24298",
        equation="eq. 5: (old/rollout) min(r A, clip(r) A), r = θ/old",
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
    "seq_mask_tis": Row(
        title="Rejection by the geometric mean, the raw weight on what is left",
        paper="Liu et al. 2025, training-inference mismatch notes; NeMo-RL",
        equation="(old/rollout)·1[lo ≤ exp(mean log old/rollout) ≤ hi]",
        defaults="[.999, 1.002]: NeMo-RL's ProRL v2",
        differs="none",
        sets={
            "masks": (RatioBand(0.999, 1.002, "sequence_mean", numerator="old"),),
            "weights": (ImportanceWeight(high=math.inf),),
            "denominator": "old",
        },
        alone=_CLIPPED,
    ),
    "flash_reinforce": Row(
        title="FlashREINFORCE: one rollout per prompt, rejection by the mean binary KL",
        paper="OpenRLHF 0.11.2",
        equation="(old/rollout)·1[mean KL_bin(rollout‖old) ≤ δ], A = R − mean of the step",
        defaults="δ = .003: OpenRLHF's tests, its help names none; ε = .2",
        differs="none",
        sets={
            "masks": (TrmAvg(0.003, "binary_kl", numerator="old"),),
            "weights": (ImportanceWeight(high=math.inf),),
            "denominator": "old",
        },
        alone=_CLIPPED | {"advantage": Group("step_mean", "none")},
    ),
    "opsm": Row(
        title="Off-policy sequence masking",
        paper="arXiv 2512.02556 (DeepSeek-V3.2)",
        equation="eq. 9: drop iff A < 0 and mean(log rollout − log θ) > δ",
        defaults="δ = .05: chosen here; the paper gives none, TRL suggests .5, slime 1e-4",
        differs="none",
        sets={"masks": (Opsm(),)},
        alone={"gate": Clip(0.2, 0.2), "normalize": _SEQUENCE},
    ),
    "trm_max": Row(
        title="Trust region masking by the maximum divergence",
        paper="arXiv 2512.23075",
        equation="section 4.3, Algorithm 1: keep iff max_t D_t ≤ δ",
        defaults="δ = .05 on k2: the paper's training runs",
        differs="divided by the step's tokens, not sequences, when alone: a positive factor per step",
        sets={"masks": (TrmMax(),), "denominator": "rollout"},
    ),
    "trm_token": Row(
        title="Trust region masking of single tokens, by context",
        paper="after arXiv 2512.23075; docs/theory/scopes.md",
        equation="keep token t iff D(c_t) ≤ δ, D known before the token is drawn",
        defaults="δ = .05 on the exact KL: trm_max's number, to be fitted to the run",
        differs="the paper drops the whole response; where only the engine's top-K is known set detector = tv_upper",
        sets={"masks": (TrmMax(detector="kl_exact", scope="token"),), "denominator": "rollout"},
    ),
    "trm_prefix": Row(
        title="Trust region masking from the first bad context on",
        paper="after arXiv 2512.23075; docs/theory/scopes.md",
        equation="keep token t iff max_{s ≤ t} D(c_s) ≤ δ, D known before the token is drawn",
        defaults="as trm_token",
        differs="as trm_token",
        sets={"masks": (TrmMax(detector="kl_exact", scope="prefix"),), "denominator": "rollout"},
    ),
    "trm_avg": Row(
        title="Trust region masking by the mean divergence",
        paper="arXiv 2512.23075",
        equation="section 4.3, Algorithm 1: keep iff mean_t D_t ≤ δ",
        defaults="δ = .001 on k3: the paper's training runs",
        differs="as trm_max",
        sets={"masks": (TrmAvg(),), "denominator": "rollout"},
    ),
    "trm": Row(
        title="Trust region masking by maximum and mean together",
        paper="arXiv 2512.23075",
        equation="section 4.3: keep iff max_t D_t ≤ δ and mean_t D_t ≤ δ_avg",
        defaults="δ = .1 and δ_avg = .002: together stable where each alone collapsed",
        differs="as trm_max",
        sets={"masks": (TrmMax(0.1), TrmAvg(0.002)), "denominator": "rollout"},
    ),
    "ln_trm": Row(
        title="Length-neutral trust region masking",
        paper="arXiv 2512.23075",
        equation="appendix on length-neutral masking: keep iff Σ|ρ−1|w / Σw ≤ δ_W",
        defaults="δ_W = .05, ε = .1, KL .02, horizon 4096: to be fitted to the run",
        differs="w_t uses the maximum horizon, not the realised length, which its bound needs; see trm_max",
        sets={"masks": (LnTrm(),), "denominator": "rollout"},
    ),
    "ser": Row(
        title="Rejection by the mean deviation of the ratio",
        paper="arXiv 2512.23075",
        equation="appendix on length-neutral masking: keep iff mean_t |ρ_t − 1| ≤ d",
        defaults="d = .05, inside the published [.03, .10]",
        differs="as trm_max",
        sets={"masks": (Ser(),), "denominator": "rollout"},
    ),
    "two_sided": Row(
        title="An upper limit on the ratio of bad tokens, beside the clip",
        paper="INTELLECT-2, arXiv 2505.07291; dual clip arXiv 1912.09729",
        equation="min(min(r, δ) A, clip(r) A): r ≤ δ where A < 0",
        defaults="δ = 4: INTELLECT-2",
        differs="the dual clip by another name: equal while δ > 1 + ε",
        sets={"gate.dual": 4.0},
        alone=_CLIPPED,
    ),
    "top_entropy": Row(
        title="Gradients on the tokens of highest entropy alone",
        paper="arXiv 2506.01939",
        equation="keep token t iff H_t is in the top 20 % of the step",
        defaults="20 %: the paper",
        differs="quantile over the whole optimiser step; the rest stays in the denominator",
        sets={"masks": (TopEntropy(0.2),)},
        alone=_CLIPPED,
    ),
    "unbiased_kl": Row(
        title="The k3 penalty to the reference, weighted by the ratio",
        paper="arXiv 2512.02556 (DeepSeek-V3.2)",
        equation="(θ/old) (e^d − d − 1), d = log ref − log θ",
        defaults="β = .001: common in practice",
        differs="none; the gradient runs through the ratio too",
        sets={"penalties": (Kl(0.001, "k3", "ref", ratio_weighted=True),)},
        alone=_CLIPPED,
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
        defaults="target .2 nats: the paper; steps of .005: TRL 1.16",
        differs="use the objective that `after_step` returns",
        sets={"penalties": (EntropyBonus(alpha=0.0, target=0.2, adapt=0.005),)},
        alone=_CLIPPED,
    ),
    "clip_cov": Row(
        title="Entropy control by clipping high-covariance tokens",
        paper="arXiv 2505.22617",
        equation="eq. 11 and 12: ⌊rK⌋ of the tokens with 1 < Cov < 5 lose their gradient",
        defaults="r = 2e-4, 1 < Cov < 5: section 4.3",
        differs="statistics over the whole optimiser step; see ClipCov",
        sets={"masks": (ClipCov(),)},
        alone=_CLIPPED,
    ),
    "kl_cov": Row(
        title="Entropy control by a KL penalty on high-covariance tokens",
        paper="arXiv 2505.22617",
        equation="eq. 13 and 14: KL(old‖θ) on the top kK tokens by Cov",
        defaults="k = 2e-3 (its 7B runs), β = 1: section 4.3",
        differs="a smooth k2 instead of |log θ − log old|; taken to the policy below the ratio, which is old unless "
        "`denominator` or another row says rollout; see KlCov",
        sets={"penalties": (KlCov(),)},
    ),
}
