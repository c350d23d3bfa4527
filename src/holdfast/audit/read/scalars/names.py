"""What every framework calls the numbers of the vocabulary: one table a framework.

Names were read in the released wheels of verl 0.9.1, TRL 1.16.0, OpenRLHF 0.11.2, SkyRL 0.3.0 and ms-swift 4.6.0, and
in prime-rl 559b447, slime 624b824, miles 31f1ca9, NeMo-RL 7ea279a and ROLL 8eb27cc (August 2026), AReaL 4aef98d
(May 2026). The first name that a log has is taken. "1-" before a name takes one minus its value.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from holdfast.audit.course import VOCABULARY

Table = Mapping[str, tuple[str, ...]]

_TRL: Table = {
    "reward": ("reward",),
    "reward_std": ("reward_std",),
    "equal_groups": ("frac_reward_zero_std",),
    "entropy": ("entropy",),
    "kl_ref": ("kl",),
    "mismatch_abs_log": ("sampling/sampling_logp_difference/mean",),
    "mismatch_ratio": ("sampling/importance_sampling_ratio/mean",),
    "clip_share": ("clip_ratio/region_mean", "clip_ratio", "cispo_clip_ratio"),
    "length": ("completions/mean_length", "completion_length"),
    "length_max": ("completions/max_length",),
    "truncated": ("completions/clipped_ratio",),
    "gradient_norm": ("grad_norm",),
    "learning_rate": ("learning_rate",),
    "loss": ("loss",),
}

TABLES: Mapping[str, Table] = {
    "verl": {
        "reward": ("critic/score/mean", "critic/rewards/mean"),
        "entropy": ("actor/entropy", "actor/entropy_loss"),
        "kl_ref": ("actor/kl_loss", "actor/reward_kl_penalty"),
        "kl_old": ("actor/ppo_kl",),
        "mismatch_kl": ("rollout_corr/k3_kl", "rollout_corr/kl"),
        "mismatch_probs": ("training/rollout_probs_diff_mean",),
        "mismatch_ratio": ("rollout_corr/rollout_is_mean",),
        "clip_share": ("actor/pg_clipfrac",),
        "length": ("response_length/mean",),
        "length_max": ("response_length/max",),
        "truncated": ("response_length/clip_ratio",),
        "gradient_norm": ("actor/grad_norm",),
        "learning_rate": ("actor/lr",),
        "loss": ("actor/pg_loss", "actor/loss"),
    },
    "TRL": _TRL,
    "ms-swift": {
        **_TRL,
        "entropy": ("entropy/mean",),
        "mismatch_kl": ("rollout_correction/k3_kl", "rollout_correction/kl"),
        "mismatch_ratio": ("rollout_correction/is_weight_mean",),
    },
    "OpenRLHF": {
        "reward": ("rollout/reward_mean", "reward"),
        "reward_std": ("rollout/reward_std",),
        "entropy": ("entropy_loss",),
        "kl_ref": ("kl",),
        "kl_old": ("ppo_kl",),
        "mismatch_kl": ("vllm_kl",),
        "clip_share": ("ppo_clip_ratio",),
        "length": ("rollout/response_length_mean", "response_length"),
        "truncated": ("rollout/truncated_rate", "response_clip_ratio"),
        "gradient_norm": ("actor_grad_norm",),
        "learning_rate": ("actor_lr",),
        "loss": ("policy_loss",),
    },
    "prime-rl": {
        "reward": ("train/agg/all/reward/mean", "train/agg/effective/reward/mean", "reward/all/mean", "reward/mean"),
        "equal_groups": ("1-train/agg/all/solved_some",),
        "entropy": ("entropy/all/mean",),
        "mismatch_kl": ("mismatch_kl/all/mean",),
        "clip_share": ("is_masked/mean",),
        "length": ("train/agg/all/num_output_tokens/mean", "seq_len/all/mean"),
        "length_max": ("train/agg/all/num_output_tokens/max",),
        "truncated": ("train/agg/all/is_truncated/mean", "is_truncated/all/mean"),
        "gradient_norm": ("optim/grad_norm",),
        "learning_rate": ("optim/lr",),
        "loss": ("loss/mean",),
    },
    "NeMo-RL": {
        "reward": ("train/reward",),
        "entropy": ("train/approx_entropy",),
        "kl_ref": ("train/kl_penalty",),
        "kl_old": ("train/policy_kl_error",),
        "mismatch_kl": ("train/gen_kl_error",),
        "mismatch_ratio": ("train/token_mult_prob_error",),
        "length": ("train/mean_gen_tokens_per_sample",),
        "length_max": ("train/max_gen_tokens_per_sample",),
        "truncated": ("train/truncation_rate", "1-train/natural_termination_rate"),
        "gradient_norm": ("train/grad_norm",),
        "learning_rate": ("train/lr",),
        "loss": ("train/loss",),
    },
    "slime": {
        "reward": ("rollout/raw_reward",),
        "entropy": ("train/entropy_loss", "rollout/entropy"),
        "kl_ref": ("train/kl_loss",),
        "kl_old": ("train/ppo_kl",),
        "mismatch_kl": ("train/train_rollout_kl",),
        "mismatch_abs_log": ("train/train_rollout_logprob_abs_diff",),
        "mismatch_ratio": ("train/ois",),
        "clip_share": ("train/pg_clipfrac",),
        "length": ("rollout/response_len/mean", "rollout/response_lengths"),
        "length_max": ("rollout/response_len/max",),
        "truncated": ("rollout/truncated_ratio", "rollout/truncated"),
        "gradient_norm": ("train/grad_norm",),
        "learning_rate": ("train/lr-pg_0",),
        "loss": ("train/loss", "train/pg_loss"),
    },
    "SkyRL": {
        "reward": ("reward/avg_raw_reward", "loss/avg_final_rewards"),
        "entropy": ("policy/policy_entropy",),
        "kl_ref": ("loss/avg_kl",),
        "mismatch_abs_log": ("policy/rollout_train_logprobs_abs_diff_mean",),
        "mismatch_ratio": ("policy/is_ratio_mean",),
        "clip_share": ("policy/loss_metrics/clip_ratio",),
        "length": ("generate/avg_num_tokens",),
        "length_max": ("generate/max_num_tokens",),
        "gradient_norm": ("policy/grad_norm",),
        "learning_rate": ("policy/policy_lr",),
        "loss": ("policy/final_loss", "policy/policy_loss"),
    },
    "ROLL": {
        "reward": ("rollout/score/mean", "critic/score/mean"),
        "kl_ref": ("critic/kl", "actor/kl_loss", "actor/kl_loss@sum"),
        "kl_old": ("actor/approxkl", "actor/approxkl@sum"),
        "mismatch_ratio": ("actor/train_infer_ratio_token_mean@sum",),
        "clip_share": ("actor/ppo_ratio_clipfrac", "actor/ppo_ratio_clipfrac@sum"),
        "length": ("rollout/response_length/mean", "tokens/response_length/mean"),
        "length_max": ("rollout/response_length/max", "tokens/response_length/max"),
        "gradient_norm": ("actor_train/grad_norm",),
        "learning_rate": ("actor/lr",),
        "loss": ("actor/pg_loss", "actor/pg_loss@sum"),
    },
    "AReaL": {  # its no_eos_ratios are shares of the batch's longest sequences, not of those that were cut
        "reward": ("ppo_actor/task_reward/avg", "rollout/reward"),
        "entropy": ("ppo_actor/update/entropy/avg",),
        "mismatch_kl": ("ppo_actor/update/compute_logp/kl_div_dual/avg",),
        "mismatch_ratio": ("ppo_actor/update/behave_imp_weight/avg",),
        "clip_share": ("ppo_actor/update/clip_ratio/avg",),
        "length": ("ppo_actor/seq_len/avg",),
        "length_max": ("ppo_actor/seq_len/max",),
        "gradient_norm": ("ppo_actor/update/grad_norm",),
        "learning_rate": ("ppo_actor/update/lr",),
        "loss": ("ppo_actor/update/actor_loss/avg",),
    },
    "Holdfast": {
        "reward": ("reward_mean",),
        "reward_std": ("reward_std",),
        "entropy": ("entropy",),
        "mismatch_kl": ("kl_exact_mean", "rollout_k3_mean"),
        "mismatch_abs_log": ("abs_log_ratio_mean",),
        "clip_share": ("clip_share",),
        "length": ("response_length_mean",),
        "truncated": ("truncated_share",),
        "gradient_norm": ("grad_norm",),
        "learning_rate": ("learning_rate",),
        "loss": ("loss",),
    },
}
"""Ours to theirs, by framework."""

_PREFIXED = {"TRL", "ms-swift", "OpenRLHF"}
"""Their loggers put "train/" before every name on the way to W&B and TensorBoard."""
STEPS = (
    *("step", "global_step", "_step", "Step", "training/global_step", "train/global_step", "trainer/global_step"),
    *("training_step", "iteration"),
)
"""Names of a row's step."""
OWN_STEPS = {"train": "train/step", "rollout": "rollout/step"}
"""Steps of rows that count updates and rollouts apart, as slime's and miles' do, by the first part of a name."""


