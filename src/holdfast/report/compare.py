"""The page of a comparison: several objectives on one task and the same seeds, each seed shown."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import holdfast
from holdfast.errors import DataError
from holdfast.report.charts.bars import dot_chart
from holdfast.report.charts.frame import Reference
from holdfast.report.charts.plots import Series, line_chart
from holdfast.report.charts.scales import Number, number
from holdfast.report.curves import Curve, every_curve
from holdfast.report.metrics import is_number
from holdfast.report.page import (
    Cell,
    Markup,
    absent,
    columns,
    element,
    facts,
    figure,
    join,
    page,
    section,
    table,
    write_page,
)
from holdfast.report.words import percent

_MOST_BANDS = 6


@dataclass(frozen=True)
class Measure:
    """What the objectives are ordered by: its name, where a run keeps it, and whether it is a share."""

    title: str
    final: str
    start: str
    curve: str
    share: bool
    lowest: bool = False

    @property
    def scale(self) -> int:
        """Shares are drawn in percent."""
        return 100 if self.share else 1

    @property
    def label(self) -> str:
        """The name with its unit."""
        return f"{self.title}, %" if self.share else self.title

    def write(self, value: float) -> str:
        """In a sentence."""
        return percent(value) if self.share else number(value)

    def cell(self, value: float) -> str:
        """In a table."""
        return _points(value) if self.share else number(value)

    def better(self, values: Sequence[float]) -> float:
        """The best of them."""
        return min(values) if self.lowest else max(values)

    def worse(self, values: Sequence[float]) -> float:
        """The worst of them."""
        return max(values) if self.lowest else min(values)

    def beats(self, first: float, second: float) -> bool:
        """Whether the first is better."""
        return first < second if self.lowest else first > second


OLDER = Measure("sampled accuracy", "final_accuracy", "start_accuracy", "accuracy", True)
"""What results.json held before it named what its runs are ordered by."""


def measure_of(results: Mapping[str, Any]) -> Measure:
    """What these results are ordered by."""
    ranked = results.get("ranked_by")
    if not isinstance(ranked, Mapping):
        return OLDER
    share = str(ranked.get("key", "")).endswith("accuracy")
    return Measure(str(ranked.get("title", "")), "final", "start", "ranked", share, ranked.get("lowest") is True)


@dataclass(frozen=True)
class Group:
    """The runs of one objective, in seed order."""

    name: str
    runs: tuple[Mapping[str, Any], ...]

    def values(self, key: str) -> list[float]:
        """A number of every run that has it, in seed order."""
        return [float(run[key]) for run in self.runs if is_number(run.get(key))]

    def curve(self, key: str) -> dict[int, list[float]]:
        """Values of every seed at each step that all seeds have measured."""
        curves = [_curve(run, key) for run in self.runs]
        curves = [curve for curve in curves if curve]
        shared = set.intersection(*map(set, curves)) if curves else set()
        return {step: [curve[step] for curve in curves] for step in sorted(shared)}


def write_compare_report(out_dir: Path) -> Path:
    """Write DIR/report.html from DIR/results.json; returns its path.

    Raises DataError where results.json is missing, no JSON, or holds no runs.
    """
    out_dir = Path(out_dir)
    return write_page(out_dir / "report.html", compare_page(read_results(out_dir / "results.json"), out_dir.name))


def read_results(path: Path) -> Mapping[str, Any]:
    """Read a comparison's results.json and check that it holds runs."""
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(
            f"cannot read {path}: {error.strerror}; give the folder that `holdfast compare` wrote"
        ) from error
    except ValueError as error:
        raise DataError(f"{path} is no JSON ({error}); run `holdfast compare` again to write it anew") from error
    runs = results.get("runs") if isinstance(results, dict) else None
    if not isinstance(runs, list) or not runs or not all(isinstance(run, dict) and "objective" in run for run in runs):
        raise DataError(f'{path} holds no runs: expected {{"runs": [{{"objective": ..., "seed": ..., ...}}, ...]}}')
    return results


def compare_page(results: Mapping[str, Any], name: str) -> Markup:
    """The page of a comparison."""
    measure = measure_of(results)
    groups = group_runs(results["runs"], measure)
    seeds = sorted({run["seed"] for run in results["runs"] if is_number(run.get("seed"))})
    task = results.get("task") or "one task"
    model = f", {results['model']}" if results.get("model") else ""
    known = [
        ("task", results.get("task")),
        ("model", results.get("model")),
        ("engine", results.get("engine")),
        ("seeds", ", ".join(map(str, seeds))),
    ]
    known.append(("ranked by", f"{measure.title}, {'lowest' if measure.lowest else 'highest'} first"))
    return page(
        f"{len(groups)} objective{'s' if len(groups) > 1 else ''} on {task}{model}",
        _finals(groups, measure),
        _curves(groups, measure),
        _listing(groups, measure),
        _everything(groups),
        section("Setting", facts((k, v) for k, v in known if v)),
        kicker=f"Holdfast · comparison {name}",
        verdict=verdict(groups, measure),
        footer=f"Written by Holdfast {holdfast.__version__} from {name}/results.json. This page loads nothing.",
    )


