"""Names that verl looks up only once it needs them: of losses, advantage estimators and penalties."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from holdfast.errors import nearest
from holdfast.integrations.verl.check.trap import Trap, loss_mode, trainer_mode

_PENALTIES = ("kl", "k1", "abs", "mse", "k2", "low_var_kl", "k3")
_ALGORITHMS = "verl.trainer.ppo.core_algos"
_TRAINERS = "verl.trainer.ppo.v1.trainer_base"


def unknown_names(config: Any) -> Iterator[Trap]:
    """Names that nothing has registered, as far as this process has loaded verl; nothing where it has not."""
    actor, late = config.actor_rollout_ref.actor, "verl refuses it only after the first rollout"
    own = "Or load the module that registers it (VERL_USE_EXTERNAL_MODULES)"
    asked = [
        ("actor.policy_loss.loss_mode", loss_mode(config), _registry(_ALGORITHMS, "POLICY_LOSS_REGISTRY"), late),
        (
            "algorithm.adv_estimator",
            str(config.algorithm.adv_estimator),
            _registry(_ALGORITHMS, "ADV_ESTIMATOR_REGISTRY"),
            late,
        ),
        (
            "trainer.v1.trainer_mode",
            trainer_mode(config),
            _registry(_TRAINERS, "TRAINER_REGISTRY"),
            "verl refuses it once Ray runs",
        ),
    ]
    for setting, name, known, effect in asked:
        if known and name and name not in known:
            fix = f"{_hint(name, known).removesuffix('.')} {own}"
            yield Trap(f"{setting}={name}", f"nothing of this name is registered; {effect}", fix)
    penalty = str(actor.get("kl_loss_type", "low_var_kl"))
    if actor.get("use_kl_loss") and penalty.removesuffix("+") not in _PENALTIES:
        yield Trap(f"actor.kl_loss_type={penalty}", f"no such penalty; {late}", _hint(penalty, _PENALTIES))


def _registry(module: str, name: str) -> tuple[str, ...]:
    return tuple(str(getattr(key, "value", key)) for key in getattr(sys.modules.get(module), name, ()))


def _hint(name: str, known: tuple[str, ...]) -> str:
    text = nearest(name, known)
    return text[0].upper() + text[1:]
