"""The plug-in for verl: losses by name, a trainer mode, token records, and checks of a command line.

`names`, `levels` and `check.traps` work without verl.
"""

from importlib import import_module
from importlib.util import find_spec

if find_spec("verl") is not None:
    # verl loads our entry point at the end of its own import: it must come first, or the two meet half-way.
    import_module("verl")