def group_runs(runs: Sequence[Mapping[str, Any]], measure: Measure = OLDER) -> list[Group]:
    """Runs by objective (and config, where one objective has several), the best mean at the end first."""
    configs: dict[str, set[str]] = {}
    for run in runs:
        configs.setdefault(str(run["objective"]), set()).add(str(run.get("config", "")))
    members: dict[str, list[Mapping[str, Any]]] = {}
    for run in runs:
        name = str(run["objective"])
        label = name if len(configs[name]) == 1 else f"{name} ({run.get('config', '')})"
        members.setdefault(label, []).append(run)
    groups = [Group(k, tuple(sorted(v, key=lambda run: str(run.get("seed")).zfill(12)))) for k, v in members.items()]
    sign = 1 if measure.lowest else -1
    return sorted(groups, key=lambda g: sign * _mean(g.values(measure.final), sign * math.inf))


def verdict(groups: Sequence[Group], measure: Measure = OLDER) -> Markup:
    """Which objective came out best, and which others its seeds do not separate it from."""
    judged = [(group, values) for group in groups if (values := group.values(measure.final))]
    if not judged:
        return Markup(f"No run has a final {measure.title}, so there is nothing to compare.")
    best, finals = judged[0]
    start = _mean([v for group in groups for v in group.values(measure.start)], math.nan)
    said: list[str] = [f"From {measure.write(start)} at the start, "] if math.isfinite(start) else []
    said += [element("strong", best.name), f" ended {'lowest' if measure.lowest else 'highest'} in {measure.title}: "]
    said += [element("strong", measure.write(_mean(finals)))]
    ends = f"from {measure.write(min(finals))} to {measure.write(max(finals))}"
    said.append(f" on average over {_seeds(finals)}, {ends}." if len(finals) > 1 else " with one seed.")
    rivals = [g.name for g, values in judged[1:] if not measure.beats(measure.worse(finals), measure.better(values))]
    if len(judged) > 1 and min(map(len, (v for _, v in judged))) < 2:
        said.append(" With one seed for some objectives, nothing can be said about chance.")
    elif rivals:
        said.append(f" Its seeds overlap with those of {_listed(rivals)}, so this comparison does not order them.")
    elif len(judged) > 1:
        where = "below" if measure.lowest else "above"
        said.append(f" Every one of its seeds ended {where} every seed of the others.")
    fallen = [g.name for g, values in judged if math.isfinite(start) and measure.beats(start, measure.better(values))]
    if fallen:
        where = "above" if measure.lowest else "below"
        said.append(f" {_listed(fallen)} ended {where} the start with every seed.")
    return join(said)


def _finals(groups: Sequence[Group], measure: Measure) -> Markup:
    judged = [(g.name, [measure.scale * v for v in g.values(measure.final)]) for g in groups]
    if not any(values for _, values in judged):
        return section("Where they ended", absent(f"No final {measure.title} was measured."))
    starts = [v for g in groups for v in g.values(measure.start)]
    rules = [Reference(measure.scale * _mean(starts), "start")] if starts else []
    chart = dot_chart(
        [name for name, _ in judged],
        [values for _, values in judged],
        title="At the end",
        x_label=measure.label,
        references=rules,
        x_range=(0, 100) if measure.share else None,
    )
    several = any(len(values) > 1 for _, values in judged)
    caption = "Every dot is a seed, the tick their mean." if several else "Every dot is a seed."
    return section("Where they ended", figure(chart, caption, full=True))


def _curves(groups: Sequence[Group], measure: Measure) -> Markup:
    several = any(len(group.runs) > 1 for group in groups)
    banded = len(groups) <= _MOST_BANDS and several
    limits: dict[str, Any] = {"y_range": (0, 100)} if measure.share else {}
    wide = _chart(groups, measure.curve, (_capital(measure.title), measure.label), measure.scale, banded, **limits)
    caption = "Every line is one seed."
    if several:
        caption = "Lines are means over seeds; the table has the spread."
    if banded:
        caption = "Lines are means over seeds, bands reach from the lowest to the highest seed."
    smaller = [
        _chart(groups, "entropy", ("Entropy", "nats per token"), 1, banded, y_range=(0, 0)),
        _chart(groups, "kl_exact_mean", ("Drift", "mean exact KL, nats per token"), 1, banded, log_y=True),
        _chart(groups, "masked_sequences", ("Masked", "sequences masked, %"), 100, banded, y_range=(0, 10)),
    ]
    first = figure(wide, caption, full=True) if wide else absent(f"No curve of {measure.title} was measured.")
    return section("How they got there", first, columns(*(figure(chart) for chart in smaller if chart)))


