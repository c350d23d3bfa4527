"""A run that takes a second: two layers, three entries, a handful of prompts."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from holdfast.train.keep.folder import RunFolder
from holdfast.train.settings.config import RunConfig
from holdfast.train.settings.configfile import build_config, with_overrides
from holdfast.train.show.display import Quiet

SMALL = {
    "steps": 4,
    "task": {"name": "ledger", "entries": 1},
    "model": {"hidden": 32, "layers": 2, "heads": 2},
    "warm_start": {"clean_steps": 60, "sloppy_steps": 10, "learning_rate": 5e-3, "batch_size": 16},
    "engine": {"precision": "int8", "lag": 1},
    "sampling": {"max_tokens": 20},
    "objective": {"preset": "trm_max+ppo", "delta": 0.5},
    "batch": {"prompts": 4, "group_size": 4},
    "evaluation": {"every": 2, "problems": 16},
    "checkpoint": {"every": 2},
    "log": {"rollouts_every": 1},
}


@pytest.fixture(scope="session")
def small_config() -> Callable[..., RunConfig]:
    """The small run's configuration, with `--section.key value` overrides."""
    return lambda *overrides: build_config(with_overrides(SMALL, overrides))


@pytest.fixture(scope="session")
def warm_starts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Warm-started models are made once for all tests."""
    return tmp_path_factory.mktemp("warm_start")


@pytest.fixture
def small_run(tmp_path: Path, warm_starts: Path, small_config: Callable[..., RunConfig]) -> Any:
    """Train the small run in a folder of this test: (name, overrides, options of `train`) -> (folder, summary)."""
    from holdfast.train.loop import train

    def run(name: str, *overrides: str, resume: bool = False, **options: Any) -> tuple[RunFolder, dict[str, Any]]:
        config = small_config(*overrides)
        path = tmp_path / name
        folder = RunFolder.open(path, config)[0] if resume else RunFolder.create(path, config)
        options = {"display": Quiet(), "warm_starts": warm_starts} | options
        return folder, train(config, folder, resume=resume, **options)

    return run
