"""The names under which verl finds us, and the overrides that select an objective. Nothing here imports verl."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from holdfast.errors import ConfigError
from holdfast.objectives.objective import Objective
from holdfast.objectives.parts.advantages import Gae, Group, OptimalToken, Whiten
from holdfast.objectives.presets import list_presets, preset

TESTED = ("0.9.1",)
"""The releases of verl that the tests have run with; others are judged by `contract.differences`."""

PREFIX = "holdfast"
"""`policy_loss.loss_mode=holdfast_<row>` is one row of the table; `holdfast` alone reads `policy_loss.objective`."""

TRAINER_MODE = "holdfast_sync"
"""`trainer.v1.trainer_mode` of the second and third level."""

CONFIG_CLASS = "holdfast.integrations.verl.config.HoldfastLossConfig"
"""What `policy_loss._target_` must be as soon as anything but a row's defaults is wanted."""

POLICY_LOSS = "actor_rollout_ref.actor.policy_loss"


def loss_names() -> dict[str, str]:
    """Every registered loss name with the row of the table that it stands for."""
    return {f"{PREFIX}_{row}": row for row in list_presets()}


def is_ours(loss_mode: str) -> bool:
    """Whether a loss name belongs to this plug-in."""
    return loss_mode == PREFIX or loss_mode.startswith(f"{PREFIX}_")


def objective_name(loss_mode: str, objective: str) -> str:
    """The preset that `loss_mode` and `policy_loss.objective` name together.

    Raises ConfigError where they name none, or two different ones.
    """
    if loss_mode == PREFIX:
        if not objective:
            raise ConfigError(
                f"loss_mode={PREFIX} reads its objective from policy_loss.objective, which is empty: "
                f"set +{POLICY_LOSS}.objective=trm+sspo, or name one row, loss_mode={PREFIX}_sspo"
            )
        return objective
    row = loss_mode.removeprefix(f"{PREFIX}_")
    if objective and objective != row:
        raise ConfigError(
            f"loss_mode={loss_mode} and policy_loss.objective={objective} name two objectives: "
            f"use loss_mode={PREFIX} with the objective, or leave the objective out"
        )
    return row


def loss_overrides(objective: str, settings: Mapping[str, Any] | None = None, **options: Any) -> list[str]:
    """Hydra overrides that make a `main_ppo` run use an objective.

    `objective` is a preset, rows joined with "+"; `settings` are what `Objective.with_` takes; `options` are the other
    fields of `HoldfastLossConfig` (records, baseline, top_k). Raises ConfigError for what our objects refuse.

    >>> loss_overrides("trm+sspo", {"delta": 0.05})[-1]
    '+actor_rollout_ref.actor.policy_loss.settings.delta=0.05'
    """
    preset(objective, **dict(settings or {}))
    return [
        f"{POLICY_LOSS}._target_={CONFIG_CLASS}",
        f"{POLICY_LOSS}.loss_mode={PREFIX}",
        f"+{POLICY_LOSS}.objective={objective}",
        *(f"+{POLICY_LOSS}.settings.{name}={hydra_value(value)}" for name, value in (settings or {}).items()),
        *(f"+{POLICY_LOSS}.{name}={hydra_value(value)}" for name, value in options.items()),
    ]


def advantage_overrides(objective: Objective) -> list[str]:
    """Hydra overrides that make verl estimate the advantages that the objective asks for.

    verl computes advantages in its driver, whatever the loss. Raises ConfigError for an estimator that verl lacks.
    """
    advantage = objective.advantage
    if isinstance(advantage, Group) and advantage.baseline == "mean" and advantage.scale in ("std", "none"):
        scaled = str(advantage.scale == "std").lower()
        return ["algorithm.adv_estimator=grpo", f"algorithm.norm_adv_by_std_in_grpo={scaled}"]
    if isinstance(advantage, Group) and advantage.baseline == "leave_one_out" and advantage.scale == "none":
        return ["algorithm.adv_estimator=rloo"]
    if isinstance(advantage, Whiten):
        return ["algorithm.adv_estimator=reinforce_plus_plus", f"algorithm.gamma={advantage.gamma:g}"]
    if isinstance(advantage, OptimalToken):
        return [
            "algorithm.adv_estimator=optimal_token_baseline",
            "actor_rollout_ref.actor.calculate_sum_pi_squared=true",
        ]
    if isinstance(advantage, Gae) and advantage.whitened:
        settings = [f"algorithm.gamma={advantage.gamma:g}", f"algorithm.lam={advantage.lam:g}"]
        return ["algorithm.adv_estimator=gae", *settings]
    raise ConfigError(f"verl has no estimator for {advantage.formula()}: use group, whiten or gae, or register one")


def with_settings(name: str, settings: Mapping[str, Any]) -> Objective:
    """The preset with overrides as Hydra writes them: `settings.clip_cov.high=3` names the part that has the field."""
    kinds = {part.kind() for part in preset(name).parts}
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping) and key in kinds:
            flat |= {f"{key}.{inner}": item for inner, item in value.items()}
        else:
            flat[key] = value
    return preset(name, **flat)


def hydra_value(value: Any) -> str:
    """A value in Hydra's override grammar, where a string that could be read as anything else is quoted."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{hydra_value(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(hydra_value(item) for item in value) + "]"
    if not isinstance(value, str):
        return str(value)
    plain = re.fullmatch(r"[A-Za-z_/][A-Za-z0-9_./+-]*", value)
    if plain and value.lower() not in ("true", "false", "null", "nan", "inf"):
        return value
    # Hydra reads a backslash as one unless it stands before a quote, where it must be doubled.
    return "'" + re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + found[2].replace("'", "\\'"), value) + "'"
