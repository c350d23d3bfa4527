"""What to log to know more than a log of numbers tells, framework by framework: the exact switch or line."""

from __future__ import annotations

from collections.abc import Mapping

from holdfast.audit.course import MISMATCH, Course

WHAT: Mapping[str, str] = {
    "mismatch": "how far engine and trainer are apart, a number a step",
    "reward": "the reward's spread and the share of groups without a signal",
    "entropy": "the entropy",
    "tokens": "where and why: log-probabilities of single tokens, to be audited in place of this log",
    "numbers": "all numbers in one file",
}
"""What each line of MORE gives."""

MORE: Mapping[str, Mapping[str, str]] = {
    "verl": {
        "mismatch": "actor_rollout_ref.rollout.calculate_log_probs=true  # training/rollout_probs_diff_*",
        "tokens": "+policy_loss.records=/absolute/folder  # Holdfast's plug-in: docs/verl.md",
        "numbers": 'trainer.logger=\'["console","file"]\'  # PROJECT/EXPERIMENT.jsonl',
    },
    "TRL": {
        "mismatch": "GRPOConfig(use_vllm=True, vllm_importance_sampling_correction=True)  # sampling/*",
        "reward": "nothing to set: reward_std and frac_reward_zero_std are in trainer_state.json",
        "entropy": "nothing to set: entropy is in trainer_state.json of current releases",
        "tokens": "HoldfastGRPOTrainer in place of GRPOTrainer: docs/trl.md",
        "numbers": "GRPOConfig(logging_steps=1)",
    },
    "ms-swift": {
        "mismatch": "--log_rollout_offpolicy_metrics true  # rollout_correction/*",
        "entropy": "--log_entropy true",
        "tokens": "no option; serve with vLLM and keep its answers, or score a dump: holdfast audit DUMP --model DIR",
        "numbers": "--logging_steps 1  # logging.jsonl",
    },
    "OpenRLHF": {
        "mismatch": "--algo.advantage.is_correction_level token  # vllm_kl",
        "tokens": "no option; serve with vLLM and keep its answers, or score a dump: holdfast audit DUMP --model DIR",
        "numbers": "--logger.tensorboard_dir DIR",
    },
    "prime-rl": {
        "mismatch": "nothing to set: mismatch_kl/all/mean is in the trainer's metrics.jsonl (audit the run's folder)",
        "reward": "nothing to set: train/agg/all/reward/mean is in the orchestrator's metrics.jsonl",
        "entropy": "nothing to set: entropy/all/mean is in the trainer's metrics.jsonl",
        "tokens": "trainer.enable_token_export = true",
    },
    "NeMo-RL": {
        "mismatch": "nothing to set: train/gen_kl_error and train/token_mult_prob_error are logged",
        "tokens": "nothing to set: audit LOG_DIR/exp_*/train_data_step*.jsonl",
        "numbers": "logger.tensorboard_enabled=true",
    },
    "slime": {
        "mismatch": "--get-mismatch-metrics",
        "tokens": "--dump-details DIR",
        "numbers": "--use-tensorboard",
    },
    "AReaL": {
        "mismatch": "nothing to set: ppo_actor/update/compute_logp/kl_div_dual/avg is logged where versions are kept",
        "reward": "nothing to set: ppo_actor/task_reward/avg is logged",
        "entropy": "nothing to set: ppo_actor/update/entropy/avg is logged",
        "tokens": "no option; rollout.dump_to_file=true writes texts: holdfast audit DIR --tokenizer MODEL",
        "numbers": "stats_logger.tensorboard.path=DIR",
    },
    "SkyRL": {
        "tokens": "trainer.dump_data_batch=true  # holdfast audit DIR --allow-pickle",
        "mismatch": "nothing to set: policy/rollout_train_logprobs_abs_diff_mean is logged where the engine's are kept",
    },
    "ROLL": {
        "tokens": "no option; serve with vLLM and keep its answers, or score a dump: holdfast audit DUMP --model DIR",
    },
    "Holdfast": {"tokens": "nothing to set: audit the run's rollouts/ folder"},
}


def more_to_log(course: Course) -> tuple[tuple[str, str], ...]:
    """(what, line) for what a log of numbers lacks, the log of tokens last; without a framework, tokens of any."""
    lines = MORE.get(course.framework or "", {})
    lacking = {
        "mismatch": all(course.finite(name) is None for name in MISMATCH),
        "reward": course.finite("reward") is None or not {"reward_std", "equal_groups"} & set(course.series),
        "entropy": course.finite("entropy") is None,
        "numbers": not {"reward", "gradient_norm"} <= set(course.series),
        "tokens": True,
    }
    told = tuple((WHAT[name], lines[name]) for name, lacks in lacking.items() if lacks and name in lines)
    return told or ((WHAT["tokens"], "holdfast audit --formats lists the logs of tokens that can be read"),)
