"""The same recommendations for slime, miles, OpenRLHF, SkyRL, ROLL and ms-swift, in this order.

Option names were read in slime 624b824, miles 31f1ca9 and ROLL 8eb27cc (sources of August 2026), and in the wheels of
OpenRLHF 0.11.2, SkyRL 0.3.0 and ms-swift 4.6.0. slime, miles, OpenRLHF and ms-swift lines are command-line arguments,
SkyRL lines overrides of its configuration, ROLL lines YAML.
"""

from __future__ import annotations

from collections.abc import Mapping

BY_FLAGS = ("slime", "miles", "OpenRLHF", "SkyRL", "ROLL", "ms-swift")

_SLIME_OWN = "no option for this rule: it takes a function of yours, with weights and masks of each sequence:"
_CUSTOM = f"{_SLIME_OWN}\n--use-tis --custom-tis-function-path your_module.your_function"
_TRUNCATED = "--use-tis --tis-clip {cap:.4g}"
_CLIP = "--eps-clip 0.2 --eps-clip-high {high:.4g}"
_SAMPLING = "--rollout-temperature {temperature:.4g} --rollout-top-p 1.0 --rollout-top-k -1"
_OPEN = "--algo.advantage.is_correction_"
_SKY = "trainer.algorithm.off_policy_correction."
_ROLL_FILTER = (
    "train_infer_correction:\n  filters:\n    - enabled: true\n      agg_type: {agg}\n"
    "      ratio_low: {low}\n      ratio_high: {high}"
)
_GEOMETRIC = _ROLL_FILTER.format(agg="geometric", low="0.99", high="1.01")
_NEAREST_MEAN = "no option for the mean k3; nearest, on the geometric mean of the ratio:\n"
_IDS = "no option: keep the token ids of the engine's answers, and never tokenise its text again"