def known_names(framework: str) -> dict[str, tuple[str, bool, str]]:
    """{their name: (ours, whether it is one minus ours, their name as the table has it)}; for each way to write it."""
    found = {}
    for ours, names in TABLES[framework].items():
        for name in names:
            bare = name.removeprefix("1-")
            for written in (bare, f"train/{bare}") if framework in _PREFIXED else (bare,):
                found[written] = (ours, bare != name, name)
    return found


def framework_of(names: Collection[str]) -> str | None:
    """Whose names these are: the framework of which the most numbers are known; None where none is."""
    counts = {framework: len(taken(framework, names)) for framework in TABLES}
    best = max(counts, key=lambda framework: counts[framework])
    return best if counts[best] else None


def taken(framework: str, names: Iterable[str]) -> dict[str, tuple[str, bool]]:
    """{ours: (their name, whether to take one minus it)} for the names of a log, by the framework's table."""
    written, there, out = known_names(framework), set(names), {}
    for ours, candidates in TABLES[framework].items():
        for candidate in candidates:
            found = next((w for w, (_, _, name) in written.items() if name == candidate and w in there), None)
            if found is not None:
                out[ours] = (found, written[found][1])
                break
    return out


def looked_for() -> str:
    """The names of every number, for whom none was found."""
    told = []
    for ours in VOCABULARY:
        names = dict.fromkeys(n.removeprefix("1-") for table in TABLES.values() for n in table.get(ours, ()))
        told.append(f"{ours} as {', '.join(names)}")
    return "; ".join(told)
