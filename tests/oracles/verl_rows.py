"""verl 0.9.1 against Holdfast: what equals what, and where the two part."""

from oracles.rows import Difference, Row

_CLIP = {"clip_ratio": 0.2, "clip_ratio_low": 0.2, "clip_ratio_high": 0.2, "clip_ratio_c": 3.0}
_WIDE = _CLIP | {"clip_ratio_low": 0.2, "clip_ratio_high": 0.3}
_TOKEN = {"loss_agg_mode": "token-mean"}
_SEQUENCE = {"loss_agg_mode": "seq-mean-token-mean"}
_DPPO = {"clip_ratio_c": 20.0} | _TOKEN


def _loss(name: str, mode: str, settings: dict, ours: str, note: str = "", **options) -> Row:
    placement = {key: options.pop(key) for key in ("min_tokens", "widest") if key in options}
    return Row(name, settings, ours, note, options={"loss_mode": mode} | options, **placement)


ROWS = [
    _loss(
        "vanilla, dual clip, token-mean",
        "vanilla",
        _CLIP | _TOKEN,
        "preset('ppo')",
        "both limit them to ±20",
        widest=25.0,
    ),
    _loss(
        "vanilla, clip-higher, seq-mean-token-sum",
        "vanilla",
        _CLIP | {"clip_ratio_high": 0.28, "clip_ratio_c": 10.0, "loss_agg_mode": "seq-mean-token-sum"},
        "preset('ppo', high=0.28, dual=10.0, normalize=Normalize('sequence_mean_token_sum'))",
    ),
    _loss(
        "vanilla, seq-mean-token-mean",
        "vanilla",
        _CLIP | _SEQUENCE,
        "preset('grpo', dual=3.0)",
    ),
    _loss(
        "vanilla, seq-mean-token-sum-norm",
        "vanilla",
        _CLIP | {"loss_agg_mode": "seq-mean-token-sum-norm", "loss_scale_factor": 32},
        "preset('dr_grpo', length=32, dual=3.0)",
    ),
    _loss(
        "vanilla, token weights (TIS)",
        "vanilla",
        _CLIP | _TOKEN | {"rollout_is": "token", "rollout_is_threshold": 2.0},
        "preset('ppo+tis')",
    ),
    _loss(
        "vanilla, sequence weights",
        "vanilla",
        _CLIP | _TOKEN | {"rollout_is": "sequence", "rollout_is_threshold": 2.0},
        "preset('ppo', weights=(ImportanceWeight(high=2.0, over='sequence_sum'),))",
        widest=3.0,
    ),
    _loss(
        "vanilla, token weights zero outside (IcePop)",
        "vanilla",
        _CLIP | _TOKEN | {"rollout_is": "token", "rollout_is_threshold": "0.5_5.0"},
        "preset('ppo+icepop')",
    ),
    _loss(
        "vanilla, sequence weights zero outside",
        "vanilla",
        _CLIP | _TOKEN | {"rollout_is": "sequence", "rollout_is_threshold": "0.2_3.0"},
        "preset('ppo', weights=(ImportanceWeight(0.2, 3.0, 'sequence_sum', 'zero'),))",
        widest=3.0,
    ),
    _loss(
        "vanilla, batch-normalised token weights",
        "vanilla",
        _CLIP | _TOKEN | {"rollout_is": "token", "rollout_is_threshold": 2.0, "rollout_is_batch_normalize": True},
        "preset('ppo', weights=(ImportanceWeight(batch_normalize=True),))",
    ),
    _loss(
        "vanilla, batch-normalised sequence weights",
        "vanilla",
        _CLIP | _TOKEN | {"rollout_is": "sequence", "rollout_is_threshold": 2.0, "rollout_is_batch_normalize": True},
        "preset('ppo', weights=(ImportanceWeight(over='sequence_sum', batch_normalize=True),))",
        widest=0.3,
    ),
    _loss("gspo", "gspo", _WIDE | _SEQUENCE, "preset('gspo_token', low=0.2, high=0.3)"),
    _loss(
        "gspo, token-mean",
        "gspo",
        _WIDE | _TOKEN,
        "preset('gspo_token', low=0.2, high=0.3, normalize=Normalize('token_mean'))",
    ),
    _loss(
        "geo_mean",
        "geo_mean",
        _CLIP | {"clip_ratio_low": 0.4, "clip_ratio_high": 0.4},
        "preset('gmpo')",
    ),
    _loss(
        "cispo",
        "cispo",
        _CLIP | {"clip_ratio_high": 0.28} | _TOKEN,
        "preset('cispo', low=0.2, high=0.28, relative=True)",
        widest=25.0,
    ),
    _loss("sapo", "sapo", _CLIP | _SEQUENCE, "preset('sapo')"),
    _loss(
        "dppo_tv",
        "dppo_tv",
        _DPPO | {"clip_ratio_low": 0.2, "clip_ratio_high": 0.2},
        "preset('dppo_tv', denominator='old', policy='old')",
        "its old policy is the rollout only in bypass mode",
        widest=25.0,
    ),
    _loss(
        "dppo_kl",
        "dppo_kl",
        _DPPO | {"clip_ratio_low": 0.05, "clip_ratio_high": 0.05},
        "preset('dppo_kl', denominator='old', policy='old')",
        "its old policy is the rollout only in bypass mode",
    ),
    _loss("dro", "dro", _CLIP | _TOKEN | {"dro_beta": 0.3}, "preset('dro', coefficient=0.3)"),
    _loss("gpg", "gpg", _CLIP | _TOKEN, "preset('reinforce')"),
    _loss(
        "clip_cov, every eligible token drawn",
        "clip_cov",
        _CLIP
        | _TOKEN
        | {
            "clip_ratio_low": 0.6,
            "clip_ratio_high": 1.0,
            "clip_cov_ratio": 1.0,
            "clip_cov_lb": 0.2,
            "clip_cov_ub": 1.5,
        },
        "preset('clip_cov', gate=Clip(0.6, 1.0), clip_share=1.0, **{'clip_cov.low': 0.2, 'clip_cov.high': 1.5})",
        "with a clip that nothing reaches",
        widest=0.5,
    ),
    _loss(
        "kl_cov",
        "kl_cov",
        _CLIP | _TOKEN | {"kl_cov_ratio": 0.25, "ppo_kl_coef": 1.0},
        "preset('kl_cov', share=0.25, form='abs')",
        "a share of at least one token",
        min_tokens=8,
    ),
    _loss(
        "bypass mode, ppo_clip, rejection, all tokens counted",
        "bypass_mode",
        _CLIP
        | _TOKEN
        | {"loss_type": "ppo_clip", "rollout_rs": "seq_max_k2,seq_mean_k3", "rollout_rs_threshold": "0.5,0.1"},
        "preset('trm+ppo', delta=0.5, delta_avg=0.1)",
        "what the v1 trainer divides by",
        widest=0.9,
    ),
    _loss(
        "bypass mode, ppo_clip, rejection, survivors counted",
        "bypass_mode",
        _CLIP
        | _TOKEN
        | {"loss_type": "ppo_clip", "rollout_rs": "seq_max_k2,seq_mean_k3", "rollout_rs_threshold": "0.5,0.1"},
        "preset('trm+ppo', delta=0.5, delta_avg=0.1, normalize=Normalize(over='accepted'))",
        "what the v0 trainer divides by",
        survivors=True,
        widest=0.9,
    ),
    _loss(
        "bypass mode, reinforce, token weights",
        "bypass_mode",
        _CLIP | _TOKEN | {"loss_type": "reinforce", "rollout_is": "token", "rollout_is_threshold": 2.0},
        "preset('reinforce', weights=(ImportanceWeight(high=2.0, numerator='current'),))",
    ),
    _loss(
        "bypass mode, reinforce, sequence weights",
        "bypass_mode",
        _CLIP | _TOKEN | {"loss_type": "reinforce", "rollout_is": "sequence", "rollout_is_threshold": 2.0},
        "preset('reinforce', weights=(ImportanceWeight(high=2.0, over='sequence_sum', numerator='current'),))",
        widest=0.7,
    ),
]
"""The registered losses, importance weights made by `compute_rollout_correction_and_rejection_mask`."""

