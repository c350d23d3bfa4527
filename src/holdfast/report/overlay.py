"""The page of several runs over each other: what differs between them, how they ended, and every curve."""

from __future__ import annotations

import math
import statistics
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import holdfast
from holdfast.errors import DataError
from holdfast.report.charts.scales import number
from holdfast.report.curves import curves
from holdfast.report.learning import ENOUGH, SURE, held_out, paired_rewards
from holdfast.report.metrics import Metrics, read_metrics
from holdfast.report.page import Markup, absent, element, folded, join, page, paragraph, section, table, write_page
from holdfast.report.titles import run_title
from holdfast.report.words import percent


def write_overlay(runs: Sequence[Path], path: Path) -> Path:
    """Write the page of several runs' folders; returns its path.

    Raises DataError for fewer than two runs, a folder that is none, or a place that cannot be written.
    """
    if len(set(runs)) < 2:
        raise DataError(f"{len(set(runs))} run to draw: give two folders or more that `holdfast train` wrote")
    for run in runs:
        if not run.is_dir():
            raise DataError(f"no run folder at {run}: give the folder that `holdfast train` wrote")
    return write_page(path, overlay_page(dict(zip(names_of(runs), runs, strict=True))))


def names_of(runs: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell the runs apart.

    >>> names_of([Path("runs/a"), Path("runs/b")]), names_of([Path("x/run"), Path("y/run")])
    (['a', 'b'], ['x/run', 'y/run'])
    """
    whole = [run.resolve().parts for run in runs]
    for length in range(1, max(map(len, whole)) + 1):
        names = ["/".join(parts[-length:]) for parts in whole]
        if len(set(names)) == len(names):
            return names
    return [str(run) for run in runs]


def overlay_page(runs: Mapping[str, Path]) -> Markup:
    """The page of several runs, by the names that tell them apart."""
    metrics = {name: read_metrics(folder / "metrics.jsonl") for name, folder in runs.items()}
    configs = {name: _config(folder / "config.toml") for name, folder in runs.items()}
    titles = [run_title(folder) for folder in runs.values()]
    title = " and ".join(dict.fromkeys(t for t in titles if t)) if len(set(titles)) <= 2 else ""
    drawn = curves(metrics, unfolded=("train", "eval"), lead="Every number of metrics.jsonl, a line for each run.")
    return page(
        title or f"{len(runs)} runs",
        _differences(configs),
        _ends(metrics),
        drawn or section("All curves", absent("No run has a step in its metrics.jsonl.")),
        kicker=f"Holdfast · {len(runs)} runs: {', '.join(runs)}",
        verdict=in_words(metrics),
        footer=f"Written by Holdfast {holdfast.__version__} from {', '.join(runs)}. This page loads nothing.",
    )


def in_words(metrics: Mapping[str, Metrics]) -> Markup:
    """Where the runs ended, and whether a first and a second are apart by more than two standard errors."""
    ends = {name: held_out(m)[1][-1] for name, m in metrics.items() if held_out(m)[1]}
    if len(ends) < 2:
        return Markup("Fewer than two of the runs have a reward on held-out problems, so nothing is compared.")
    order = sorted(ends, key=lambda name: -ends[name])
    best, second = order[:2]
    said: list[object] = ["Mean reward on held-out problems at the end: "]
    said += [join((f"{name} ", element("strong", number(ends[name]))) if i == 0 else f", {name} {number(ends[name])}")
             for i, name in enumerate(order)]  # fmt: skip
    difference, error = difference_of(metrics[best], metrics[second])
    if difference == 0:
        said.append(f". {best} and {second} are equal. One run each says nothing of other seeds.")
        return join(said)
    said.append(f". {best} and {second} differ by {number(difference, 2)}, ")
    if error is None:
        said.append("whose standard error is not known.")
    elif abs(difference) > SURE * error:
        said.append(f"standard error {number(error, 2)}: more than chance over the problems explains.")
    else:
        said.append(f"standard error {number(error, 2)}: no more than chance over the problems explains.")
    said.append(" One run each says nothing of other seeds: holdfast compare runs several.")
    return join(said)


def difference_of(first: Metrics, second: Metrics) -> tuple[float, float | None]:
    """The difference of the last mean rewards on held-out problems, and its standard error where it is known.

    Problem by problem where both runs have as many (they are the same for equal task and seed); the error is that of
    the mean of the differences, else (se_first² + se_second²)^(1/2).
    """
    ends = [held_out(m)[1][-1] for m in (first, second)]
    rows = [_last_judged(m) for m in (first, second)]
    pairs = paired_rewards(rows[0].get("eval_rewards"), rows[1].get("eval_rewards"))
    if pairs is not None and len(pairs) >= ENOUGH:
        apart = [a - b for a, b in pairs]
        return ends[0] - ends[1], statistics.stdev(apart) / math.sqrt(len(apart))
    errors = [row.get("eval_reward_se") for row in rows]
    known = [e for e in errors if isinstance(e, float | int)]
    return ends[0] - ends[1], math.hypot(*known) if len(known) == 2 else None


def _last_judged(metrics: Metrics) -> Mapping[str, Any]:
    step = held_out(metrics)[0][-1]
    return next(row for row in metrics.rows if row["step"] == step)


def _config(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested configuration by dotted names.

    >>> flat({"steps": 3, "optimizer": {"learning_rate": 0.1}})
    {'steps': 3, 'optimizer.learning_rate': 0.1}
    """
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


def _differences(configs: Mapping[str, Mapping[str, Any]]) -> Markup:
    known = {name: flat(values) for name, values in configs.items()}
    if not all(known.values()):
        without = ", ".join(name for name, values in known.items() if not values)
        return section("What differs", absent(f"config.toml is missing or cannot be read in {without}."))
    keys = [key for key in dict.fromkeys(k for values in known.values() for k in values) if _differs(key, known)]
    if not keys:
        return section("What differs", paragraph("Nothing: the configurations are the same."))
    rows = [(key, *(_shown(values.get(key)) for values in known.values())) for key in keys]
    return section("What differs", table(("key", *known), rows, label="Keys that differ"))


def _differs(key: str, known: Mapping[str, Mapping[str, Any]]) -> bool:
    return len({repr(values.get(key)) for values in known.values()}) > 1


def _shown(value: Any) -> str:
    return "absent" if value is None else number(value, 6) if type(value) in (int, float) else str(value)


def _ends(metrics: Mapping[str, Metrics]) -> Markup:
    rows = []
    for name, m in metrics.items():
        judged = held_out(m)[1]
        masked, worst = m.mean("masked_sequences"), m.highest("kl_exact_max")
        drift = m.mean("kl_exact_mean") if m.has("kl_exact_mean") else m.mean("abs_log_ratio_mean")
        seconds = sum(m.series("seconds")[1])
        cells = (
            judged[0] if judged else None,
            judged[-1] if judged else None,
            m.last("reward_mean"),
            m.last("entropy"),
        )
        rows.append(
            (
                name,
                f"{sum(row['step'] > 0 for row in m.rows):,}",
                *(number(v) for v in cells),
                number(drift, 2),
                number(worst[1] if worst else None, 2),
                percent(masked),
                number(seconds),
                f"{sum(len(steps) for _, steps in m.warnings()):,}",
            )
        )
    headers = ["run", "steps", "held out, start", "held out, end", "training, end", "entropy, end"]
    headers += ["drift, mean", "drift, worst", "masked", "seconds", "warnings"]
    listing = table(headers, rows, label="How the runs ended", numeric=range(1, len(headers)), sortable=True)
    kinds = [_warnings(name, m) for name, m in metrics.items() if m.warnings()]
    told = folded("Warnings", *kinds) if kinds else ""
    lead = "Drift is exact KL in nats where it was measured, else |log ratio|."
    return section("How they ended", listing, told, lead=lead)


def _warnings(name: str, metrics: Metrics) -> Markup:
    lines = [element("li", f"{text} ({len(steps)}×, first at step {steps[0]})") for text, steps in metrics.warnings()]
    return join((element("h3", name), element("ul", *lines)))
