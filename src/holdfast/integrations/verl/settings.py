"""verl's settings of an actor as one objective, and what level 2 refuses to combine."""

from __future__ import annotations

from typing import Any

from holdfast.errors import ConfigError
from holdfast.integrations.verl.config import configured_objective, loss_config
from holdfast.objectives.objective import Objective
from holdfast.objectives.parts.penalties import EntropyBonus, Estimator, Kl, Penalty

_ESTIMATORS: dict[str, Estimator] = {"kl": "k1", "k1": "k1", "mse": "k2", "k2": "k2", "low_var_kl": "k3", "k3": "k3"}


def step_objective(actor: Any) -> Objective:
    """The objective that `policy_loss` describes, with verl's entropy bonus and reference penalty as parts of it.

    verl adds the two with `loss_agg_mode`; here they share the objective's normaliser. Its low_var_kl is our k3 without
    verl's clamp at ±10. Raises ConfigError for a `kl_loss_type` that is no plain k1, k2 or k3.
    """
    objective = configured_objective(loss_config(actor))
    extra: list[Penalty] = []
    if actor.entropy_coeff:
        extra.append(EntropyBonus(alpha=actor.entropy_coeff, alpha_max=max(1.0, actor.entropy_coeff)))
    if actor.use_kl_loss and actor.kl_loss_coef:
        if actor.kl_loss_type not in _ESTIMATORS:
            raise ConfigError(
                f"actor.kl_loss_type = {actor.kl_loss_type}: level 2 knows {', '.join(_ESTIMATORS)}; "
                "choose one, or use_kl_loss=false with a penalty of the objective"
            )
        extra.append(Kl(actor.kl_loss_coef, _ESTIMATORS[actor.kl_loss_type], "ref"))
    return objective.with_(penalties=(*objective.penalties, *extra)) if extra else objective
