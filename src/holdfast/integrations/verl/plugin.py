"""What verl loads through the entry point `holdfast` of the group `verl.plugins`, in the driver and in every worker.

verl logs a plug-in that fails to load at DEBUG only, so nothing here fails: what cannot be registered is warned of.
"""

from __future__ import annotations

import logging
import warnings
from importlib.metadata import version

from holdfast.integrations.verl.contract import LEVEL_1, LEVEL_2, differences, missing_level_2
from holdfast.integrations.verl.names import PREFIX, TESTED, loss_names

_LOG = logging.getLogger(__name__)


def register() -> None:
    """Register every preset as a policy loss, then `holdfast_sync` as a trainer mode, and our checks at the start.

    The losses come first: they stay where the trainer mode cannot be had.
    """
    installed = version("verl")
    try:
        from verl.trainer.ppo.core_algos import register_policy_loss

        from holdfast.integrations.verl.check.start import check_at_start
        from holdfast.integrations.verl.loss import policy_loss

        for name in (PREFIX, *loss_names()):
            register_policy_loss(name)(policy_loss)
        check_at_start()
    except Exception as error:
        warnings.warn(f"holdfast is not registered with verl {installed}: {error!r}", stacklevel=2)
        return
    known = LEVEL_1
    try:
        from holdfast.integrations.verl import trainer as trainer  # registers the trainer mode

        known += LEVEL_2
    except Exception as error:
        warnings.warn(missing_level_2(error), stacklevel=2)
    _compare(installed, list(differences(known)))


def _compare(installed: str, changed: list[str]) -> None:
    if changed:
        warnings.warn(
            f"holdfast is written for verl {', '.join(TESTED)}; verl {installed} differs: {'; '.join(changed)}. "
            f"Install verl=={TESTED[-1]}, or a newer holdfast",
            stacklevel=3,
        )
    elif installed not in TESTED:
        _LOG.info("verl %s is not among the tested %s; nothing that holdfast relies on differs", installed, TESTED)


register()
