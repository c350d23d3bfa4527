"""`python -m holdfast.integrations.verl OVERRIDES`: check a `main_ppo` command line without starting it.

Put it before the whole command or in place of `python -m verl.trainer.main_ppo`; `--config-name` and `--config-path`
are read as Hydra reads them. Prints the objective and every trap; exits with 0 (nothing found), 1 (traps) or 2
(refused).
"""

import sys
from importlib.util import find_spec

from holdfast.errors import HoldfastError

_INSTALL = (
    "verl is not installed here: pip install 'holdfast-rl[verl]' -c requirements/verl-constraints.txt, on Python 3.11 "
    "or 3.12 (docs/verl.md, Installation)"
)


def main(arguments: list[str]) -> int:
    """Compose, check, print; returns the exit code."""
    if find_spec("verl") is None:
        print(_INSTALL, file=sys.stderr)
        return 2

    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from holdfast.integrations.verl.check import traps
    from holdfast.integrations.verl.check.composed import composed, report

    try:
        config = composed(arguments)
        print("\n\n".join(report(config)))
    except (HoldfastError, HydraException, OmegaConfBaseException) as error:
        print(_said(error), file=sys.stderr)
        return 2
    return 1 if traps.find(config) else 0


def _said(error: Exception) -> str:
    """Hydra wraps what a config class refuses: the sentence is the cause's."""
    cause = error.__cause__
    return str(cause if isinstance(cause, HoldfastError) else error)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
