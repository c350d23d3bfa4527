"""Optional experiment trackers behind one small protocol; each is imported only when a run asks for it.

Numbers have grouped names there (`train/loss`, `drift/kl_exact_mean`), those of docs/metrics.md; files lie in the run
folder.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from typing import Any, Protocol, runtime_checkable

from holdfast.errors import ConfigError
from holdfast.report.catalog import scalars, tracker_name
from holdfast.train.keep.folder import RunFolder
from holdfast.train.settings.config import RunConfig
from holdfast.train.show.samples import Samples


@runtime_checkable
class Tracker(Protocol):
    """Where the numbers of metrics.jsonl and a few rollouts go as well."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """One step's numbers."""

    def table(self, step: int, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """A few rollouts of a step."""

    def close(self) -> None:
        """Flush and finish."""


class TensorBoard:
    """Event files in the run folder's `tensorboard/`."""

    def __init__(self, config: RunConfig, folder: RunFolder) -> None:
        self.writer = import_module("torch.utils.tensorboard").SummaryWriter(str(folder.path / "tensorboard"))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def table(self, step: int, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        lines = [columns, ["-"] * len(columns), *rows]
        text = "\n".join("|" + "|".join(map(_cell, line)) + "|" for line in lines)
        self.writer.add_text("rollouts", text, step)

    def close(self) -> None:
        self.writer.close()


class HostedRun:
    """Weights & Biases, or trackio, which has the same calls."""

    def __init__(self, config: RunConfig, folder: RunFolder, module: str) -> None:
        if module == "trackio":  # it reads this when it is imported, and has no argument for it
            os.environ.setdefault("TRACKIO_DIR", str(folder.path.resolve() / "trackio"))
        self.module = import_module(module)
        where = {"dir": str(folder.path)} if module == "wandb" else {}
        self.module.init(project=config.log.project, name=folder.path.name, config=config.to_dict(), **where)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.module.log(dict(values), step=step)

    def table(self, step: int, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        made = self.module.Table(columns=list(columns), data=[list(row) for row in rows])
        self.module.log({"rollouts": made}, step=step)

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

    def log(self, record: Mapping[str, Any], samples: Callable[[], Samples] | None = None) -> list[str]:
        """The numbers of one line of metrics.jsonl, and a few rollouts; says, once each, which tracker fails."""
        values = {tracker_name(name): value for name, value in scalars(record)}
        step, said = record["step"], []
        for name, tracker in self.trackers.items():
            said += self._try(name, f"the tracker {name}", partial(tracker.log, step, values))
            if samples is not None:
                write = partial(_write_table, tracker, step, samples)
                said += self._try(f"{name} table", f"the table of rollouts in {name}", write)
        return said

    def _try(self, key: str, what: str, write: Callable[[], None]) -> list[str]:
        try:
            write()
        except Exception as error:  # networks, disks, services of others: none of them may end a run
            if key not in self.failed:
                self.failed.add(key)
                return [f"{what} failed ({error}); metrics.jsonl has every step"]
        return []

    def close(self) -> None:
        """Flush and finish."""
        for tracker in self.trackers.values():
            with contextlib.suppress(Exception):
                tracker.close()


def _write_table(tracker: Tracker, step: int, samples: Callable[[], Samples]) -> None:
    table = samples()
    tracker.table(step, table.columns, table.rows)


def _cell(value: Any) -> str:
    """Text of a Markdown table's cell: bars and line breaks would end it."""
    return " ".join(str(value).replace("|", "\\|").split())


def _open(name: str, config: RunConfig, folder: RunFolder) -> Tracker:
    package, build = _KINDS[name]
    try:
        return build(config, folder)
    except ImportError:
        raise ConfigError(
            f"log.trackers = [{name!r}] needs the package {package}: pip install {package}, or leave it out"
        ) from None
