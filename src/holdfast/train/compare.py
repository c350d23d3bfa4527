"""Several objectives on the same task and seeds: one warm start per seed, one run per pair, one table, one figure."""

from __future__ import annotations

import json
import math
import multiprocessing
import re
import statistics
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from holdfast.errors import ConfigError, HoldfastError, nearest
from holdfast.report.catalog import metric_of, scalars
from holdfast.report.learning import held_out, zero_or_one
from holdfast.report.metrics import Metrics, is_number, read_metrics, step_of
from holdfast.train.keep.files import write_text
from holdfast.train.keep.folder import RunFolder
from holdfast.train.settings.config import ObjectiveConfig, RunConfig
from holdfast.train.settings.objective import objective_of
from holdfast.train.show.loudness import display_among_others

_KEYS = {
    "reward": "eval_reward",
    "greedy_reward": "eval_greedy_reward",
    "accuracy": "eval_accuracy",
    "greedy_accuracy": "eval_greedy_accuracy",
    "training_reward": "reward_mean",
}
_TITLES = {
    "eval_reward": "mean reward on held-out problems",
    "eval_greedy_reward": "mean reward on held-out problems, greedy",
    "eval_accuracy": "accuracy on held-out problems, sampled",
    "eval_greedy_accuracy": "accuracy on held-out problems, greedy",
    "reward_mean": "mean reward of the training rollouts",
}


@dataclass(frozen=True)
class Ranking:
    """What the objectives are ordered by: the last value of a number in metrics.jsonl, highest or lowest first."""

    key: str = "eval_reward"
    lowest: bool = False

    @staticmethod
    def by(name: str, lowest: bool = False) -> Ranking:
        """By `reward`, `greedy_reward`, `accuracy`, `greedy_accuracy`, `training_reward`, or a key of metrics.jsonl."""
        return Ranking(_KEYS.get(name, name), lowest)

    @property
    def title(self) -> str:
        """The number in words."""
        return _TITLES.get(self.key, self.key)

    def series(self, metrics: Metrics) -> tuple[list[int], list[float]]:
        """Its steps and values in one run; accuracies only where every reward is 0 or 1."""
        if self.key in ("eval_reward", "eval_greedy_reward"):
            return held_out(metrics, self.key.removeprefix("eval_").removesuffix("reward"))
        if self.key in ("accuracy", "eval_accuracy", "eval_greedy_accuracy") and not zero_or_one(metrics):
            return [], []
        return metrics.series(self.key)


@dataclass(frozen=True)
class Entry:
    """One objective with one seed: what is run, and where."""

    label: str
    origin: str
    config: RunConfig
    path: Path
    warm_starts: Path
    level: str = "info"

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
        objective_of(config)
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

    display = display_among_others(Console(), f"{entry.label}, seed {entry.config.seed}", entry.level)
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
    return f"reward {summary['start_reward']:.3g} → {summary['final_reward']:.3g} in {summary['seconds']:.0f} s"


def collect(entries: Sequence[Entry], ranking: Ranking | None = None) -> dict[str, Any]:
    """The content of results.json: every finished run with its curves over all steps.

    Raises:
        ConfigError: no run has measured what they are to be ranked by.
    """
    ranking = ranking or Ranking()
    runs = [_result(entry, ranking) for entry in entries if entry.done]
    if runs and all(run["final"] is None for run in runs):
        measured = read_metrics(next(entry for entry in entries if entry.done).path / "metrics.jsonl").rows
        keys = {key for row in measured for key, value in row.items() if is_number(value)} - {"step"}
        raise ConfigError(
            f"--rank-by {ranking.key}: no run has measured it (accuracies are there only where every reward is 0 or "
            f"1); {nearest(ranking.key, {*_KEYS, *keys})}; the runs are kept, so the same command with another "
            "--rank-by ends at once"
        )
    summary = json.loads((next(e for e in entries if e.done).path / "summary.json").read_text()) if runs else {}
    ranked = {"key": ranking.key, "title": ranking.title, "lowest": ranking.lowest}
    return {"runs": runs, "ranked_by": ranked, **{k: summary.get(k, "") for k in ("task", "model", "engine")}}


def write_results(out: Path, results: dict[str, Any]) -> None:
    """results.json, replaced in one move."""
    write_text(out / "results.json", json.dumps(results, indent=1, allow_nan=False) + "\n")


def table_rows(results: dict[str, Any]) -> list[list[str]]:
    """Per objective, the best mean first: start, mean at the end, its standard deviation, every seed, entropy, seconds.

    "–" where nothing was measured.
    """
    rows = []
    sign = 1 if results["ranked_by"]["lowest"] else -1
    for label in dict.fromkeys(run["objective"] for run in results["runs"]):
        runs = [run for run in results["runs"] if run["objective"] == label]
        final = [run["final"] for run in runs if run["final"] is not None]
        cells = [
            label,
            _mean([run["start"] for run in runs]),
            _mean(final),
            f"{statistics.stdev(final):.3g}" if len(final) > 1 else "",
            " ".join(f"{value:.3g}" for value in final),
            _mean([run["final_entropy"] for run in runs]),
            f"{statistics.fmean(run['seconds'] for run in runs):.0f}",
        ]
        rows.append((sign * statistics.fmean(final) if final else math.inf, cells))
    return [cells for _, cells in sorted(rows, key=lambda row: row[0])]


def _mean(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{statistics.fmean(known):.3g}" if known else "–"


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


def _result(entry: Entry, ranking: Ranking) -> dict[str, Any]:
    summary, metrics = json.loads((entry.path / "summary.json").read_text()), read_metrics(entry.path / "metrics.jsonl")
    measured = [dict(scalars(row)) for row in metrics.rows]
    names = [name for name in dict.fromkeys(name for row in measured for name in row) if not _is_time(name)]
    places = [step_of(row) for row in metrics.rows]
    curve = {"step": places} | {name: [r.get(name) for r in measured] for name in names}
    at, values = ranking.series(metrics)
    known = dict(zip(at, values, strict=True))
    kept = ("start_reward", "final_reward", "start_accuracy", "final_accuracy", "final_entropy")
    return {
        "objective": entry.label,
        "seed": entry.config.seed,
        "config": entry.origin,
        "curve": curve | {"ranked": [known.get(step) for step in places]},
        "start": values[0] if values else None,
        "final": values[-1] if values else None,
        **{key: summary.get(key) for key in kept if key in summary or key == "final_entropy"},
        "seconds": summary["seconds"],
    }


def _is_time(name: str) -> bool:
    """What two equal runs measure differently."""
    return metric_of(name).group == "time" or name == "guard/seconds"


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
