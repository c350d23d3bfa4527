"""TRL 1.16.0 against Holdfast: what equals what, and where the two part."""

from oracles.rows import Difference, Row

_SEQUENCE = {"importance_sampling_level": "sequence"}
_GSPO = {"loss_type": "grpo", "epsilon_low": 3e-4, "epsilon_high": 4e-4} | _SEQUENCE
_VLLM = {"use_vllm": True}

ROWS = [
    Row("grpo", {"loss_type": "grpo"}, "preset('grpo')"),
    Row(
        "grpo, asymmetric clip, KL",
        {"loss_type": "grpo", "epsilon_low": 0.1, "epsilon_high": 0.28, "beta": 0.04},
        "preset('grpo', low=0.1, high=0.28, penalties=(Kl(0.04, 'k3'),))",
    ),
    Row(
        "grpo, KL with bias correction",
        {"loss_type": "grpo", "beta": 0.04, "use_bias_correction_kl": True},
        "preset('grpo', penalties=(Kl(0.04, 'k3', ratio_weighted=True),))",
    ),
    Row(
        "grpo, two-sided clip (delta)",
        {"loss_type": "grpo", "delta": 4.0},
        "preset('grpo+two_sided')",
        "while delta is above 1 + epsilon_high",
    ),
    Row("bnpo", {"loss_type": "bnpo"}, "preset('grpo', normalize=Normalize('token_mean'))"),
    Row("dapo", {"loss_type": "dapo", "epsilon_high": 0.28}, "preset('dapo')"),
    Row(
        "dapo, KL with bias correction",
        {"loss_type": "dapo", "epsilon_high": 0.28, "beta": 0.1, "use_bias_correction_kl": True},
        "preset('dapo+unbiased_kl', coefficient=0.1)",
    ),
    Row("dr_grpo", {"loss_type": "dr_grpo", "max_completion_length": 64}, "preset('dr_grpo', length=64)"),
    Row("gspo", _GSPO, "preset('gspo')"),
    Row("gspo, wide clip", _GSPO | {"epsilon_low": 0.2, "epsilon_high": 0.3}, "preset('gspo', low=0.2, high=0.3)"),
    Row(
        "gspo, KL",
        _GSPO | {"epsilon_low": 0.2, "epsilon_high": 0.3, "beta": 0.04},
        "preset('gspo', low=0.2, high=0.3, penalties=(Kl(0.04, 'k3'),))",
    ),
    Row(
        "gspo, token mean",
        {"loss_type": "dapo", "epsilon_low": 0.2, "epsilon_high": 0.3} | _SEQUENCE,
        "preset('gspo', low=0.2, high=0.3, normalize=Normalize('token_mean'))",
    ),
    Row(
        "luspo",
        {"loss_type": "luspo", "epsilon_low": 0.2, "epsilon_high": 0.3} | _SEQUENCE,
        "preset('luspo', low=0.2, high=0.3)",
    ),
    Row(
        "luspo, token level",
        {"loss_type": "luspo", "epsilon_low": 0.2, "epsilon_high": 0.3},
        "preset('luspo', low=0.2, high=0.3, pool=Pool('token'))",
        "TRL's default level, which makes it GRPO with a token sum",
    ),
    Row("cispo", {"loss_type": "cispo", "epsilon_high": 5.0}, "preset('cispo')"),
    Row(
        "cispo, sequence level",
        {"loss_type": "cispo", "epsilon_high": 2.0} | _SEQUENCE,
        "preset('cispo', high=2.0, pool=Pool('sequence_mean'))",
    ),
    Row(
        "sapo",
        {"loss_type": "sapo"},
        "preset('sapo', tau_neg=1.0499999523162842)",
        "TRL's temperatures are float32, where 1.05 is 1.0499999523: 6e-8 relative against preset('sapo')",
    ),
    Row(
        "sapo, other temperatures, sequence level",
        {"loss_type": "sapo", "sapo_temperature_pos": 0.75, "sapo_temperature_neg": 2.0} | _SEQUENCE,
        "preset('sapo', tau_pos=0.75, tau_neg=2.0, pool=Pool('sequence_mean'))",
    ),
    Row("vespo", {"loss_type": "vespo"}, "preset('vespo')", "while Π r stays above 1e-8", widest=0.7),
    Row(
        "vespo, other shapes",
        {
            "loss_type": "vespo",
            "vespo_k_pos": 1.0,
            "vespo_lambda_pos": 2.5,
            "vespo_k_neg": 2.0,
            "vespo_lambda_neg": 1.5,
        },
        "preset('vespo', k_pos=1.0, lambda_pos=2.5, k_neg=2.0, lambda_neg=1.5)",
        widest=0.7,
    ),
    Row(
        "vespo, token correction",
        {
            "loss_type": "vespo",
            "vllm_importance_sampling_mode": "token_truncate",
            "vllm_importance_sampling_clip_max": 1e6,
        }
        | _VLLM,
        "preset('vespo', denominator='rollout')",
        "the correction is inside W, so W = Π θ/rollout while no token reaches the cap",
        widest=0.3,
    ),
    Row(
        "off-policy mask, no engine logprobs",
        {"loss_type": "grpo", "off_policy_mask_threshold": 0.1},
        "preset('grpo+opsm', max_mean_k1=0.1, policy='old')",
        options={"rollout": False},
    ),
    Row(
        "off-policy mask, engine logprobs",
        {"loss_type": "grpo", "off_policy_mask_threshold": 0.1},
        "preset('grpo+opsm', max_mean_k1=0.1)",
    ),
    Row(
        "top-entropy tokens",
        {"loss_type": "grpo", "top_entropy_quantile": 0.2},
        "preset('grpo+top_entropy')",
    ),
    Row(
        "top-entropy tokens, KL, gspo",
        _GSPO | {"epsilon_low": 0.2, "epsilon_high": 0.3, "top_entropy_quantile": 0.5, "beta": 0.1},
        "preset('gspo', low=0.2, high=0.3, masks=(TopEntropy(0.5),), penalties=(Kl(0.1),))",
    ),
    Row(
        "entropy bonus",
        {"loss_type": "dapo", "epsilon_high": 0.28, "entropy_coef": 0.02},
        "preset('dapo+entropy_bonus', alpha=0.02)",
        "with a token-mean objective",
    ),
    Row(
        "correction: token truncate",
        {
            "loss_type": "grpo",
            "vllm_importance_sampling_mode": "token_truncate",
            "vllm_importance_sampling_clip_max": 2.0,
        }
        | _VLLM,
        "preset('grpo+tis')",
    ),
    Row(
        "correction: token truncate, both sides",
        {
            "loss_type": "dapo",
            "vllm_importance_sampling_mode": "token_truncate",
            "vllm_importance_sampling_clip_min": 0.5,
            "vllm_importance_sampling_clip_max": 2.0,
        }
        | _VLLM,
        "preset('grpo', normalize=Normalize('token_mean'), weights=(ImportanceWeight(0.5, 2.0),))",
    ),
    Row(
        "correction: token mask",
        {
            "loss_type": "grpo",
            "vllm_importance_sampling_mode": "token_mask",
            "vllm_importance_sampling_clip_max": 2.0,
        }
        | _VLLM,
        "preset('grpo+mis')",
    ),
    Row(
        "correction: token mask, both sides (IcePop)",
        {
            "loss_type": "cispo",
            "epsilon_high": 5.0,
            "vllm_importance_sampling_mode": "token_mask",
            "vllm_importance_sampling_clip_min": 0.5,
            "vllm_importance_sampling_clip_max": 5.0,
        }
        | _VLLM,
        "preset('cispo+icepop')",
    ),
    Row(
        "correction: sequence truncate",
        {
            "loss_type": "grpo",
            "vllm_importance_sampling_mode": "sequence_truncate",
            "vllm_importance_sampling_clip_max": 2.0,
        }
        | _VLLM,
        "preset('grpo', weights=(ImportanceWeight(high=2.0, over='sequence_sum'),))",
        widest=0.7,
    ),
    Row(
        "correction: sequence mask (TRL's default)",
        {"loss_type": "grpo"} | _VLLM,
        "preset('grpo', weights=(ImportanceWeight(high=3.0, over='sequence_sum', outside='zero'),))",
        widest=0.7,
    ),
    Row(
        "correction: sequence mask, gspo",
        _GSPO | {"epsilon_low": 0.2, "epsilon_high": 0.3, "vllm_importance_sampling_clip_min": 0.2} | _VLLM,
        "preset('gspo', low=0.2, high=0.3, weights=(ImportanceWeight(0.2, 3.0, 'sequence_sum', 'zero'),))",
        widest=0.7,
    ),
    Row(
        "all together",
        {
            "loss_type": "dapo",
            "delta": 3.0,
            "beta": 0.05,
            "off_policy_mask_threshold": 0.1,
            "entropy_coef": 0.01,
            "vllm_importance_sampling_mode": "token_truncate",
            "vllm_importance_sampling_clip_max": 2.0,
        }
        | _VLLM,
        "preset('ppo+opsm+tis', max_mean_k1=0.1, normalize=Normalize('token_mean'), "
        "penalties=(Kl(0.05), EntropyBonus(0.01)))",
    ),
    Row(
        "GMPO trainer",
        {"epsilon_low": 0.4, "epsilon_high": 0.4},
        "preset('gmpo')",
        options={"gmpo": True},
    ),
    Row(
        "GMPO trainer, asymmetric clip, KL",
        {"epsilon_low": 0.2, "epsilon_high": 0.6, "beta": 0.04},
        "preset('gmpo', low=0.2, high=0.6, penalties=(Kl(0.04),))",
        options={"gmpo": True},
    ),
]
"""`_compute_loss` and, where vLLM corrects, the importance ratios of `_generate_and_score_completions`."""

