"""What verl loads through the entry point `holdfast` of the group `verl.plugins`, in the driver and in every worker.

verl logs a plug-in that fails to load at DEBUG only, so nothing here fails: what cannot be registered is warned of.
"""

from __future__ import annotations

import warnings
from importlib.metadata import version

from holdfast.integrations.verl.names import PREFIX, SUPPORTED, loss_names


def register() -> None:
    """Register every preset as a policy loss and `holdfast_sync` as a trainer mode."""
    installed = version("verl")
    if installed != SUPPORTED:
        warnings.warn(
            f"holdfast is written for verl {SUPPORTED}, found {installed}: install verl=={SUPPORTED}, or check that "
            "tests/integrations/verl pass",
            stacklevel=2,
        )
    try:
        from verl.trainer.ppo.core_algos import register_policy_loss

        from holdfast.integrations.verl import trainer as trainer  # registers the trainer mode
        from holdfast.integrations.verl.loss import policy_loss

        for name in (PREFIX, *loss_names()):
            register_policy_loss(name)(policy_loss)
    except Exception as error:
        warnings.warn(f"holdfast is not registered with verl {installed}: {error!r}", stacklevel=2)


register()
