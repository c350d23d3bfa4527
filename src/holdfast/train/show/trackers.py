"""Optional experiment trackers behind one small protocol; each is imported only when a run asks for it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, Protocol, runtime_checkable

from holdfast.errors import ConfigError
from holdfast.train.keep.folder import RunFolder
from holdfast.train.settings.config import RunConfig


@runtime_checkable
class Tracker(Protocol):
    """Where the scalars of metrics.jsonl go as well."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """One step's scalars."""

    def close(self) -> None:
        """Flush and finish."""


class TensorBoard:
    """Event files in the run folder's `tensorboard/`."""

    def __init__(self, config: RunConfig, folder: RunFolder) -> None:
        self.writer = import_module("torch.utils.tensorboard").SummaryWriter(str(folder.path / "tensorboard"))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        self.writer.close()


class HostedRun:
    """Weights & Biases, or trackio, which has the same calls."""

    def __init__(self, config: RunConfig, folder: RunFolder, module: str) -> None:
        self.module = import_module(module)
        self.module.init(project=config.log.project, name=folder.path.name, config=config.to_dict())

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.module.log(dict(values), step=step)

    def close(self) -> None:
        self.module.finish()


_KINDS: dict[str, tuple[str, Callable[[RunConfig, RunFolder], Tracker]]] = {
    "tensorboard": ("tensorboard", TensorBoard),
    "wandb": ("wandb", lambda config, folder: HostedRun(config, folder, "wandb")),
    "trackio": ("trackio", lambda config, folder: HostedRun(config, folder, "trackio")),
}


class Trackers:
    """All trackers of a run as one."""

    def __init__(self, config: RunConfig, folder: RunFolder) -> None:
        self.trackers = {name: _open(name, config, folder) for name in config.log.trackers}
        self.failed: set[str] = set()

    def log(self, record: Mapping[str, Any]) -> list[str]:
        """The plain numbers of one line of metrics.jsonl; says, once each, which tracker does not take them."""
        values = {name: float(v) for name, v in record.items() if isinstance(v, int | float) and name != "step"}
        said = []
        for name, tracker in self.trackers.items():
            try:
                tracker.log(record["step"], values)
            except Exception as error:  # networks, disks, services of others: none of them may end a run
                if name not in self.failed:
                    said.append(f"the tracker {name} failed ({error}); metrics.jsonl has every step")
                self.failed.add(name)
        return said

    def close(self) -> None:
        """Flush and finish."""
        for tracker in self.trackers.values():
            with contextlib.suppress(Exception):
                tracker.close()


def _open(name: str, config: RunConfig, folder: RunFolder) -> Tracker:
    package, build = _KINDS[name]
    try:
        return build(config, folder)
    except ImportError:
        raise ConfigError(
            f"log.trackers = [{name!r}] needs the package {package}: pip install {package}, or leave it out"
        ) from None
