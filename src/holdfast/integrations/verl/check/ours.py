"""Our losses in verl: settings of verl that the objective does not read, or that make parts of it idle."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from holdfast.errors import ConfigError
from holdfast.integrations.verl.check.trap import Trap, correction_of, loss_mode, own_trainer, trainer_mode
from holdfast.integrations.verl.names import POLICY_LOSS, advantage_overrides, is_ours, objective_name, with_settings
from holdfast.objectives.objective import Objective
from holdfast.objectives.parts.weights import ImportanceWeight

_AGGREGATION = {
    "token_mean": "token-mean",
    "sequence_mean_token_mean": "seq-mean-token-mean",
    "sequence_mean_token_sum": "seq-mean-token-sum",
    "fixed_length": "seq-mean-token-sum-norm",
}
_DEFAULTS = {
    "clip_ratio": 0.2, "clip_ratio_low": 0.2, "clip_ratio_high": 0.2, "clip_ratio_c": 3.0,
    "tau_pos": 1.0, "tau_neg": 1.05, "loss_agg_mode": "token-mean", "loss_scale_factor": None,
}  # fmt: skip


def read_by_nobody(config: Any) -> Iterator[Trap]:
    """verl's clip, temperatures and aggregation, where they are neither defaults nor what the objective does."""
    if (objective := objective_of(config)) is None:
        return
    actor, own = config.actor_rollout_ref.actor, _own_values(objective)
    changed = [
        f"{name}={actor.get(name)}"
        for name, default in _DEFAULTS.items()
        if actor.get(name, default) not in (default, *own.get(name, ()))
    ]
    if changed:
        yield Trap(
            f"actor.{', '.join(changed)} with loss_mode={loss_mode(config)}",
            "the objective has its own clip, temperatures and normaliser and does not read these",
            f"Set them through policy_loss.settings (low, high, dual, tau_pos, normalize); it has: {objective.name}, "
            f"{objective.gate.formula()}, n = {objective.normalize.formula()}",
        )


def fixed_length(config: Any) -> Iterator[Trap]:
    """A constant in the denominator that is not the longest response."""
    if (objective := objective_of(config)) is None or objective.normalize.reduction != "fixed_length":
        return
    length, longest = objective.normalize.length, config.data.max_response_length
    if length != longest:
        yield Trap(
            f"{objective.name} with data.max_response_length={longest}",
            f"the objective divides each sequence by {length} tokens, whatever the longest response is",
            f"Set +{POLICY_LOSS}.settings.length={longest}, or keep {length} on purpose",
        )


def other_advantage(config: Any) -> Iterator[Trap]:
    """An estimator that is not the preset's."""
    if (objective := objective_of(config)) is None:
        return
    try:
        wanted = advantage_overrides(objective)
    except ConfigError as error:
        setting = f"algorithm.adv_estimator={config.algorithm.adv_estimator}"
        yield Trap(setting, "verl estimates the advantages, not the objective", str(error))
        return
    names = [override.partition("=")[0].removeprefix("algorithm.") for override in wanted]
    found = [f"algorithm.{name}={_hydra(config.algorithm[name])}" for name in names]
    if wanted != found:
        yield Trap(
            ", ".join(found),
            f"verl estimates the advantages, and {objective.name} asks for others: {objective.advantage.formula()}",
            f"Set {' '.join(wanted)}, or keep yours on purpose",
        )


def one_for_all(config: Any) -> Iterator[Trap]:
    """Weights old/rollout in bypass mode; a clip on θ/old with one update per batch."""
    if (objective := objective_of(config)) is None:
        return
    bypass = bool(correction_of(config).get("bypass_mode"))
    weights = [part for part in objective.weights if isinstance(part, ImportanceWeight) and part.numerator == "old"]
    if bypass and weights:
        yield Trap(
            f"algorithm.rollout_correction.bypass_mode=true with {objective.name}",
            "old is the rollout, so every weight old/rollout is 1",
            "Set bypass_mode=false on trainer_mode=holdfast_sync",
        )
    if _once(config) and not bypass and not weights and objective.gate in objective.idle_where_old:
        yield Trap(
            f"one update per batch with {objective.name}",
            "old is then the trainer itself and every ratio θ/old is 1: a clip on it cannot act",
            "Add settings.denominator=rollout, or a mask or weight on the rollout (trm, tis)",
        )


def idle_or_twice(config: Any) -> Iterator[Trap]:
    """Parts on θ/old that nothing moves; drift that several updates count twice."""
    if (objective := objective_of(config)) is None:
        return
    idle = [part.kind() for part in objective.idle_where_old if part is not objective.gate]
    if _once(config) and not correction_of(config).get("bypass_mode") and idle:
        settings = " ".join(f"+{POLICY_LOSS}.settings.{key}={value}" for key, value in objective.remedies.items())
        yield Trap(
            f"one update per batch with {objective.name}",
            f"old is then the trainer itself, and {' and '.join(idle)} cannot act: no gradient changes",
            f"Set actor.ppo_mini_batch_size below data.train_batch_size, or {settings}",
        )
    for sentence in () if _once(config) else objective.double_corrections:
        yield Trap(f"several updates per batch with {objective.name}", sentence, "One of the two is enough")


def distilled_away(config: Any) -> Iterator[Trap]:
    """verl's distillation without task rewards, which leaves the policy loss out."""
    distillation = config.get("distillation")
    ours = is_ours(loss_mode(config)) and distillation and distillation.get("enabled")
    if ours and not distillation.distillation_loss.get("use_task_rewards"):
        yield Trap(
            f"distillation.enabled=true without use_task_rewards beside loss_mode={loss_mode(config)}",
            "verl then trains on the distillation loss alone: the objective changes nothing",
            "Set distillation.distillation_loss.use_task_rewards=true, or leave the objective out",
        )


def objective_of(config: Any) -> Objective | None:
    """The objective of a config whose loss is ours."""
    loss = config.actor_rollout_ref.actor.policy_loss
    if not is_ours(loss_mode(config)):
        return None
    return with_settings(objective_name(loss.loss_mode, loss.get("objective", "")), loss.get("settings", {}))


def _own_values(objective: Objective) -> dict[str, tuple[Any, ...]]:
    """What the objective does under verl's names, so that saying it twice is no trap."""
    gate, normalize = objective.gate, objective.normalize
    low, high = getattr(gate, "low", None), getattr(gate, "high", None)
    both = (low,) if low == high else ()
    return {
        "clip_ratio": both, "clip_ratio_low": (low,), "clip_ratio_high": (high,),
        "clip_ratio_c": (getattr(gate, "dual", None),),
        "tau_pos": (getattr(gate, "tau_pos", None),), "tau_neg": (getattr(gate, "tau_neg", None),),
        "loss_agg_mode": (_AGGREGATION[normalize.reduction],), "loss_scale_factor": (normalize.length,),
    }  # fmt: skip


def _once(config: Any) -> bool:
    """Whether a batch of rollouts gets one update, under the weights that its old log-probabilities are of."""
    actor = config.actor_rollout_ref.actor
    once = actor.ppo_epochs == 1 and actor.ppo_mini_batch_size == config.data.train_batch_size
    return once and trainer_mode(config) != "separate_async" and not own_trainer(config)


def _hydra(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else str(value)
