"""Our checks where verl checks its own config: in the driver, before Ray and any worker start."""

from __future__ import annotations

import functools
import logging
from typing import Any

from holdfast.integrations.verl.names import TRAINER_MODE, is_ours

_LOG = logging.getLogger("holdfast.integrations.verl")
_MARK = "checks_holdfast"


def check_at_start() -> None:
    """Have `verl.utils.config.validate_config` check our settings as well; once, however often it is called."""
    import verl.utils.config as module

    validate = module.validate_config
    if getattr(validate, _MARK, False):
        return

    @functools.wraps(validate)
    def validate_config(config: Any, *arguments: Any, **options: Any) -> Any:
        result = validate(config, *arguments, **options)
        before_start(config)
        return result

    setattr(validate_config, _MARK, True)
    module.validate_config = validate_config


def before_start(config: Any) -> None:
    """Print the objective and warn of every trap; leaves runs without our loss and trainer mode alone.

    Raises:
        ConfigError: an objective that the chosen level cannot train, or settings that contradict it.
    """
    loss = str(config.actor_rollout_ref.actor.policy_loss.loss_mode)
    if not is_ours(loss) and (config.trainer.get("v1") or {}).get("trainer_mode") != TRAINER_MODE:
        return
    from holdfast.integrations.verl.check import traps
    from holdfast.integrations.verl.check.composed import explained

    print(f"[holdfast] {explained(config)}", flush=True)
    for finding in traps.find(config):
        _LOG.warning("%s", finding)
