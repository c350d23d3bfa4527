"""Several objectives on the same task and seeds: one warm start per seed, one run per pair, one table, one figure."""

from __future__ import annotations

import json
import multiprocessing
import re
import statistics
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from holdfast.errors import ConfigError, HoldfastError
from holdfast.objectives.presets import preset
from holdfast.train.keep.folder import RunFolder, read_metrics, write_text
from holdfast.train.settings.config import ObjectiveConfig, RunConfig
from holdfast.train.show.display import Milestones


@dataclass(frozen=True)
class Entry:
    """One objective with one seed: what is run, and where."""

    label: str
    origin: str
    config: RunConfig
    path: Path
    warm_starts: Path

    @property
    def done(self) -> bool:
        """Whether a finished run is there already."""
        summary = self.path / "summary.json"
        return summary.is_file() and json.loads(summary.read_text())["finished"]


def plan_entries(
    named: Sequence[tuple[str, RunConfig]], objectives: Sequence[str], seeds: int, out: Path
) -> list[Entry]:
    """Every (objective, seed) pair, seed by seed.

    `named` are (file, configuration) pairs; `objectives` are presets tried on the one configuration instead of its own.

    Raises:
        ConfigError: fewer than two objectives or unknown ones, several tasks, or several files together with presets.
    """
    if objectives:
        if len(named) != 1:
            raise ConfigError(f"--objectives takes one configuration, got {len(named)}; leave out one of the two")
        file, base = named[0]
        named = [(file, base.model_copy(update={"objective": ObjectiveConfig(preset=preset)})) for preset in objectives]
    if len(named) < 2:
        raise ConfigError("nothing to compare: give two configurations, or --objectives ppo,trm,gspo")
    tasks = {json.dumps(config.to_dict()["task"], sort_keys=True) for _, config in named}
    if len(tasks) > 1:
        raise ConfigError(f"these configurations have different tasks: {', '.join(sorted(tasks))}; make them equal")
    for _, config in named:
        preset(config.objective.preset, **config.objective.options)
    labels = _labels(named)
    return [
        Entry(
            label=label,
            origin=file,
            config=(seeded := config.model_copy(update={"seed": config.seed + number})),
            path=out / "runs" / _slug(label) / f"seed_{seeded.seed}",
            warm_starts=out / "warm_start",
        )
        for number in range(seeds)
        for label, (file, config) in zip(labels, named, strict=True)
    ]


def run_entries(entries: Sequence[Entry], jobs: int, note: Callable[[str], None]) -> list[str]:
    """Run what is not there yet; returns one message per run that failed. A killed comparison continues."""
    waiting = [entry for entry in entries if not entry.done]
    note(f"{len(entries)} runs, {len(entries) - len(waiting)} of them finished before")
    failures = []
    for number, (entry, outcome) in enumerate(_outcomes(waiting, jobs), 1):
        note(f"[{number}/{len(waiting)}] {entry.label}, seed {entry.config.seed}: {outcome}")
        if outcome.startswith("failed"):
            failures.append(f"{entry.label}, seed {entry.config.seed}: {outcome}")
    return failures


def run_entry(entry: Entry) -> str:
    """One run from the start or from its newest checkpoint; how it ended, in words."""
    from holdfast.train.loop import train

    display = Milestones(Console(), f"{entry.label}, seed {entry.config.seed}")
    try:
        if (entry.path / "config.toml").is_file():
            folder, _ = RunFolder.open(entry.path, entry.config)
            summary = train(entry.config, folder, display=display, resume=True, warm_starts=entry.warm_starts)
        else:
            folder = RunFolder.create(entry.path, entry.config)
            summary = train(entry.config, folder, display=display, warm_starts=entry.warm_starts)
    except HoldfastError as error:
        return f"failed: {error}"
    except KeyboardInterrupt:
        if multiprocessing.parent_process() is None:
            raise
        return "interrupted"
    return f"{summary['start_accuracy']:.2f} → {summary['final_accuracy']:.2f} in {summary['seconds']:.0f} s"


