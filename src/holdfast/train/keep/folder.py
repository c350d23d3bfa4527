"""The run folder: configuration, metrics, rollouts, checkpoints, summary; nothing is overwritten silently."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from holdfast.errors import ConfigError
from holdfast.train.keep.files import append_line, read_lines, remove_beginning, write_text
from holdfast.train.settings.config import RunConfig
from holdfast.train.settings.configfile import build_config, read_toml
from holdfast.types import Rollout


@dataclass(frozen=True)
class RunFolder:
    """Names and writes the files of one run."""

    path: Path

    @staticmethod
    def create(path: Path, config: RunConfig) -> RunFolder:
        """A new folder with the resolved configuration in it.

        Raises:
            ConfigError: something is there already, or the folder cannot be written.
        """
        # A kill between the folder and its first file leaves the latter's beginning.
        if path.exists() and (not path.is_dir() or {file.name for file in path.iterdir()} - {"config.toml.tmp"}):
            raise ConfigError(
                f"run folder {path} exists already and is never overwritten; continue it with --resume, "
                f"or choose another one: --run-dir {free_folder(path)}"
            )
        folder = RunFolder(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
            folder.write_config(config)
        except OSError as error:
            raise ConfigError(
                f"run folder {path} cannot be written ({error.strerror}); choose a writable one with --run-dir"
            ) from None
        return folder

    @staticmethod
    def open(path: Path, config: RunConfig | None = None) -> tuple[RunFolder, RunConfig]:
        """An existing folder and its configuration, of which only `steps` and `guard` may have changed.

        Raises:
            ConfigError: there is no run in the folder, or it was started with another configuration.
        """
        folder = RunFolder(path)
        if not folder.config.is_file():
            raise ConfigError(f"nothing to resume: {path} has no config.toml; leave --resume out to start there")
        kept = build_config(read_toml(folder.config), origin=str(folder.config), spelt_out=True)
        if config is not None:
            changed = _changed(kept.to_dict(), config.to_dict()) - {"steps"}
            changed = {key for key in changed if not key.startswith("guard.")}
            if changed:
                raise ConfigError(
                    f"cannot resume {path}: {', '.join(sorted(changed))} differ from the run's config.toml; "
                    "only steps and guard may change; start a new run for the rest"
                )
            with folder.lock():
                folder.write_config(config)
        return folder, kept if config is None else config

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Be the only process that trains in this folder; released however the process ends.

        Raises:
            ConfigError: another one does.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigError(
                    f"another process is training in {self.path}: wait for it or stop it, or choose another folder "
                    "with --run-dir"
                ) from None
            except OSError:
                pass  # a file system without locks
            yield
        finally:
            os.close(descriptor)

    def tidy(self) -> None:
        """Remove what a kill left of the run's own files that were being written."""
        for path in (self.config, self.metrics, self.summary, self.ledger):
            remove_beginning(path)

    def discard(self) -> None:
        """Remove the folder of a run that was refused before it kept anything; files of others stay."""
        if any(p.exists() for p in (self.metrics, self.summary, self.checkpoints, self.ledger, self.warm_starts)):
            return
        shutil.rmtree(self.engine, ignore_errors=True)
        self.config.unlink(missing_ok=True)
        if self.path.is_dir() and not any(self.path.iterdir()):
            self.path.rmdir()

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.path / "config.toml"

    @property
    def metrics(self) -> Path:
        """One JSON object per step."""
        return self.path / "metrics.jsonl"

    @property
    def summary(self) -> Path:
        """Written when the run ends."""
        return self.path / "summary.json"

    @property
    def checkpoints(self) -> Path:
        """One folder per kept checkpoint."""
        return self.path / "checkpoints"

    @property
    def ledger(self) -> Path:
        """What became of every sequence of an asynchronous run."""
        return self.path / "ledger.jsonl"

    @property
    def engine(self) -> Path:
        """Weights on their way to an engine in another process; gone when the run ends."""
        return self.path / "engine"

    @property
    def warm_starts(self) -> Path:
        """Warm-started models by configuration hash."""
        return self.path / "warm_start"

    def write_config(self, config: RunConfig) -> None:
        """config.toml with every default spelt out."""
        write_text(self.config, tomli_w.dumps(config.to_dict()))

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        """Add one line and force it to disk: a kill loses at most the line being written."""
        append_line(self.metrics, record)

    def read_metrics(self) -> list[dict[str, Any]]:
        """All whole lines."""
        return read_metrics(self.path)

    def truncate_metrics(self, step: int) -> list[str]:
        """Drop what was written after a checkpoint, whose steps are about to be run again; says what was damaged."""
        records, damaged = read_lines(self.metrics, _is_step)
        kept = [record for record in records if record["step"] <= step]
        write_text(self.metrics, "".join(json.dumps(record) + "\n" for record in kept))
        for file in (self.path / "rollouts").glob("step_*.parquet"):
            named = re.fullmatch(r"step_(\d{4,})", file.stem)
            if named and int(named[1]) > step:
                file.unlink()
        lost = sorted(set(range(step + 1)) - {record["step"] for record in kept})
        if not damaged or not lost:
            return []  # a line that a kill cut off belongs to a step that is run again
        return [
            f"{self.metrics}: damaged lines were cut ({', '.join(map(str, damaged[:5]))}); the numbers of these steps "
            f"are lost: {', '.join(map(str, lost[:5]))}{', ...' if len(lost) > 5 else ''}"
        ]

    def write_rollouts(self, step: int, rollouts: Iterable[Rollout]) -> None:
        """The step's sequences as parquet."""
        from holdfast.rollout.store import write_rollouts

        folder = self.path / "rollouts"
        folder.mkdir(exist_ok=True)
        write_rollouts(folder / f"step_{step:04d}.parquet", rollouts)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """summary.json, replaced in one move."""
        write_text(self.summary, json.dumps(summary, indent=2, allow_nan=False) + "\n")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All whole lines of a run folder's metrics.jsonl; what a kill cut off or a disk damaged is left out."""
    return read_lines(path / "metrics.jsonl", _is_step)[0]


def _is_step(record: Any) -> bool:
    return type(record.get("step")) is int


def free_folder(path: Path) -> Path:
    """The first of path, path-2, path-3, … that does not exist."""
    number, candidate = 1, path
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{path.name}-{number}")
    return candidate


def _changed(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> set[str]:
    names = set()
    for key in old.keys() | new.keys():
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            names |= _changed(before, after, f"{prefix}{key}.")
        elif before != after:
            names.add(prefix + key)
    return names
