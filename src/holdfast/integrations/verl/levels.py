"""What each level of the plug-in cannot do, refused by name."""

from __future__ import annotations

from dataclasses import dataclass

from holdfast.errors import ConfigError
from holdfast.integrations.verl.names import POLICY_LOSS, TRAINER_MODE
from holdfast.objectives.objective import Objective
from holdfast.objectives.parts.penalties import EntropyBonus
from holdfast.objectives.whole_step import whole_step_parts
from holdfast.types import STATS_BOUNDS

TOP_K_FIELDS = frozenset(STATS_BOUNDS)
"""What the engine's top-K bounds against the student's full logits."""

BASELINE_ESTIMATORS = ("grpo", "rloo", "opo")
"""verl's advantage estimators that compare the rewards of one prompt's responses and use nothing else of them."""

_EXACT_FIELDS = frozenset({"kl_rollout", "tv_rollout", "chi2_rollout"})
_HIGHER = f"use trainer.v1.trainer_mode={TRAINER_MODE}"


@dataclass(frozen=True)
class Given:
    """What reaches the loss beside log-probabilities, advantages and the response mask."""

    level: int
    rollout: bool
    entropy: bool = False
    reference: bool = False
    top_k: bool = False


def check(objective: Objective, given: Given) -> None:
    """Raise ConfigError for what this objective needs and this run does not give it, with the setting that would."""
    first = given.level == 1
    fixes = {}
    if not given.rollout:
        fixes["rollout_logprobs"] = (
            f"verl hands a policy loss none: {_HIGHER}, or make the rollout the old policy with "
            f"algorithm.rollout_correction.bypass_mode=true and +{POLICY_LOSS}.bypass_mode=true"
            if first
            else "the engine gives none: set actor_rollout_ref.rollout.calculate_log_probs=true"
        )
    if not given.entropy:
        fixes["entropy"] = (
            f"verl keeps it from a policy loss: {_HIGHER} and actor_rollout_ref.actor.calculate_entropy=true"
            if first
            else "set actor_rollout_ref.actor.calculate_entropy=true"
        )
    if not given.reference:
        fixes["ref_logprobs"] = (
            f"verl keeps them from a policy loss: {_HIGHER}, or let verl add the penalty (actor.use_kl_loss=true)"
            if first
            else "set actor.use_kl_loss=true, and kl_loss_coef=0 unless verl's penalty is wanted too"
        )
    exact = "verl's engines report no full distributions: use a sampled detector (k2) or a top-K one (tv_upper)"
    fixes |= dict.fromkeys(_EXACT_FIELDS, exact)
    fixes["group_ids"] = "this plug-in passes no prompt numbers on to the loss"
    fixes["teacher_logprobs"] = "this plug-in passes no teacher on to the loss: use verl's own distillation"
    if not given.top_k:
        bound = f"{_HIGHER}, +{POLICY_LOSS}.top_k=true, and a rollout that returns its top-K tokens"
        fixes |= dict.fromkeys(TOP_K_FIELDS, bound)
    for field in sorted(objective.needs & fixes.keys()):
        raise ConfigError(f"level {given.level}: {objective.name!r} needs {field}: {fixes[field]}")
    if any(isinstance(part, EntropyBonus) and part.adapt > 0 for part in objective.penalties):
        raise ConfigError(
            f"{objective.name!r} changes its entropy coefficient after every step, and verl's checkpoints would forget "
            "it: use entropy_bonus with an annealed alpha"
        )


def check_whole_step(objective: Objective) -> None:
    """Raise ConfigError if a statistic of the optimiser step would be one of a micro-batch (level 1)."""
    if parts := whole_step_parts(objective):
        raise ConfigError(
            f"level 1: {objective.name!r}: {', '.join(parts)} looks at the whole optimiser step, and verl hands a "
            f"policy loss one micro-batch of it: {_HIGHER}, or make the step one micro-batch on one rank"
        )