def _everything(groups: Sequence[Group]) -> Markup:
    """A curve for each number that every step measured: the mean over the seeds of each objective."""
    keys = dict.fromkeys(key for g in groups for run in g.runs for key in _curves_of(run) if key != "ranked")
    means: dict[str, dict[str, Curve]] = {}
    for group in groups:
        found = {key: group.curve(key) for key in keys}
        means[group.name] = {key: (list(c), [_mean(v) for v in c.values()]) for key, c in found.items() if c}
    return every_curve(means, lead="Every number of the runs' metrics.jsonl, as means over the seeds.")


def _curves_of(run: Mapping[str, Any]) -> list[str]:
    curve = run.get("curve")
    return [key for key in curve if key != "step"] if isinstance(curve, dict) else []


def _chart(groups: Sequence[Group], key: str, names: tuple[str, str], scale: Number, banded: bool, **options: Any):
    series = []
    for group in groups:
        curve = group.curve(key)
        values = [[scale * v for v in at] for at in curve.values()]
        spread = {"low": [min(v) for v in values], "high": [max(v) for v in values]} if banded else {}
        series.append(Series(group.name, list(curve), [_mean(v) for v in values], **spread))
    if not any(line.x for line in series):
        return None
    return line_chart(series, title=names[0], x_label="step", y_label=names[1], **options)


def _listing(groups: Sequence[Group], measure: Measure) -> Markup:
    beside = not measure.share and any(group.values("final_accuracy") for group in groups)
    rows = []
    for group in groups:
        finals = group.values(measure.final)
        masked = [_mean(list(curve.values())) for run in group.runs if (curve := _curve(run, "masked_sequences"))]
        right = [_averaged(group.values("final_accuracy"), _points)] if beside else []
        rows.append(
            (
                group.name,
                _averaged(finals, measure.cell),
                _deviation(finals, measure),
                element("span", "  ".join(map(measure.cell, finals)) or "–", css="seeds"),
                _averaged(group.values(measure.start), measure.cell),
                *right,
                _averaged(group.values("final_entropy"), lambda v: number(v, 2)),
                _averaged(masked, _points),
                _averaged(group.values("seconds"), lambda v: number(v, 3)),
            )
        )
    unit = ", %" if measure.share else ""
    headers = ["objective", f"final{unit}", "sd", f"each seed{unit}", f"start{unit}"]
    headers += [*(["accuracy, %"] if beside else []), "final entropy", "masked, %", "seconds"]
    listing = table(
        headers,
        rows,
        label="Results by objective",
        numeric=[i for i in range(1, len(headers)) if i != 3],
        marks={0: "best"} if groups and groups[0].values(measure.final) else {},
        sortable=True,
    )
    lead = f"Final, sd, each seed and start are of the {measure.title}; sd is the sample standard deviation over seeds."
    return section("Numbers", listing, lead=f"{lead} The other columns are means over seeds.")


def _averaged(values: Sequence[float], write: Any) -> Cell:
    return Cell(write(_mean(values)), _mean(values)) if values else Cell("–", -1.0)


def _points(share: float) -> str:
    return f"{100 * share:.1f}"


def _deviation(values: Sequence[float], measure: Measure) -> Cell:
    if len(values) < 2:
        return Cell("–", -1.0)
    return Cell(measure.cell(statistics.stdev(values)), statistics.stdev(values))


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _curve(run: Mapping[str, Any], key: str) -> dict[int, float]:
    curve = run.get("curve")
    steps, values = (curve.get("step"), curve.get(key)) if isinstance(curve, dict) else (None, None)
    if not isinstance(steps, list) or not isinstance(values, list) or len(steps) != len(values):
        return {}
    return {int(s): float(v) for s, v in zip(steps, values, strict=True) if is_number(s) and is_number(v)}


def _mean(values: Sequence[float], missing: float = math.nan) -> float:
    return sum(values) / len(values) if values else missing


def _seeds(values: Sequence[float]) -> str:
    return f"{len(values)} seed{'s' if len(values) != 1 else ''}"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
