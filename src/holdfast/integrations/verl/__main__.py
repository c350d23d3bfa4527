"""`python -m holdfast.integrations.verl OVERRIDES`: check a `main_ppo` command line without starting it.

Prints the objective and every trap; exits with 0 (nothing found), 1 (traps) or 2 (refused).
"""

import sys

from holdfast.errors import HoldfastError


def main(overrides: list[str]) -> int:
    """Compose, check, print; returns the exit code."""
    from hydra.errors import HydraException

    from holdfast.integrations.verl import traps
    from holdfast.integrations.verl.composed import composed, report

    try:
        config = composed(overrides)
        print("\n\n".join(report(config)))
    except (HoldfastError, HydraException) as error:
        print(error, file=sys.stderr)
        return 2
    return 1 if traps.find(config) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