ADVANTAGES = [
    Row("scale_rewards='group'", {"scale_rewards": "group"}, "preset('grpo')"),
    Row("scale_rewards='batch'", {"scale_rewards": "batch"}, "preset('grpo', scale='batch_std')"),
    Row("scale_rewards='none'", {"scale_rewards": "none"}, "preset('dr_grpo')"),
]
"""The advantages of `_generate_and_score_completions` on groups of equal size."""

DIFFERENCES = [
    Difference(
        "empty_rows",
        "choice",
        "grpo, sapo, dr_grpo, luspo and GMPO divide by all rows, those without a response token included.",
        "An empty row is padding: N counts sequences with at least one response token.",
    ),
    Difference(
        "unclamped_ratio",
        "choice",
        "The log-ratio is not limited: from 710 on (in float32 from 89 on) the loss is infinite or NaN.",
        "Every log-ratio is limited to ±20; the gradient is zero beyond.",
    ),
    Difference(
        "delta_below_clip",
        "defect",
        "A two-sided cap delta below 1 + epsilon_high caps ratios at delta where A > 0 (narrowing the clip) and at "
        "1 + epsilon_high where A < 0, which it was meant for.",
        "`dual` is the cap where A < 0, `high` the clip where A > 0, whichever is larger.",
    ),
    Difference(
        "cispo_default_cap",
        "defect",
        "cispo reads epsilon_high as an absolute cap and leaves its default at .2: on policy, where every ratio is 1, "
        "each gradient is .2 of REINFORCE's.",
        "The cap is 5 by default; `relative=True` gives the cap 1 + high.",
    ),
    Difference(
        "vespo_correction",
        "missing",
        "vespo multiplies the truncated token weights into W, inside φ. With token_mask one rejected token brings the "
        "weight of its whole sequence to about 0.",
        "denominator='rollout' is the same while no token is truncated; a weight part multiplies φ from outside.",
    ),
    Difference(
        "vespo_floor",
        "epsilon",
        "W is at least 1e-8.",
        "log W is at least −20 (2e-9). φ is below 1e-14 either way.",
    ),
    Difference(
        "entropy_normaliser",
        "choice",
        "The entropy bonus is the mean over tokens for every loss type.",
        "The bonus uses the objective's normaliser: equal for token-mean objectives.",
    ),
    Difference(
        "entropy_top_tokens",
        "choice",
        "With top_entropy_quantile the entropy bonus acts on the selected tokens only.",
        "Penalties act on every response token; masks belong to the policy term.",
    ),
    Difference(
        "sequence_kl_weight",
        "choice",
        "At sequence level, use_bias_correction_kl weights each token's KL by the sequence's geometric mean.",
        "`ratio_weighted` is the token's own ratio, which is what makes the gradient of k3 unbiased.",
    ),
    Difference(
        "gmpo_top_entropy",
        "missing",
        "GMPO with top_entropy_quantile takes the geometric mean over the selected tokens.",
        "The mean is over all response tokens; the mask then selects which of them keep their share.",
    ),
    Difference(
        "gmpo_ignores",
        "defect",
        "The GMPO trainer ignores the engine correction, the off-policy mask and the entropy bonus without a word.",
        "Every part composes with every other.",
    ),
    Difference(
        "micro_batches",
        "defect",
        "bnpo's denominator, the entropy bonus and the top-entropy threshold are those of a micro-batch: splitting a "
        "batch with ragged lengths changes the gradient. (grpo, dapo, dr_grpo and luspo add up.)",
        "Whole-batch statistics come from `prepare`: no split changes any gradient.",
    ),
    Difference(
        "nan_logprobs",
        "choice",
        "An engine logprob of NaN gets weight 1 and does not count in the off-policy mask.",
        "NaN under the response mask is a DataError that names the token: take it out of the mask or out of the batch.",
    ),
    Difference(
        "adaptive_entropy",
        "choice",
        "The adaptive bonus acts where the previous step's entropy was at or below the target, and never on the first "
        "step; the coefficient moves the same way.",
        "It acts where this step's entropy is at or below the target.",
    ),
    Difference(
        "float32_constants",
        "epsilon",
        "SAPO's temperatures, and Bessel's factor n/(n−1) in the standard deviation of a group, are float32 numbers "
        "also where everything else is float64.",
        "Constants have the precision of the data. The rows above use temperatures and counts (2, 3, 5 and 9) for "
        "which float32 is exact, or the rounded temperature itself.",
    ),
]
