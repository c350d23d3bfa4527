"""Who decides what: the objective decides the loss, GRPOConfig everything else; what both would set is refused."""

from __future__ import annotations

import copy
import warnings
from dataclasses import fields
from typing import Any

from holdfast.errors import ConfigError
from holdfast.objectives.objective import Objective
from holdfast.objectives.parts.advantages import Gae
from holdfast.objectives.parts.penalties import EntropyBonus, Kl
from holdfast.objectives.presets import preset

_IN_OBJECTIVE = {
    "loss_type": "the preset names the loss",
    "epsilon": "the gate's `low` and `high`",
    "epsilon_high": "the gate's `high`",
    "delta": "the gate's `dual`",
    "importance_sampling_level": "the objective's `pool`",
    "sapo_temperature_neg": "preset sapo, `tau_neg`",
    "sapo_temperature_pos": "preset sapo, `tau_pos`",
    "vespo_k_pos": "preset vespo, `k_pos`",
    "vespo_lambda_pos": "preset vespo, `lambda_pos`",
    "vespo_k_neg": "preset vespo, `k_neg`",
    "vespo_lambda_neg": "preset vespo, `lambda_neg`",
    "scale_rewards": "advantage=Group(scale='none' or 'batch_std')",
    "multi_objective_aggregation": "advantages come from the weighted sum of the rewards",
    "top_entropy_quantile": "a mask of the objective",
    "off_policy_mask_threshold": "preset opsm",
    "use_adaptive_entropy": "preset adaptive_entropy",
    "vllm_importance_sampling_mode": "presets tis, mis, icepop, trm, …",
    "vllm_importance_sampling_clip_max": "the `high` of preset tis or mis",
    "vllm_importance_sampling_clip_min": "the `low` of preset tis or mis",
}
"""GRPOConfig's settings that the objective replaces, and where they are now."""

_AVAILABLE = {"rollout_logprobs", "ref_logprobs", "entropy", "sequence_ids", "turn_ids"}
"""What TRL can give an objective beside log-probabilities, advantages and the mask."""


def resolve(objective: str | Objective, args: Any) -> tuple[Objective, Any]:
    """The complete objective, and a copy of the GRPOConfig with what TRL must do for it.

    `beta` becomes a k3 penalty to the reference policy and `entropy_coef` an entropy bonus, both with the objective's
    normaliser. An objective that brings its own penalty to the reference gets TRL to load one.

    Raises:
        ConfigError: a setting that the objective replaces is set in GRPOConfig too, TRL cannot provide what the
            objective needs, or generation batches do not consist of whole optimiser steps.
    """
    objective = preset(objective) if isinstance(objective, str) else objective
    _refuse_replaced(args)
    _refuse_partial_steps(args)
    args = copy.copy(args)
    references = [part for part in objective.penalties if isinstance(part, Kl) and part.policy == "ref"]
    if references and args.beta:
        raise ConfigError(
            f"GRPOConfig.beta = {args.beta:g} and the objective's penalty {references[0].formula()} are the same "
            "thing twice: keep one of them"
        )
    if args.beta:
        objective = _with_penalty(objective, Kl(args.beta, "k3", ratio_weighted=args.use_bias_correction_kl))
    elif references:
        args.beta = max(part.coefficient for part in references)
    if args.entropy_coef:
        objective = _with_penalty(
            objective, EntropyBonus(alpha=args.entropy_coef, alpha_max=max(1.0, args.entropy_coef))
        )
        args.entropy_coef = 0.0
    _refuse_unavailable(objective)
    return objective, args


def warn_of_truncated_support(objective: Objective, args: Any) -> None:
    """TRL's trainer log-probabilities are over the whole vocabulary: a truncated engine is another distribution."""
    cut = {"top_p": args.top_p != 1.0, "top_k": args.top_k > 0, "min_p": bool(args.min_p)}
    names = [name for name, truncates in cut.items() if truncates]
    if args.repetition_penalty != 1.0:
        names.append("repetition_penalty")
    if names and "rollout_logprobs" in objective.needs:
        settings = ", ".join(f"{name} = {getattr(args, name)}" for name in names)
        warnings.warn(
            f"{settings}: the engine samples from another distribution than the one TRL's trainer scores, so every "
            f"ratio to it is off; sample with temperature alone, or raise the thresholds of {objective.name!r}",
            stacklevel=3,
        )


def warn_of_idle_parts(objective: Objective, args: Any) -> None:
    """With one optimiser step per generation θ is old: penalties and masks on θ/old then change no gradient.

    A gate on θ/old idles too, as PPO's clip always has; that is no news. With several steps, a weight θ/rollout beside
    a ratio θ/old counts θ/old twice.
    """
    once = args.steps_per_generation == args.gradient_accumulation_steps and args.num_iterations == 1
    several = "raise GRPOConfig.steps_per_generation or num_iterations"
    notes = [objective.idle_note(several, gate=False)] if once else objective.double_corrections
    for note in notes:
        if note:
            warnings.warn(f"objective {objective.name!r}: {note}", stacklevel=3)


def _refuse_replaced(args: Any) -> None:
    defaults = {f.name: f.default for f in fields(args)}
    changed = {name: getattr(args, name) for name in _IN_OBJECTIVE if getattr(args, name) != defaults[name]}
    if changed:
        lines = [f"{name} = {value!r} (now: {_IN_OBJECTIVE[name]})" for name, value in changed.items()]
        raise ConfigError(f"the objective replaces these settings of GRPOConfig, leave them out: {'; '.join(lines)}")


def _refuse_partial_steps(args: Any) -> None:
    per_generation, per_step = args.steps_per_generation, args.gradient_accumulation_steps
    if per_generation % per_step:
        nearest_valid = -(-per_generation // per_step) * per_step
        raise ConfigError(
            f"GRPOConfig.steps_per_generation = {per_generation} is not a multiple of gradient_accumulation_steps = "
            f"{per_step}: an optimiser step would see its sequences one generation at a time, and no count or "
            f"statistic over the whole step would be exact; nearest valid value: {nearest_valid}"
        )


def _refuse_unavailable(objective: Objective) -> None:
    missing = sorted(objective.needs - _AVAILABLE)
    if missing:
        raise ConfigError(
            f"objective {objective.name!r} needs {', '.join(missing)}, which TRL does not give: it records one "
            "log-probability per token; choose a sampled detector such as 'k2' or 'k3'"
        )
    if isinstance(objective.advantage, Gae):
        raise ConfigError("advantage 'gae' needs a value head, which TRL's GRPOTrainer does not have: use 'group'")


def _with_penalty(objective: Objective, penalty: Kl | EntropyBonus) -> Objective:
    return objective.with_(penalties=(*objective.penalties, penalty))
