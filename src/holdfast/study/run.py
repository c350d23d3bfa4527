"""Runs a study: settings are chosen on the tuning seeds first, then everything is run on the reporting seeds."""

from __future__ import annotations

import json
import platform
import shutil
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import holdfast
from holdfast.study.definition import Study
from holdfast.study.plan import Planned, Settings, choose, plan_reporting, plan_tuning
from holdfast.study.results import collect, deciding_value, state_of
from holdfast.train.compare import run_entries
from holdfast.train.keep.files import write_text

Note = Callable[[str], None]


def run_study(study: Study, origin: str, out: Path, warm_starts: Path, jobs: int, note: Note) -> list[str]:
    """Start every run that has not ended yet; one message for each that could not be run.

    Runs that broke by what they did are results, and are not run again.
    """
    tuning = plan_tuning(study, origin)
    note(f"{study.title}: {len(tuning)} runs choose settings on seeds {study.seeds.tuning}" if tuning else study.title)
    failures = _run(tuning, out, warm_starts, jobs, note)
    chosen = chosen_settings(study, tuning, out)
    for name, settings in chosen.items():
        note(f"chosen for {name}: {', '.join(f'{k} = {v}' for k, v in settings.items())}")
    if missing := [c.name for c in study.configuration if c.tune and c.name not in chosen]:
        return [*failures, f"no setting chosen for {', '.join(missing)}: tuning runs are missing; run the study again"]
    return failures + _run(plan_reporting(study, chosen, origin), out, warm_starts, jobs, note)


def collect_study(study: Study, origin: str, out: Path) -> dict[str, Any]:
    """The results of the runs that are there."""
    chosen = chosen_settings(study, plan_tuning(study, origin), out)
    return collect(study, planned_runs(study, origin, out), chosen, out, _read_versions(out))


def planned_runs(study: Study, origin: str, out: Path) -> list[Planned]:
    """Every run of the study, those to be reported only where the settings are chosen."""
    tuning = plan_tuning(study, origin)
    chosen = chosen_settings(study, tuning, out)
    untuned = [c.name for c in study.configuration if c.tune and c.name not in chosen]
    return [*tuning, *(run for run in plan_reporting(study, chosen, origin) if run.configuration not in untuned)]


def chosen_settings(study: Study, tuning: Sequence[Planned], out: Path) -> dict[str, Settings]:
    """What the finished tuning runs choose."""
    return choose(study, lambda run: deciding_value(study, run.place(out)), tuning)


def _run(planned: Sequence[Planned], out: Path, warm_starts: Path, jobs: int, note: Note) -> list[str]:
    if not planned:
        return []
    waiting = [run for run in planned if not _ended(out, run)]
    note(f"{len(planned) - len(waiting)} of {len(planned)} runs have ended before")
    if not waiting:
        return []
    out.mkdir(parents=True, exist_ok=True)
    known = {**_read_versions(out), **{run.place(out).name: versions() for run in waiting}}
    write_text(out / "versions.json", json.dumps(known, indent=1) + "\n")
    try:
        said = run_entries([run.entry(out, warm_starts) for run in waiting], jobs, note)
    finally:
        for run in waiting:
            if _ended(out, run):
                shutil.rmtree(run.place(out) / "checkpoints", ignore_errors=True)
    labels = [f"{run.entry(out, warm_starts).label}, seed {run.seed}: " for run in waiting if not _ended(out, run)]
    return [text for text in said if text.startswith(tuple(labels))]


def _ended(out: Path, run: Planned) -> bool:
    return state_of(run.place(out))[0] in ("finished", "failed")


def versions() -> dict[str, str]:
    """What a run is made with; no word about the machine."""
    return {
        "holdfast": holdfast.__version__,
        "python": platform.python_version(),
        "torch": version("torch").partition("+")[0],
        "transformers": version("transformers"),
    }


def _read_versions(out: Path) -> Mapping[str, Any]:
    path = out / "versions.json"
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}
