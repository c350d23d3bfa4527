"""The page of one training run: what it learned, how far it drifted, what was masked, and what that can cost."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import holdfast
from holdfast.errors import DataError
from holdfast.report import run_figures
from holdfast.report.browse import FOLDER, browse
from holdfast.report.charts.scales import Number, number
from holdfast.report.curves import curves
from holdfast.report.learning import held_out, learning, progress, zero_or_one
from holdfast.report.metrics import Metrics, is_number, read_metrics
from holdfast.report.page import (
    Markup,
    absent,
    element,
    facts,
    folded,
    notices,
    page,
    preformatted,
    section,
    tiles,
    write_page,
)
from holdfast.report.survey import survey_run
from holdfast.report.titles import read_summary, run_title
from holdfast.report.words import headline, percent

_IN_HEAD = {"objective", "formula", "task"} | {
    f"{when}_{kind}" for when in ("start", "final") for kind in ("reward", "accuracy")
}


def write_run_report(run_dir: Path) -> Path:
    """Write RUN/report.html from the run's config.toml, summary.json, metrics.jsonl and rollouts; returns its path.

    Whatever is missing is said on the page. Raises DataError where the folder does not exist or cannot be written.
    """
    run_dir = Path(run_dir)
    if not run_dir.is_dir():
        raise DataError(f"no run folder at {run_dir}: give the folder that `holdfast train` wrote")
    return write_page(run_dir / "report.html", run_page(run_dir))


def run_page(run_dir: Path) -> Markup:
    """The page of a run folder."""
    metrics, summary = read_metrics(run_dir / "metrics.jsonl"), read_summary(run_dir / "summary.json")
    seen = survey_run(run_dir / "rollouts")
    title = run_title(run_dir) or run_dir.name
    log = browse(run_dir / "rollouts", run_dir)
    return page(
        title,
        tiles(_tiles(metrics, summary)),
        notices(_notices(metrics)),
        learning(metrics),
        run_figures.drift(metrics, seen),
        run_figures.trust(metrics),
        run_figures.rollouts(seen, log),
        run_figures.bounds(metrics),
        curves({run_dir.name: metrics}),
        run_figures.time(metrics),
        _configuration(run_dir, summary),
        kicker=f"Holdfast · run {run_dir.name}",
        verdict=headline(metrics),
        footer=f"Written by Holdfast {holdfast.__version__} from {run_dir.name}/. This page loads nothing{_but(log)}.",
        scripts=("rollouts.js",) if log else (),
        files="data-folder" in log,
    )


def _but(log: Markup) -> str:
    return f" but the rollouts in {FOLDER}/ beside it" if "data-folder" in log else ""


def _tiles(metrics: Metrics, summary: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    found = progress(metrics)
    cards = []
    if found:
        cards.append(("Reward", f"{number(found.start)} → {number(found.end)}", found.name.lower()))
    right = held_out(metrics)[1]
    if len(right) > 1 and zero_or_one(metrics):
        cards.append(("Accuracy", f"{percent(right[0])} → {percent(right[-1])}", "held-out problems, sampled"))
    worst, mean = metrics.highest("kl_exact_max"), metrics.mean("kl_exact_mean")
    if worst:
        cards.append(("Worst drift", number(worst[1], 2), f"exact KL in nats, step {worst[0]}; mean {number(mean, 2)}"))
    masked = metrics.mean("masked_sequences")
    if masked is not None:
        cards.append(("Masked", percent(masked), f"of sequences; {percent(metrics.mean('masked_tokens'))} of tokens"))
    if metrics.has("entropy"):
        ends = f"{number(metrics.first('entropy'), 2)} → {number(metrics.last('entropy'), 2)}"
        cards.append(("Entropy", ends, "nats per token"))
    seconds, tokens = _total(metrics, summary, "seconds"), _total(metrics, summary, "tokens")
    speed = summary.get("tokens_per_cpu_second", metrics.mean("tokens_per_cpu_second"))
    if seconds is not None:
        notes = [f"{number(tokens, 2)} tokens"] if tokens is not None else []
        notes += [f"{number(speed, 2)} per CPU-second"] if is_number(speed) else []
        cards.append(("Time", duration(seconds), ", ".join(notes)))
    return cards


def duration(seconds: Number) -> str:
    """Seconds for people: 42 s, 3 min 20 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{number(seconds, 2)} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s" if whole % 60 else f"{whole // 60} min"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _total(metrics: Metrics, summary: Mapping[str, Any], key: str) -> float | None:
    if is_number(summary.get(key)):
        return float(summary[key])
    values = metrics.series(key)[1]
    return sum(values) if values else None


def _notices(metrics: Metrics) -> list[tuple[str, str]]:
    found = []
    for text, steps in metrics.warnings()[:12]:
        where = f"step {steps[0]}" if len(steps) == 1 else f"{len(steps)} steps, first {steps[0]}, last {steps[-1]}"
        found.append((text, f"({where})"))
    if metrics.unreadable:
        found.append((f"{metrics.unreadable} lines of metrics.jsonl could not be read and are left out.", ""))
    return found


def _configuration(run_dir: Path, summary: Mapping[str, Any]) -> Markup:
    formula = summary.get("formula") or summary.get("objective")
    rest = [
        (key.replace("_", " "), number(value) if is_number(value) else _plain(value))
        for key, value in summary.items()
        if key not in _IN_HEAD and value is not None
    ]
    path = run_dir / "config.toml"
    config = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else None
    return section(
        "Configuration",
        element("h3", "Objective"),
        preformatted(str(formula), "formula") if formula else absent("The objective was not recorded."),
        element("h3", "Summary", css="spaced") if rest else "",
        facts(rest) if rest else "",
        folded("config.toml, every value resolved", preformatted(config))
        if config
        else absent("config.toml was not found."),
    )


def _plain(value: Any) -> str:
    return (
        value if isinstance(value, str) else "yes" if value is True else "no" if value is False else json.dumps(value)
    )
