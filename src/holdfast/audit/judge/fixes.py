"""What to set, in the words of the framework that the run is on: one table, recommendation × framework.

Option names were read in verl 0.9.1 and TRL 1.16.0 (released wheels) and in AReaL 4aef98d, prime-rl 559b447 and
NeMo-RL 7ea279a (sources of May and August 2026); docs/audit_fixes.md cites the places. Where a framework has no such
option the line says "no option" and what is nearest. verl lines are Hydra overrides, TRL lines fields of GRPOConfig,
AReaL and NeMo-RL lines Hydra overrides of their YAML, prime-rl and Holdfast lines TOML. The other six frameworks' lines
are in `fixes_by_flags`. Lines on groups, rewards, weights, prefix caches and float32 were read in verl 1dda039, too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from holdfast.audit.judge.fixes_by_flags import BY_FLAGS, FLAGS
from holdfast.errors import ConfigError

FRAMEWORKS = ("verl", "TRL", "AReaL", "prime-rl", "NeMo-RL", "Holdfast", *BY_FLAGS)


@dataclass(frozen=True)
class Fix:
    """A recommendation: what it does, its numbers with their defaults, and a line for each of the first six FRAMEWORKS.

    `{name}` in a line is a number: `numbers`, and what follows from them (see `_values`).
    """

    does: str
    lines: tuple[str, str, str, str, str, str]
    numbers: Mapping[str, float] = field(default_factory=dict)


_VERL = "algorithm.rollout_correction"
_NOT_BYPASS = f"{_VERL}.bypass_mode=false  # with true, the v1 trainer ignores rollout_rs and rollout_is"
_PRIME_CUSTOM = 'no option for this rule; [trainer.loss] type = "custom" takes a function of yours'
_ICEPOP = (
    "loss_fn.use_importance_sampling_correction=true loss_fn.truncated_importance_sampling_type=icepop "
    "loss_fn.truncated_importance_sampling_ratio={ratio:.4g} "
    "loss_fn.truncated_importance_sampling_ratio_min={inverse:.4g}"
)

_AREAL_MEAN = (
    "+actor.rejection_sampling={{level:sequence,action:mask,metric:kl_k2,agg:mean,upper:{delta_avg:.4g}}}"
    "  # its kl_k3 is of engine/trainer"
)

FIXES: Mapping[str, Fix] = {
    "sequence_mask": Fix(
        does="drops a response whose worst token has k2 = ½ log² ratio above delta (TRM-Max)",
        numbers={"delta": 0.05},
        lines=(
            f"{_VERL}.rollout_rs=seq_max_k2 {_VERL}.rollout_rs_threshold={{delta:.4g}}\n"
            f"# the scale is k2: {{delta:.4g}} is a ratio of {{ratio:.3g}}\n{_NOT_BYPASS}",
            "no option per sequence; nearest, per token:\n"
            'vllm_importance_sampling_mode="token_mask", vllm_importance_sampling_clip_max={ratio:.4g}, '
            "vllm_importance_sampling_clip_min={inverse:.4g}\n"
            '# per sequence: HoldfastGRPOTrainer(..., objective=holdfast.preset("dapo+trm_max", delta={delta:.4g}))',
            "actor.use_decoupled_loss=true\n"
            "+actor.rejection_sampling={{level:sequence,action:mask,metric:kl_k2,agg:max,upper:{delta:.4g}}}",
            f'{_PRIME_CUSTOM}; nearest, per token:\n[trainer.loss]\ntype = "ipo"\nipo_threshold = 0.1  # on |Δp|',
            f"no option for the worst token; nearest, per token:\n{_ICEPOP}",
            'objective.preset = "dapo+trm_max"\nobjective.delta = {delta:.4g}',
        ),
    ),
    "mean_mask": Fix(
        does="drops a response whose mean k3 is above delta_avg (TRM-Avg): a scale that does not grow with length",
        numbers={"delta_avg": 0.001},
        lines=(
            f"{_VERL}.rollout_rs=seq_mean_k3 {_VERL}.rollout_rs_threshold={{delta_avg:.4g}}\n{_NOT_BYPASS}",
            "no option (off_policy_mask_threshold is a signed mean and only looks at A < 0);\n"
            'HoldfastGRPOTrainer(..., objective=holdfast.preset("dapo+trm_avg", delta_avg={delta_avg:.4g}))',
            f"actor.use_decoupled_loss=true\n{_AREAL_MEAN}",
            _PRIME_CUSTOM,
            "grpo.seq_logprob_error_threshold={error:.4g}  # on the mean of exp|log ratio|",
            'objective.preset = "dapo+trm_avg"\nobjective.delta_avg = {delta_avg:.4g}',
        ),
    ),
    "length_neutral_mask": Fix(
        does="drops a response by a mean over its tokens, so that long ones are judged like short ones",
        numbers={"max_weighted": 0.05, "delta_avg": 0.001},
        lines=(
            f"{_VERL}.rollout_rs=seq_mean_k3 {_VERL}.rollout_rs_threshold={{delta_avg:.4g}}"
            f"  # not seq_sum_* and not seq_max_*\n{_NOT_BYPASS}",
            "no option per sequence that is neutral: both sequence_* modes take the product over tokens;\n"
            'vllm_importance_sampling_mode="token_truncate", vllm_importance_sampling_clip_max=2.0\n'
            '# or HoldfastGRPOTrainer(..., objective=holdfast.preset("dapo+ln_trm", max_weighted={max_weighted:.4g}))',
            f"actor.use_decoupled_loss=true\n{_AREAL_MEAN}",
            _PRIME_CUSTOM,
            "grpo.seq_logprob_error_threshold={error:.4g}  # on the mean of exp|log ratio|",
            'objective.preset = "dapo+ln_trm"\nobjective.max_weighted = {max_weighted:.4g}',
        ),
    ),
    "truncated_token_weights": Fix(
        does="weighs each token by its ratio to the engine, at most cap (TIS)",
        numbers={"cap": 2.0},
        lines=(
            f"{_VERL}.rollout_is=token {_VERL}.rollout_is_threshold={{cap:.4g}}\n{_NOT_BYPASS}",
            'vllm_importance_sampling_mode="token_truncate", vllm_importance_sampling_clip_max={cap:.4g}\n'
            "# the default is sequence_mask at 3.0: the product over the response",
            "actor.use_decoupled_loss=true\n"
            "+actor.rejection_sampling={{level:token,action:clamp,metric:ratio,upper:{cap:.4g}}}",
            "no option; its default loss multiplies by the ratio to the engine, without a cap, and masks on |Δp|:\n"
            '[trainer.loss]\ntype = "default"\ndppo_mask_high = 0.2\ndppo_mask_low = 0.2',
            "loss_fn.use_importance_sampling_correction=true loss_fn.truncated_importance_sampling_type=tis "
            "loss_fn.truncated_importance_sampling_ratio={cap:.4g}",
            'objective.preset = "dapo+tis"  # caps at 2',
        ),
    ),
    "clip_on_rollout": Fix(
        does="lets the clip compare with the policy that sampled",
        lines=(
            f"{_VERL}.bypass_mode=true {_VERL}.loss_type=ppo_clip\n"
            "# old is then the engine; the v1 trainer ignores rollout_rs and rollout_is in this mode",
            "no option: the ratio is to TRL's own stored log-probabilities;\n"
            'HoldfastGRPOTrainer(..., objective=holdfast.preset("dapo", denominator="rollout"))',
            "actor.use_decoupled_loss=false actor.recompute_logprob=false  # old is then the engine",
            "nothing to set: its ratio is to the engine already",
            "no option: the ratio is to prev_logprobs, which the trainer recomputes",
            'objective.preset = "dapo"\nobjective.denominator = "rollout"',
        ),
    ),
    "covariance_control": Fix(
        does="holds back the few tokens whose covariance of log p and advantage drives the entropy down",
        numbers={"kl_cov_ratio": 0.002},
        lines=(
            "actor_rollout_ref.actor.policy_loss.loss_mode=kl_cov "
            "actor_rollout_ref.actor.policy_loss.kl_cov_ratio={kl_cov_ratio:.4g}\n"
            "# statistics are per micro-batch in verl's own loss; loss_mode=holdfast_kl_cov takes the whole step's",
            'no option;\nHoldfastGRPOTrainer(..., objective="dapo+kl_cov")  # or GRPOConfig(epsilon_high=0.28)',
            "no option; nearest: actor.eps_clip=0.2 actor.eps_clip_higher=0.28",
            "no option; nearest, room for unlikely tokens to grow:\n"
            '[trainer.loss]\ntype = "default"\ndppo_mask_high = 0.28',
            "no option; nearest: loss_fn.ratio_clip_min=0.2 loss_fn.ratio_clip_max=0.28",
            'objective.preset = "dapo+kl_cov"',
        ),
    ),
    "clip_cov": Fix(
        does="takes a few tokens of large covariance out of the gradient (Clip-Cov)",
        lines=(
            "actor_rollout_ref.actor.policy_loss.loss_mode=clip_cov\n"
            "# per micro-batch, at least one token of each; loss_mode=holdfast_clip_cov takes the whole step's",
            'no option;\nHoldfastGRPOTrainer(..., objective="dapo+clip_cov")',
            "no option",
            "no option",
            "no option",
            'objective.preset = "dapo+clip_cov"',
        ),
    ),
    "entropy_bonus": Fix(
        does="adds a bonus on the entropy while it is below a target",
        numbers={"target": 0.2, "coefficient": 0.001},
        lines=(
            "actor_rollout_ref.actor.entropy_coeff={coefficient:.4g}  # constant; verl has no target",
            "use_adaptive_entropy=True, entropy_target={target:.4g}",
            "no option; nearest: actor.eps_clip_higher=0.28",
            "no option",
            "no option; nearest: loss_fn.ratio_clip_max=0.28",
            'objective.preset = "dapo+adaptive_entropy"\nobjective.target = {target:.4g}',
        ),
    ),
    "clip_higher": Fix(
        does="lets unlikely tokens grow further before the clip stops them",
        numbers={"high": 0.28},
        lines=(
            "actor_rollout_ref.actor.clip_ratio_low=0.2 actor_rollout_ref.actor.clip_ratio_high={high:.4g}\n"
            "# clip_ratio alone does nothing",
            "epsilon=0.2, epsilon_high={high:.4g}  # except loss_type='cispo', where it is an absolute cap",
            "actor.eps_clip=0.2 actor.eps_clip_higher={high:.4g}",
            '[trainer.loss]\ntype = "default"\ndppo_mask_high = {high:.4g}  # on Δp, not on the ratio',
            "loss_fn.ratio_clip_min=0.2 loss_fn.ratio_clip_max={high:.4g}",
            'objective.preset = "dapo"\nobjective.high = {high:.4g}',
        ),
    ),
    "less_staleness": Fix(
        does="keeps rollouts of older weights out of training",
        numbers={"versions": 1.0},
        lines=(
            "trainer.v1.sampler.max_off_policy_threshold={versions:.0f}",
            "steps_per_generation=gradient_accumulation_steps, num_iterations=1\n"
            "# AsyncGRPOConfig: max_staleness={versions:.0f}",
            "rollout.max_head_offpolicyness={versions:.0f}",
            "[orchestrator]\nmax_off_policy_steps = {versions:.0f}",
            "grpo.async_grpo.max_trajectory_age_steps={versions:.0f}",
            "async.staleness = {versions:.0f}",
        ),
    ),
    "engine_logprobs": Fix(
        does="logs what the engine returned for the tokens it sampled, after temperature and truncation",
        lines=(
            "actor_rollout_ref.rollout.calculate_log_probs=true "
            "actor_rollout_ref.rollout.logprobs_mode=processed_logprobs",
            "use_vllm=True, vllm_importance_sampling_correction=True",
            "nothing to set: the engine's log-probabilities are always returned",
            "nothing to set: inference_logprobs are always exported",
            "nothing to set: generation_logprobs are always written",
            "nothing to set: every engine returns them",
        ),
    ),
    "sampling_support": Fix(
        does="samples from the very distribution that the trainer scores",
        numbers={"temperature": 1.0},
        lines=(
            "actor_rollout_ref.rollout.temperature={temperature:.4g} actor_rollout_ref.rollout.top_p=1 "
            "actor_rollout_ref.rollout.top_k=-1",
            "temperature={temperature:.4g}, top_p=1.0, top_k=0, min_p=None, repetition_penalty=1.0",
            "gconfig.temperature={temperature:.4g} gconfig.top_p=1.0 actor.temperature={temperature:.4g}",
            "[orchestrator.train.sampling]\ntemperature = {temperature:.4g}  # it always sends top_p = 1.0",
            "policy.generation.temperature={temperature:.4g} policy.generation.top_p=1.0 policy.generation.top_k=null",
            "sampling.temperature = {temperature:.4g}\nsampling.top_p = 1.0\nsampling.top_k = 0\nsampling.min_p = 0.0\n"
            'sampling.trainer_support = "processed"',
        ),
    ),
    "same_micro_batch": Fix(
        does="computes old log-probabilities in the batches in which they are trained on, so that rounding agrees",
        lines=(
            "actor_rollout_ref.rollout.log_prob_use_dynamic_bsz=true actor_rollout_ref.actor.use_dynamic_bsz=true\n"
            "actor_rollout_ref.rollout.log_prob_max_token_len_per_gpu=16384 "
            "actor_rollout_ref.actor.ppo_max_token_len_per_gpu=16384",
            "nothing to set: both passes take per_device_train_batch_size sequences",
            "actor.recompute_logprob=true  # in the trainer, with its own actor.mb_spec",
            "nothing to set: old log-probabilities are the engine's",
            "policy.logprob_batch_size=${{policy.train_micro_batch_size}}",
            "nothing to set: one budget for both passes",
        ),
    ),
    "token_ids_not_text": Fix(
        does="passes token ids from the engine to the trainer, and never text that is tokenised again",
        lines=(
            "actor_rollout_ref.rollout.multi_turn.tokenization_sanity_check_mode=strict",
            "no option: tools run in token ids; with a rollout_func return completion_ids as the engine gave them",
            "no option: return the engine's output_tokens from the workflow",
            "[orchestrator.renderer]  # a renderer made for the model: its name instead of the fallback",
            "no option: keep the message log's token_ids as the engine gave them",
            "nothing to set: turns are joined as token ids",
        ),
    ),
    "groups_by_prompt": Fix(
        does="makes advantages from the rewards of all answers to one prompt, and of no others",
        lines=(
            "algorithm.adv_estimator=grpo actor_rollout_ref.rollout.n=8\n"
            "# a group is the rows of one uid: an agent loop of your own must keep the prompt's",
            "num_generations=8  # a group is so many rows in a row: a rollout_func must return all of them, in order",
            "gconfig.n_samples=8 actor.reward_norm.mean_level=group actor.reward_norm.std_level=group "
            "actor.reward_norm.group_size=8\n# a group is so many rows in a row: a failed episode must not leave a gap",
            "[orchestrator]\ngroup_size = 8",
            "grpo.num_generations_per_prompt=16 grpo.adv_estimator.name=grpo",
            "nothing to set: a group is the answers to one prompt",
        ),
    ),
    "float32_logprobs": Fix(
        does="computes logits, or the LM head that makes them, in float32",
        lines=(
            "+actor_rollout_ref.rollout.engine_kwargs.sglang.enable_fp32_lm_head=true  # of an SGLang engine",
            "cast_lm_head_to_fp32=True",
            "no option that we found",
            "[inference]\nenable_fp32_lm_head = true  # the default",
            "no option that we found",
            'engine.precision = "bfloat16,head=float32"',
        ),
    ),
    "reward_function": Fix(
        does="is where responses are paid: there, giving up must not be worth more than trying and being wrong",
        lines=(
            "reward.custom_reward_function.path=your_reward.py reward.custom_reward_function.name=compute_score",
            "no option of GRPOConfig: GRPOTrainer(..., reward_funcs=[your_function])",
            "no option: the reward_fn that your workflow gets, as in RLVRWorkflow(reward_fn=...)",
            "no option: the rubric of the environment (verifiers)",
            "no option: what your environment's step() returns",
            'task.reward = "your_reward.py:your_function"',
        ),
    ),
    "weights_at_start": Fix(
        does="gives every engine the trainer's weights before it samples, also after a resume and a restart",
        lines=(
            "actor_rollout_ref.rollout.load_format=dummy  # weights then come from the trainer alone",
            'vllm_mode="colocate"  # a server that restarts has the first weights: restart the trainer with it',
            "recover.mode=on  # a server that restarts by itself has the first weights: restart all of the run",
            "no option: restart the inference server together with the trainer",
            "policy.generation.colocated.enabled=true  # weights go to the engine before each step",
            "nothing to set: weights are sent before the first rollout, also after a resume",
        ),
    ),
    "no_stale_prefix": Fix(
        does="keeps no keys and values of older weights for later prompts (no prefix cache)",
        lines=(
            "actor_rollout_ref.rollout.enable_prefix_caching=false",
            "nothing to set in colocate mode, which empties the cache at every update; with a server:\n"
            "trl vllm-serve --enable_prefix_caching False",
            "sglang.disable_radix_cache=true vllm.no_enable_prefix_caching=true",
            "[inference.vllm]\nenable_prefix_caching = false",
            "++policy.generation.vllm_cfg.enable_prefix_caching=false",
            "nothing to set: the cache is emptied at every update",
        ),
    ),
}


def settings(name: str, **numbers: float | int) -> dict[str, str]:
    """The configuration lines of one recommendation per framework; numbers replace its defaults.

    Raises:
        ConfigError: an unknown recommendation or number.
    """
    if name not in FIXES:
        raise ConfigError(f"no recommendation is called {name!r}; there are {', '.join(FIXES)}")
    fix = FIXES[name]
    unknown = sorted(set(numbers) - set(fix.numbers))
    if unknown:
        allowed = ", ".join(fix.numbers) or "none"
        raise ConfigError(f"{name!r} has no number {unknown[0]!r}; it has: {allowed}")
    values = _values({**fix.numbers, **numbers})
    return {
        framework: line.format(**values) for framework, line in zip(FRAMEWORKS, (*fix.lines, *FLAGS[name]), strict=True)
    }


def _values(numbers: Mapping[str, float | int]) -> dict[str, float]:
    """The numbers, and what they are on other frameworks' scales.

    delta on k2 is a ratio of exp(√(2 delta)) or its inverse. A mean k3 of delta_avg is a root mean square log-ratio of
    about √(2 delta_avg), and the mean of exp|log ratio| is then at most about 1 + √(2 delta_avg).
    """
    values = {name: float(value) for name, value in numbers.items()}
    if "delta" in numbers:
        values["ratio"] = math.exp(math.sqrt(2 * numbers["delta"]))
        values["inverse"] = 1 / values["ratio"]
    if "delta_avg" in numbers:
        values["error"] = 1 + math.sqrt(2 * numbers["delta_avg"])
    return values