_PENALTY = {"kl_loss_coef": 0.1, "entropy_coeff": 0.01}
PENALTIES = [
    Row(
        f"KL loss {kind}, entropy bonus",
        _PENALTY | {"kl_loss_type": kind} | _TOKEN,
        f"Objective(penalties=(Kl(0.1, {kind!r}), EntropyBonus(0.01)))",
        "k3 while it is below 10" if kind == "k3" else "",
        widest=2.0,
    )
    for kind in ("k1", "k2", "k3")
]
"""`kl_penalty` and `agg_loss`."""


def _mask(option: str, threshold: str, ours: str, note: str = "", widest: float = 2.0) -> Row:
    return Row(
        option, {"rollout_rs": option, "rollout_rs_threshold": threshold}, f"Objective({ours})", note, widest=widest
    )


MASKS = [
    _mask("token_k1", "0.5_1.25", "masks=(RatioBand(0.8, 2.0),)", "its bounds are on rollout/θ, ours on θ/rollout"),
    _mask("token_k2", "0.125", "masks=(RatioBand(0.6065306597126334, 1.6487212707001282),)", "exp(±√(2·threshold))"),
    _mask("token_k3", "0.1", "masks=(RatioBand(0.6168168317917051, 1.516221161425022),)", "the roots of r − 1 − log r"),
    _mask("seq_sum_k1", "0.5_2.0", "masks=(RatioBand(0.5, 2.0, 'sequence_sum'),)"),
    _mask("seq_mean_k1", "0.8_1.25", "masks=(RatioBand(0.8, 1.25, 'sequence_mean'),)"),
    _mask("seq_max_k2", "0.1", "masks=(TrmMax(0.1, 'k2'),)", "TRM-Max"),
    _mask("seq_max_k3", "0.1", "masks=(TrmMax(0.1, 'k3'),)"),
    _mask("seq_mean_k2", "0.04", "masks=(TrmAvg(0.04, 'k2'),)"),
    _mask("seq_mean_k3", "0.04", "masks=(TrmAvg(0.04, 'k3'),)", "TRM-Avg"),
    _mask("seq_max_k2,seq_mean_k3", "0.3,0.04", "masks=(TrmMax(0.3), TrmAvg(0.04))", "TRM"),
]
"""Which tokens `compute_rollout_correction_and_rejection_mask` keeps, token by token."""

