"""Who decides what: the objective decides the loss, GRPOConfig everything else; what both would set is refused."""

from __future__ import annotations

import copy
import warnings
from typing import Any

from holdfast.errors import ConfigError
from holdfast.integrations.trl.config import DEFAULTS, refuse_replaced
from holdfast.objectives.objective import Objective
from holdfast.objectives.parts.advantages import Gae
from holdfast.objectives.parts.penalties import EntropyBonus, Kl
from holdfast.objectives.presets import preset
from holdfast.types import STATS_BOUNDS

_AVAILABLE = {"rollout_logprobs", "ref_logprobs", "entropy", "sequence_ids", "turn_ids"}
"""What TRL can give an objective beside log-probabilities, advantages and the mask."""


_DISTORTING = {
    "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0,
    "frequency_penalty": 0.0, "no_repeat_ngram_size": 0, "typical_p": 1.0, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0,
    "min_tokens": 0, "min_new_tokens": 0, "min_length": 0, "num_beams": 1, "do_sample": True,
    "encoder_repetition_penalty": 1.0,
    **dict.fromkeys(
        ("logit_bias", "sequence_bias", "allowed_token_ids", "bad_words", "bad_words_ids", "suppress_tokens",
         "begin_suppress_tokens", "forced_eos_token_id", "logits_processors", "structured_outputs",
         "guided_decoding", "guidance_scale", "prefix_allowed_tokens_fn", "exponential_decay_length_penalty")
    ),
}  # fmt: skip
"""Settings of vLLM's and transformers' sampling that change the distribution, with the values that do not."""


def resolve(objective: str | Objective, args: Any, top_logprobs: int = 0) -> tuple[Objective, Any]:
    """The complete objective, and a copy of the GRPOConfig with what TRL must do for it.

    `beta` becomes a k3 penalty to the reference policy and `entropy_coef` an entropy bonus, both with the objective's
    normaliser. An objective that brings its own penalty to the reference gets TRL to load one. Where the objective is
    given by name, a division by a fixed length is one by `max_completion_length`, as in TRL.

    Raises:
        ConfigError: a setting that the objective replaces is set in GRPOConfig too, TRL cannot provide what the
            objective needs, or generation batches do not consist of whole optimiser steps.
    """
    named = isinstance(objective, str)
    objective = preset(objective) if isinstance(objective, str) else objective
    given = {name: getattr(args, name) for name in DEFAULTS}
    refuse_replaced({n: value for n, value in given.items() if value is not None and value != DEFAULTS[n]})
    _refuse_partial_steps(args)
    args = copy.copy(args)
    vars(args).update(DEFAULTS)
    objective = _with_length(objective, args.max_completion_length, named)
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
    _refuse_unavailable(objective, top_logprobs)
    return objective, args


def warn_of_other_distribution(objective: Objective, args: Any) -> None:
    """TRL's trainer log-probabilities are over the whole vocabulary, at GRPOConfig.temperature and nothing else."""
    if "rollout_logprobs" not in objective.needs:
        return
    own = args.generation_kwargs or {}
    sampled = {name: own.get(name, getattr(args, name, neutral)) for name, neutral in _DISTORTING.items()}
    found = {n: v for n, v in sampled.items() if v is not None and v != _DISTORTING[n] and not (n == "top_k" and v < 1)}
    if own.get("temperature", args.temperature) != args.temperature:
        found["temperature"] = own["temperature"]
    if getattr(args, "vllm_structured_outputs_regex", None):
        found["vllm_structured_outputs_regex"] = args.vllm_structured_outputs_regex
    if found:
        settings = ", ".join(
            f"{'generation_kwargs.' if name in own else ''}{name} = {value}" for name, value in found.items()
        )
        warnings.warn(
            f"{settings}: the engine samples from another distribution than the one TRL's trainer scores, so every "
            f"ratio to it is off; sample with GRPOConfig.temperature alone, or raise the thresholds of "
            f"{objective.name!r}",
            stacklevel=3,
        )


def warn_of_length_weights(objective: Objective) -> None:
    """A ratio pooled over a sequence stands on each of its tokens: a sum over tokens counts it as often."""
    pool, normalize = objective.pool, objective.normalize
    if pool.over == "sequence_mean" and normalize.reduction in ("token_mean", "fixed_length"):
        warnings.warn(
            f"objective {objective.name!r}: pool = {pool.over!r} gives every token of a sequence the same ratio, and "
            f"normalize = {normalize.reduction!r} adds them up: sequences weigh by their length, which no "
            "published row means; with_(normalize=Normalize('sequence_mean_token_mean')) divides by it, as GSPO does",
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


def _with_length(objective: Objective, longest: int | None, named: bool) -> Objective:
    own = objective.normalize
    if own.reduction != "fixed_length" or own.length == longest or not longest or own.length is None:
        return objective
    if named:
        return objective.with_(**{"normalize.length": longest})
    warnings.warn(
        f"objective {objective.name!r} divides by length = {own.length}, GRPOConfig.max_completion_length is {longest}:"
        f" every gradient is {longest / own.length:.3g} of TRL's; give the objective by name, or "
        f".with_(length={longest})",
        stacklevel=4,
    )
    return objective


def _refuse_partial_steps(args: Any) -> None:
    per_generation, per_step = args.steps_per_generation, args.gradient_accumulation_steps
    if per_generation % per_step:
        nearest_valid = -(-per_generation // per_step) * per_step
        raise ConfigError(
            f"GRPOConfig.steps_per_generation = {per_generation} is not a multiple of gradient_accumulation_steps = "
            f"{per_step}: an optimiser step would see its sequences one generation at a time, and no count or "
            f"statistic over the whole step would be exact; nearest valid value: {nearest_valid}"
        )


def _refuse_unavailable(objective: Objective, top_logprobs: int) -> None:
    bounds = objective.needs & STATS_BOUNDS.keys()
    if bounds and not top_logprobs:
        raise ConfigError(
            f"objective {objective.name!r} needs {', '.join(sorted(bounds))}, which the engine's likeliest tokens "
            "prove: HoldfastGRPOTrainer(top_logprobs=20) with vLLM, or a rollout_func that returns logprob_token_ids"
        )
    for field, what in (("teacher_logprobs", "a teacher's log-probabilities"), ("group_ids", "the prompts' numbers")):
        if field in objective.needs:
            raise ConfigError(f"objective {objective.name!r} needs {what}, which TRL does not give its loss")
    missing = sorted(objective.needs - _AVAILABLE - STATS_BOUNDS.keys())
    if missing:
        raise ConfigError(
            f"objective {objective.name!r} needs {', '.join(missing)}, which TRL does not give: an engine reports its "
            "likeliest tokens at most; choose a bound such as 'kl_lower' or 'tv_upper' (top_logprobs), or a sampled "
            "detector such as 'k2' or 'k3'"
        )
    if isinstance(objective.advantage, Gae):
        raise ConfigError("advantage 'gae' needs a value head, which TRL's GRPOTrainer does not have: use 'group'")
    if beside := objective.advantage.beside:
        raise ConfigError(
            f"advantage {objective.advantage.kind()!r} needs {beside}, which TRL does not give: use 'group'"
        )


def _with_penalty(objective: Objective, penalty: Kl | EntropyBonus) -> Objective:
    return objective.with_(penalties=(*objective.penalties, penalty))