def collect(entries: Sequence[Entry]) -> dict[str, Any]:
    """The content of results.json: every finished run with its curve over the evaluated steps."""
    runs = [_result(entry) for entry in entries if entry.done]
    summary = json.loads((next(e for e in entries if e.done).path / "summary.json").read_text()) if runs else {}
    return {"runs": runs, "task": summary.get("task", ""), "engine": summary.get("engine", "")}


def write_results(out: Path, results: dict[str, Any]) -> None:
    """results.json, replaced in one move."""
    write_text(out / "results.json", json.dumps(results, indent=1, allow_nan=False) + "\n")


def table_rows(results: dict[str, Any]) -> list[list[str]]:
    """Per objective: start, mean final accuracy, its standard deviation, every seed, entropy, seconds."""
    rows = []
    for label in dict.fromkeys(run["objective"] for run in results["runs"]):
        runs = [run for run in results["runs"] if run["objective"] == label]
        final = [run["final_accuracy"] for run in runs]
        spread = f"{statistics.stdev(final):.3f}" if len(final) > 1 else ""
        rows.append(
            [
                label,
                f"{statistics.fmean(run['start_accuracy'] for run in runs):.3f}",
                f"{statistics.fmean(final):.3f}",
                spread,
                " ".join(f"{value:.2f}" for value in final),
                f"{statistics.fmean(run['final_entropy'] for run in runs):.3f}",
                f"{statistics.fmean(run['seconds'] for run in runs):.0f}",
            ]
        )
    return sorted(rows, key=lambda row: row[2], reverse=True)


def _outcomes(entries: Sequence[Entry], jobs: int) -> Any:
    """(entry, outcome) as they end; the first run of each seed goes ahead where the others wait for its warm start."""
    if jobs == 1:
        yield from ((entry, run_entry(entry)) for entry in entries)
        return
    keys = [entry.config.warm_start_key() for entry in entries]
    first = [entry for index, entry in enumerate(entries) if keys.index(keys[index]) == index]
    rest = [entry for entry in entries if entry not in first]
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            for group in (first, rest):
                futures = {pool.submit(run_entry, entry): entry for entry in group}
                for future in as_completed(futures):
                    yield futures[future], future.result()
        except KeyboardInterrupt:
            pool.shutdown(cancel_futures=True)
            raise


def _result(entry: Entry) -> dict[str, Any]:
    summary = json.loads((entry.path / "summary.json").read_text())
    judged = [record for record in read_metrics(entry.path) if "eval_accuracy" in record]
    curve = {name: [r.get(name) for r in judged] for name in ("step", "entropy", "kl_exact_mean", "masked_sequences")}
    return {
        "objective": entry.label,
        "seed": entry.config.seed,
        "config": entry.origin,
        "curve": curve | {"accuracy": [record["eval_accuracy"] for record in judged]},
        "start_accuracy": summary["start_accuracy"],
        "final_accuracy": summary["final_accuracy"],
        "final_entropy": summary["final_entropy"],
        "seconds": summary["seconds"],
    }


def _labels(named: Sequence[tuple[str, RunConfig]]) -> list[str]:
    """Preset and overrides; the file's name as well where that is not enough to tell two apart."""
    labels = [
        " ".join([config.objective.preset, *(f"{k}={v}" for k, v in config.objective.options.items())])
        for _, config in named
    ]
    full = [
        label if labels.count(label) == 1 else f"{label} ({Path(file).stem})"
        for label, (file, _) in zip(labels, named, strict=True)
    ]
    if len(set(full)) < len(full):
        raise ConfigError(f"two of the objectives are the same: {', '.join(full)}; leave one out")
    return full


def _slug(label: str) -> str:
    return re.sub(r"[^A-Za-z0-9.=+-]+", "_", label).strip("_")
