"""What a study's results say: every comparison that the study names, the claim, and the tables of both pages."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from holdfast.report.metrics import is_number
from holdfast.study.definition import Comparison, Study, Value
from holdfast.study.plan import cells
from holdfast.study.results import number_title, reported, values_of
from holdfast.study.statistics import Verdict, compare, count, figure, interval, sentence

Table = tuple[list[str], list[list[str]]]
DASH = "–"


@dataclass(frozen=True)
class Judged:
    """One comparison in one cell."""

    cell: Mapping[str, Value]
    first: str
    second: str
    claim: bool
    verdict: Verdict
    number: str = ""
    """In words, where it is another than the metric."""

    @property
    def sentence(self) -> str:
        """In words."""
        if not self.number:
            return sentence(self.first, self.second, self.verdict)
        return f"{self.number}: {sentence(self.first, self.second, self.verdict, 'is above')}"


def judge(study: Study, results: Mapping[str, Any]) -> list[Judged]:
    """Every comparison of the study, cell by cell."""
    return [
        Judged(
            cell, first, found.second, found.claim, _compare(study, results, cell, first, found), _title(study, found)
        )
        for cell in cells(study)
        for found in study.comparison
        if all(cell[factor] in values for factor, values in found.at.items())
        for first in _firsts(study, found)
    ]


def _firsts(study: Study, found: Comparison) -> list[str]:
    return found.first or [c.name for c in study.configuration if c.name != found.second]


def _compare(
    study: Study, results: Mapping[str, Any], cell: Mapping[str, Value], first: str, found: Comparison
) -> Verdict:
    key = found.number or "value"
    values = [values_of(results, name, cell, key) for name in (first, found.second)]
    return compare(values[0], values[1], study.metric.lowest and not found.number)


def _title(study: Study, found: Comparison) -> str:
    return next((number_title(number) for number in study.also if number.name == found.number), "")


def claim_verdict(judged: Sequence[Judged]) -> str:
    """What became of the claim: where it holds, where the opposite is seen, where nothing is separated."""
    claims = [row for row in judged if row.claim]
    states = Counter(row.verdict.state for row in claims)
    total = len(claims)
    if states["too few seeds"] == total:
        return "Not judged: too few seeds have finished."
    if states["first"] == total:
        return f"The claim holds in {'the comparison' if total == 1 else f'all {total} comparisons'} that it names."
    if not states["first"]:
        head = "The claim is refuted" if states["second"] else "The claim is not shown"
    else:
        head = f"The claim holds in {states['first']} of {total} comparisons"
    rest = [
        f"{states[state]} {words}"
        for state, words in (
            ("second", "found the opposite"),
            ("not separated", "did not separate the two"),
            ("too few seeds", "had too few seeds"),
        )
        if states[state]
    ]
    named = "Of the comparisons that it names" if not states["first"] else "Of the others"
    return f"{head}. {named}, {' and '.join(rest) if len(rest) < 3 else ', '.join(rest)}."


def chance_note(judged: Sequence[Judged]) -> str:
    """How many of the intervals miss by chance."""
    total = sum(row.verdict.difference.low is not None for row in judged)
    if not total:
        return ""
    return (
        f"{total} interval{'s' if total != 1 else ''} at 95 %, each for itself: about {figure(0.05 * total)} of them "
        "would miss the true difference by chance."
    )


def place(cell: Mapping[str, Value]) -> str:
    """A cell in words."""
    return ", ".join(f"{name} {value}" for name, value in cell.items()) or "all runs"


def outcome_table(study: Study, results: Mapping[str, Any], cell: Mapping[str, Value]) -> Table:
    """Every configuration of a cell with every seed, the best mean first."""
    collapses = study.metric.collapse is not None
    headers = ["configuration", "every seed", "mean (95 % interval)", "start"]
    headers += (["collapsed"] if collapses else []) + [number_title(number) for number in study.also]
    rows: list[tuple[float, list[str]]] = []
    sign = 1 if study.metric.lowest else -1
    for found in study.configuration:
        runs = reported(results, found.name, cell)
        values = values_of(results, found.name, cell)
        if not runs:
            continue
        starts = list(values_of(results, found.name, cell, "start").values())
        row = [found.name, " ".join(map(_seed_cell, runs)), _mean_cell(list(values.values())), _plain_mean(starts)]
        if collapses:
            ended = [run for run in runs if "value" in run]
            row.append(f"{sum(run.get('collapsed', False) for run in ended)} of {len(ended)}")
        for number in study.also:
            known = list(values_of(results, found.name, cell, number.name).values())
            row.append(_plain_mean(known))
        rows.append((sign * statistics.fmean(values.values()) if values else math.inf, row))
    return headers, [row for _, row in sorted(rows, key=lambda pair: pair[0])]


def _seed_cell(run: Mapping[str, Any]) -> str:
    if not is_number(run.get("value")):
        return "unfinished" if run["state"] == "unfinished" else "not measured"
    return figure(run["value"]) + ("*" if run["state"] == "failed" else "")


def _mean_cell(values: Sequence[float]) -> str:
    found = interval(values)
    if not found.seeds:
        return DASH
    if found.low is None or found.high is None:
        return figure(found.mean)
    return f"{figure(found.mean)} ({figure(found.low)} to {figure(found.high)})"


def _plain_mean(values: Sequence[float]) -> str:
    return figure(statistics.fmean(values)) if values else DASH


def tuning_table(study: Study, results: Mapping[str, Any]) -> Table:
    """Every setting that was tried on the tuning seeds, and which was chosen."""
    tried: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for run in results["runs"]:
        if run["for"] == "tuning":
            said = ", ".join(f"{key} = {value}" for key, value in run["settings"].items())
            tried.setdefault((run["configuration"], said), []).append(run)
    rows = []
    for (name, said), runs in tried.items():
        chosen = results["chosen"].get(name) == runs[0]["settings"]
        values = [run["value"] for run in runs if is_number(run.get("value"))]
        seeds = " ".join(map(_seed_cell, runs))
        rows.append([name, said, seeds, _plain_mean(values), "chosen" if chosen else ""])
    order = [found.name for found in study.configuration]
    return ["configuration", "setting", "every seed", "mean", ""], sorted(rows, key=lambda row: order.index(row[0]))


def made_with(results: Mapping[str, Any]) -> str:
    """Versions of what the runs were made with."""
    return "; ".join(f"{key} {', '.join(those)}" for key, those in results["versions"].items())


def account(results: Mapping[str, Any]) -> str:
    """Every run that was started, by how it ended."""
    runs = results["runs"]
    states = Counter(run["state"] for run in runs)
    collapsed = sum(run.get("collapsed", False) for run in runs)
    said = [f"{len(runs) + len(results['dropped'])} runs were started, {results['planned']} are planned"]
    said.append(f"{states['finished']} finished")
    said += [f"{collapsed} of those that ended had collapsed"] if collapsed else []
    said += [f"{states['failed']} broke and count as the study says"] if states["failed"] else []
    said += [f"{states['unfinished']} stopped before the end, which counts nowhere"] if states["unfinished"] else []
    if results["dropped"]:
        said.append(f"{len(results['dropped'])} not among the planned ones (listed below)")
    return "; ".join(said) + "."


def failures(results: Mapping[str, Any]) -> list[str]:
    """The runs that broke, and how."""
    return [
        f"{run['configuration']}, {place(run['cell'])}, seed {run['seed']}, step {run['failed_step']}: {run['error']}"
        for run in results["runs"]
        if run["state"] == "failed"
    ]


def dropped(results: Mapping[str, Any]) -> list[str]:
    """The runs that were started with settings that the study no longer has."""
    return [
        f"{run['run']}: {run['state']}" + (f", {figure(run['value'])}" if is_number(run["value"]) else "")
        for run in results["dropped"]
    ]


def seeds_of(study: Study) -> str:
    """The seeds in words."""
    reporting = f"{count(len(study.seeds.reporting))} ({', '.join(map(str, study.seeds.reporting))})"
    if not study.seeds.tuning:
        return f"Reported on {reporting}; nothing was tuned."
    return f"Settings chosen on seeds {', '.join(map(str, study.seeds.tuning))}, reported on {reporting}."
