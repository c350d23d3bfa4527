"""What the runs of a study left behind as one small table: every run that was started, how it ended, its numbers."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from holdfast.errors import DataError
from holdfast.report.metrics import Metrics, is_number, read_metrics
from holdfast.study.definition import Number, Study, parse_study
from holdfast.study.plan import Planned, Settings, total_runs
from holdfast.train.keep.files import write_text

DIGITS = 4
"""Significant digits that results keep: more than any run repeats on another machine."""
State = Literal["finished", "failed", "unfinished", "missing"]


def state_of(folder: Path) -> tuple[State, dict[str, Any]]:
    """How a run ended, and its summary.

    `failed`: it broke by what it did, and would again; `unfinished`: it was stopped, or the machine failed it.
    """
    if not (folder / "config.toml").is_file():
        return "missing", {}
    summary = folder / "summary.json"
    if not summary.is_file():
        return "unfinished", {}
    said = json.loads(summary.read_text(encoding="utf-8"))
    if said.get("finished"):
        return "finished", said
    return ("failed" if str(said.get("error", "")).startswith("DataError: ") else "unfinished"), said


def deciding_value(study: Study, folder: Path) -> float | None:
    """The number that decides, of one run; None where it has not ended or did not measure it."""
    state, _ = state_of(folder)
    if state == "failed":
        return study.metric.failed
    return number_of(read_metrics(folder / "metrics.jsonl"), study.metric) if state == "finished" else None


def number_of(metrics: Metrics, number: Number) -> float | None:
    """One number of a run: its last, mean, lowest or highest value, or its mean over time by the trapezoid rule."""
    steps, values = metrics.series(number.key)
    if not values:
        return None
    if number.of == "area":
        return rounded(area(steps, values))
    return rounded(
        {"last": values[-1], "mean": math.fsum(values) / len(values), "lowest": min(values), "highest": max(values)}[
            number.of
        ]
    )


def area(steps: Sequence[int], values: Sequence[float]) -> float:
    """The area under a curve divided by its width; the value itself where it has one point."""
    if len(values) == 1:
        return values[0]
    pieces = [(steps[i + 1] - steps[i]) * (values[i] + values[i + 1]) / 2 for i in range(len(values) - 1)]
    return math.fsum(pieces) / (steps[-1] - steps[0])


def rounded(value: float) -> float:
    """To `DIGITS` significant digits."""
    return float(f"{value:.{DIGITS}g}")


def collect(
    study: Study, planned: Sequence[Planned], chosen: Mapping[str, Settings], out: Path, versions: Mapping[str, Any]
) -> dict[str, Any]:
    """The content of the results' file; nothing in it depends on the machine but what training does."""
    places = [(run, run.place(out)) for run in planned]
    folders = {path.name for _, path in places}
    there = sorted(path for path in (out / "runs").glob("*") if (path / "config.toml").is_file())
    return {
        "study": study.model_dump(mode="json"),
        "hash": study.hash,
        "versions": _versions(versions, [path.name for path in there if path.name in folders]),
        "planned": total_runs(study),
        "chosen": {name: dict(settings) for name, settings in chosen.items()},
        "runs": [found for run, path in places if (found := _result(study, run, path)) is not None],
        "dropped": [_dropped(study, path) for path in there if path.name not in folders],
    }


def _versions(versions: Mapping[str, Any], folders: Sequence[str]) -> dict[str, list[str]]:
    """Every version that a run was made with."""
    found: dict[str, set[str]] = {}
    for folder in folders:
        for name, version in versions.get(folder, {}).items():
            found.setdefault(name, set()).add(version)
    return {name: sorted(those) for name, those in sorted(found.items())}


def _result(study: Study, run: Planned, folder: Path) -> dict[str, Any] | None:
    """One started run; None for one that was not."""
    state, summary = state_of(folder)
    if state == "missing":
        return None
    result: dict[str, Any] = {
        "configuration": run.configuration,
        "cell": dict(run.cell),
        "seed": run.seed,
        "for": run.purpose,
        "settings": dict(run.settings),
        "state": state,
    }
    if state == "failed":
        result |= {"error": summary["error"].removeprefix("DataError: "), "failed_step": summary.get("failed_step")}
    if state == "unfinished":
        return result
    metrics = read_metrics(folder / "metrics.jsonl")
    steps, values = metrics.series(study.metric.key)
    value = study.metric.failed if state == "failed" else number_of(metrics, study.metric)
    result |= {"value": value, "start": rounded(values[0]) if values else None}
    if study.metric.collapse is not None and value is not None and values:
        result["collapsed"] = bool(value < study.metric.collapse * values[0])
    result["also"] = {number.name: number_of(metrics, number) for number in study.also}
    return result | {"curve": {"step": steps, "value": [rounded(v) for v in values]}}


def _dropped(study: Study, folder: Path) -> dict[str, Any]:
    """A run that was started with settings that the study no longer has."""
    state, _ = state_of(folder)
    return {"run": folder.name, "state": state, "value": deciding_value(study, folder)}


def number_title(number: Number) -> str:
    """A number in words."""
    of = {"last": "at the end", "mean": "mean", "area": "mean over time", "lowest": "lowest", "highest": "highest"}
    return f"{number.title}, {of[number.of]}"


def write_results(path: Path, results: Mapping[str, Any]) -> None:
    """The results' file, replaced in one move: one run a line, so that a change of one is a change of one line."""
    head = {key: value for key, value in results.items() if key not in ("runs", "dropped")}
    text = json.dumps(head, indent=1, allow_nan=False, ensure_ascii=False).removesuffix("\n}")
    for key in ("runs", "dropped"):
        lines = ",\n".join(f"  {json.dumps(run, allow_nan=False, ensure_ascii=False)}" for run in results[key])
        text += f',\n "{key}": [\n{lines}\n ]' if lines else f',\n "{key}": []'
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text + "\n}\n")


def read_results(path: Path) -> tuple[Study, dict[str, Any]]:
    """The study and its results.

    Raises:
        DataError: the file is missing, no JSON, not of a study, or its hash is not that of the study in it.
    """
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}; `holdfast study` writes it") from error
    except ValueError as error:
        raise DataError(f"{path} is no JSON ({error}); run `holdfast study` again to write it anew") from error
    if not isinstance(results, dict) or not {"study", "hash", "runs"} <= results.keys():
        raise DataError(f"{path} holds no study: expected the file that `holdfast study` writes")
    study = parse_study(results["study"], str(path))
    if study.hash != results["hash"]:
        raise DataError(
            f"{path}: the study in it has the hash {study.hash}, its results {results['hash']}; run `holdfast study` "
            "again, which keeps the runs that are still planned"
        )
    return study, results


def values_of(
    results: Mapping[str, Any], configuration: str, cell: Mapping[str, Any], key: str = "value"
) -> dict[int, float]:
    """A number of every reported run of a configuration in a cell, by seed."""
    return {
        run["seed"]: float(value)
        for run in reported(results, configuration, cell)
        if is_number(value := run.get(key, run.get("also", {}).get(key)))
    }


def reported(results: Mapping[str, Any], configuration: str, cell: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The runs of a configuration in a cell on the reporting seeds, in seed order."""
    found = [
        run
        for run in results["runs"]
        if run["for"] == "reporting" and run["configuration"] == configuration and run["cell"] == dict(cell)
    ]
    return sorted(found, key=lambda run: run["seed"])
