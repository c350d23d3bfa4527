"""Runs where verl is installed (`make test-verl`); elsewhere only what needs no verl is collected."""

from importlib.util import find_spec
from pathlib import Path

WITHOUT_VERL = ["test_names.py", "test_levels.py"]

if find_spec("verl") is None:
    collect_ignore = [path.name for path in Path(__file__).parent.glob("test_*.py") if path.name not in WITHOUT_VERL]
    collect_ignore += ["cpu"]
else:
    import warnings

    with warnings.catch_warnings():
        # The test session turns warnings into errors; those of a peer's imports are not ours to fix.
        warnings.simplefilter("ignore")
        import verl.trainer.ppo.v1
        import verl.workers.engine_workers  # noqa: F401