_MEAN_MASK = (
    _CUSTOM,
    _CUSTOM,
    f"{_NEAREST_MEAN}{_OPEN}level seq {_OPEN}mode mask {_OPEN}gating ratio {_OPEN}threshold 0.99 1.01",
    f"{_NEAREST_MEAN}{_SKY}sequence_mask_metric=geometric {_SKY}geo_mask_low=0.99 {_SKY}geo_mask_high=1.01",
    f"{_NEAREST_MEAN}{_GEOMETRIC}",
    "no option for the mean k3; nearest, a signed mean that looks only at A < 0:\n"
    "--off_policy_sequence_mask_delta {delta_avg:.4g}",
)
FLAGS: Mapping[str, tuple[str, str, str, str, str, str]] = {
    "sequence_mask": (
        _CUSTOM,
        _CUSTOM,
        "no option for the worst token; nearest, per token:\n"
        f"{_OPEN}level token {_OPEN}mode mask {_OPEN}gating ratio {_OPEN}threshold {{inverse:.4g}} {{ratio:.4g}}",
        f"{_SKY}outlier_token_is_threshold_low={{inverse:.4g}} {_SKY}outlier_token_is_threshold_high={{ratio:.4g}}",
        "no option for the worst token; nearest, per token:\n"
        + _ROLL_FILTER.format(agg="token", low="{inverse:.4g}", high="{ratio:.4g}"),
        "no option for the worst token; nearest, per token (an upper bound only):\n"
        "--rollout_importance_sampling_mode token_mask --rollout_importance_sampling_threshold {ratio:.4g}",
    ),
    **dict.fromkeys(("mean_mask", "length_neutral_mask"), _MEAN_MASK),
    "truncated_token_weights": (
        _TRUNCATED,
        _TRUNCATED,
        f"{_OPEN}level token {_OPEN}mode clip {_OPEN}gating ratio {_OPEN}threshold {{cap:.4g}}",
        f"{_SKY}tis_ratio_type=token {_SKY}token_tis_ratio_clip_high={{cap:.4g}}",
        "train_infer_correction:\n  is_weight:\n    enabled: true\n    weight_type: token\n    upper_bound: {cap:.4g}",
        "--rollout_importance_sampling_mode token_truncate --rollout_importance_sampling_threshold {cap:.4g}",
    ),
    "clip_on_rollout": (
        "--use-rollout-logprobs  # old is then the engine",
        "--use-rollout-logprobs  # old is then the engine",
        "no option: the ratio is to log-probabilities that the actor recomputes",
        "trainer.algorithm.policy_loss_type=rollout_is",
        "no option: the ratio is to log-probabilities that the trainer recomputes",
        "no option: the ratio is to the trainer's own log-probabilities",
    ),
    "covariance_control": (
        "no option; nearest, room for unlikely tokens to grow:\n--eps-clip 0.2 --eps-clip-high 0.28",
        "no option; nearest, room for unlikely tokens to grow:\n--eps-clip 0.2 --eps-clip-high 0.28",
        "no option; nearest, room for unlikely tokens to grow:\n--actor.eps_clip_low_high 0.2 0.28",
        "trainer.algorithm.policy_loss_type=kl_cov trainer.algorithm.kl_cov.kl_cov_frac={kl_cov_ratio:.4g}",
        "no option; nearest, room for unlikely tokens to grow:\n"
        "use_pg_clip_range: true\npg_clip_low: 0.2\npg_clip_high: 0.28",
        "no option; nearest, room for unlikely tokens to grow:\n--epsilon 0.2 --epsilon_high 0.28",
    ),
    "clip_cov": (
        "no option",
        "no option",
        "no option",
        "trainer.algorithm.policy_loss_type=clip_cov",
        "no option",
        "no option",
    ),
    "entropy_bonus": (
        "no option for a target; a fixed bonus:\n--entropy-coef {coefficient:.4g}",
        "no option for a target; a fixed bonus:\n--entropy-coef {coefficient:.4g}",
        "no option for a target; a fixed bonus:\n--actor.entropy_coef {coefficient:.4g}",
        "no option for a target; a fixed bonus:\n"
        "trainer.algorithm.use_entropy_loss=true trainer.algorithm.entropy_loss_coef={coefficient:.4g}",
        "no option for a target; a fixed bonus:\nentropy_loss_coef: {coefficient:.4g}",
        "no option; nearest, a gradient from tokens of high entropy only:\n--top_entropy_quantile 0.2",
    ),
    "clip_higher": (
        _CLIP,
        _CLIP,
        "--actor.eps_clip_low_high 0.2 {high:.4g}",
        "trainer.algorithm.eps_clip_low=0.2 trainer.algorithm.eps_clip_high={high:.4g}",
        "use_pg_clip_range: true\npg_clip_low: 0.2\npg_clip_high: {high:.4g}",
        "--epsilon 0.2 --epsilon_high {high:.4g}",
    ),
    "less_staleness": (
        "--update-weights-interval 1",
        "--max-weight-staleness {versions:.0f}  # in fully asynchronous mode",
        "--train.async_queue_size {versions:.0f}  # with --train.async_enable",
        "trainer.fully_async.max_staleness_steps={versions:.0f}",
        "async_generation_ratio: {versions:.0f}",
        "--num_iterations 1 --steps_per_generation GRADIENT_ACCUMULATION_STEPS",
    ),
    "engine_logprobs": (
        "--get-mismatch-metrics  # keeps rollout_log_probs beside the trainer's",
        "--get-mismatch-metrics  # keeps rollout_log_probs beside the trainer's",
        f"{_OPEN}level token  # asks vLLM for processed_logprobs",
        "generator.sampling_params.logprobs=1",
        "train_infer_correction:\n  is_weight:\n    enabled: true",
        "--log_rollout_offpolicy_metrics true",
    ),
    "sampling_support": (
        _SAMPLING,
        _SAMPLING,
        "--rollout.temperature {temperature:.4g} --rollout.top_p 1.0",
        "generator.sampling_params.temperature={temperature:.4g} generator.sampling_params.top_p=1.0",
        "no option by one name: set temperature and top_p of the actor_infer worker's generating_args",
        "--temperature {temperature:.4g} --top_p 1.0 --top_k -1",
    ),
    "same_micro_batch": (
        "--log-probs-max-tokens-per-gpu 16384 --max-tokens-per-gpu 16384",
        "--log-probs-max-tokens-per-gpu 16384 --max-tokens-per-gpu 16384",
        "--rollout.max_tokens_per_gpu 16384 --train.max_tokens_per_gpu 16384",
        "no option that we found for one size of both passes",
        "no option that we found for one size of both passes",
        "nothing to set: both passes take per_device_train_batch_size sequences",
    ),
    "token_ids_not_text": (_IDS, _IDS, _IDS, _IDS, _IDS, _IDS),
    "groups_by_prompt": (
        "--n-samples-per-prompt 8  # groups are so many samples of one prompt",
        "--n-samples-per-prompt 8  # groups are so many samples of one prompt",
        "--algo.advantage.estimator group_norm --rollout.n_samples_per_prompt 8",
        "trainer.algorithm.advantage_estimator=grpo generator.n_samples_per_prompt=8",
        "num_return_sequences_in_group: 8\nnorm_mean_type: group",
        "--advantage_estimator grpo --num_generations 8",
    ),
    "float32_logprobs": (
        "--sglang-enable-fp32-lm-head",
        "--sglang-enable-fp32-lm-head",
        "no option that we found",
        "no option that we found",
        "no option that we found",
        "no option that we found",
    ),
    "reward_function": (
        "--custom-rm-path your_module.your_function",
        "--custom-rm-path your_module.your_function",
        "--reward.remote_url your_reward.py",
        "no option: what your environment's step() returns",
        "rewards:\n  YOUR_DOMAIN:\n    worker_cls: your_module.YourRewardWorker",
        "--external_plugins your_plugin.py --reward_funcs your_function",
    ),
    "weights_at_start": (
        "--check-weight-update-equal  # ends the run where the engine has other weights than were sent",
        "--check-weight-update-equal  # ends the run where the engine has other weights than were sent",
        "no option: restart the engines together with the trainer",
        "trainer.resume_mode=latest  # a server of its own: restart it with the trainer",
        "no option: restart the engines together with the trainer",
        "--vllm_mode colocate  # a server of its own: restart it with the trainer",
    ),
    "no_stale_prefix": (
        "--sglang-disable-radix-cache",
        "--sglang-disable-radix-cache",
        "nothing to set: off without --vllm.enable_prefix_caching",
        "generator.inference_engine.enable_prefix_caching=false",
        "actor_infer:\n  strategy_args:\n    strategy_config:\n      enable_prefix_caching: false",
        "--vllm_enable_prefix_caching false",
    ),
}