_LARGE = "1e-8 under a root for 1e-8 outside it, Bessel's factor in float32: rewards of size 1000, 129 tokens"
ADVANTAGES = [
    Row("grpo", {}, "preset('grpo', epsilon=1e-6)"),
    Row("grpo, no std", {}, "preset('dr_grpo')"),
    Row("rloo", {}, "preset('rloo')"),
    Row("rloo_vectorized", {}, "preset('rloo')"),
    Row("reinforce_plus_plus", {}, "preset('reinforce_pp')", _LARGE),
    Row("reinforce_plus_plus", {"gamma": 0.99}, "preset('reinforce_pp', gamma=0.99)", _LARGE),
    Row("gae", {"gamma": 0.99, "lam": 0.9}, "Objective(advantage=Gae(0.99, 0.9))", _LARGE),
]
"""The registered estimators, groups of two to five."""

DIFFERENCES = [
    Difference(
        "mean_epsilon",
        "epsilon",
        "Means divide by n_i + 1e-8 or K + 1e-8. For verl's own masks, which hold integers, the 1e-8 is lost in "
        "float32 and nothing differs; for a mask of floats it is 1e-8/n_i relative.",
        "They divide by n_i or K, at least 1.",
    ),
    Difference(
        "whiten_epsilon",
        "epsilon",
        "Whitening divides by √(variance + 1e-8), with K/(K−1) in float32 (up to 3e-8 relative).",
        "It divides by the deviation + 1e-8, in the precision of the data.",
    ),
    Difference(
        "dppo_kl_epsilon",
        "epsilon",
        "dppo_kl adds 1e-8 inside log((1−p)/(1−q)): for probabilities within 1e-6 of 1 the divergence is too small.",
        "Computed without cancellation and without an epsilon.",
    ),
    Difference(
        "groups_of_one",
        "choice",
        "A sequence alone in its group keeps its reward as advantage (grpo, rloo); rloo_vectorized gives 0.",
        "It has no baseline, so its advantage is 0.",
    ),
    Difference(
        "clip_ratio_alone",
        "defect",
        "actor.clip_ratio alone changes nothing: clip_ratio_low and clip_ratio_high default to .2 and win.",
        "`low` and `high` are the only names.",
    ),
    Difference(
        "dppo_cap",
        "defect",
        "The losses dppo_tv and dppo_kl mean to cap the ratio at 20, but clip_ratio_c always comes from the "
        "configuration, whose default is PPO's 3.",
        "The cap is 20.",
    ),
    Difference(
        "dppo_thresholds",
        "missing",
        "dppo_tv and dppo_kl have a threshold for A > 0 (clip_ratio_high) and one for A < 0 (clip_ratio_low).",
        "`Dppo` has one threshold.",
    ),
    Difference(
        "gspo_limit",
        "choice",
        "gspo limits the pooled log-ratio from above at 10: beyond, sequences with A < 0 have no gradient.",
        "The limit is 20, as for every other log-ratio.",
    ),
    Difference(
        "unlimited",
        "defect",
        "clip_cov, kl_cov and geo_mean do not limit the log-ratio: 800 (in float32 100) makes the loss "
        "infinite or NaN.",
        "Every log-ratio is limited to ±20.",
    ),
    Difference(
        "geo_mean_micro_batches",
        "defect",
        "geo_mean averages over the rows of a micro-batch and ignores the global batch size: with k micro-batches the "
        "gradient is k times too large. It also ignores loss_agg_mode.",
        "Shares of micro-batches add up.",
    ),
    Difference(
        "cov_micro_batches",
        "defect",
        "clip_cov and kl_cov take means and selection over a micro-batch, and select at least one token in each: a "
        "share of 2e-4 becomes one token in twelve in micro-batches of twelve tokens.",
        "Statistics are over the optimiser step, and ⌊rK⌋ may be 0.",
    ),
    Difference(
        "clip_cov_draw",
        "choice",
        "clip_cov draws from torch's global generator, among tokens that the clip has not silenced.",
        "The draw comes from a seed, the step and each sequence's identity. Given verl's draw, gradients are the same.",
    ),
    Difference(
        "kl_cov_on_policy",
        "defect",
        "kl_cov's penalty is |log θ − log old|: on policy its gradient is exactly zero, and with the least noise ±β of "
        "random sign. ppo_kl_coef is 1 in its documentation and .1 in the configuration.",
        "`form='abs'` is the released code's; the smooth k2, the default, has no noise there and no gradient either: "
        "with one optimiser step per batch neither acts. `policy='rollout'`, or a ratio to the rollout, lets both act.",
    ),
    Difference(
        "weights_and_penalties",
        "choice",
        "Importance weights multiply the penalties of dro and kl_cov too.",
        "Weights belong to the policy term.",
    ),
    Difference(
        "geo_mean_weights",
        "choice",
        "geo_mean pools truncated token weights by their geometric mean, with 1e-10 added.",
        "over='sequence_mean' truncates the pooled weight: the same where nothing is truncated.",
    ),
    Difference(
        "sapo_aggregation",
        "defect",
        "sapo ignores loss_agg_mode: always seq-mean-token-mean.",
        "Every normaliser composes with every gate.",
    ),
    Difference(
        "kl_limit",
        "choice",
        "The KL loss k3 is limited to 10 per token, so its gradient is zero where the reference gives a token 13 times "
        "the probability or more: where the policy has moved furthest.",
        "No limit but that of the log-ratio.",
    ),
    Difference(
        "kl_straight_through",
        "missing",
        "kl_loss_type 'k3+' has the value of k3 and the gradient of k2.",
        "`Kl(estimator='k2')` has that gradient; the value is k2.",
    ),
    Difference(
        "k1_direction",
        "defect",
        "Thresholds of k1 rejection are documented as bounds on the ratio but are applied to rollout/θ: '0.5_1.2' "
        "keeps θ/rollout = 1.5 and rejects .667.",
        "Bounds of `RatioBand` are on θ/rollout.",
    ),
    Difference(
        "k2_threshold",
        "defect",
        "2.5 is documented for seq_max_k2: a token's ratio may then reach 9.35.",
        "`TrmMax` defaults to .05, a ratio of 1.37.",
    ),
    Difference(
        "everything_rejected",
        "defect",
        "A step whose tokens all are rejected gives a loss of NaN where survivors are counted, and a "
        "ZeroDivisionError where IcePop's weights are all zero.",
        "The loss is 0.",
    ),
    Difference(
        "sums_of_k2_and_k3",
        "missing",
        "seq_sum_k2 and seq_sum_k3 reject by a sum, which grows with length.",
        "Masks on the maximum and the mean, and the length-neutral one.",
    ),
    Difference(
        "baseline_then_whiten",
        "missing",
        "reinforce_plus_plus_baseline subtracts the group's mean and whitens over the batch.",
        "`Group` or `Whiten`, not both.",
    ),
]
