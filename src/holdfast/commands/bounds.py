"""`holdfast bounds`: what a drift between engine and trainer can cost, by every bound that its measurements allow."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from holdfast.core.advise import allowed_kl
from holdfast.core.bounds import Bound, table, unified
from holdfast.errors import DataError
from holdfast.report.charts.frame import Reference
from holdfast.report.charts.plots import Series, line_chart
from holdfast.report.charts.svg import Svg

_INPUTS = {
    "kl": "largest KL(rollout‖current) of any context, in nats",
    "tv": "largest TV of any context, 0 to 1",
    "seq_kl": "KL of whole sequences, the mean of the summed token KLs",
    "seq_tv": "TV of whole sequences, 0 to 1",
    "chi2": "largest χ²(c) = E_rollout[(ρ - 1)²] of any context",
}
_PLOTTED = 7
_STEPS = 48


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    made = argparse.ArgumentParser(
        prog="holdfast bounds",
        description="Bound the error of the surrogate objective, |J(θ) - J(rollout) - L'|, for rewards in [0, 1]. "
        "A bound above 1 is vacuous. Every input is a number that you measured or assume; none is guessed.",
        epilog="holdfast bounds --horizon 4096 --kl 1e-4 --chi2 2e-4",
    )
    made.add_argument("--horizon", type=int, required=True, metavar="T", help="maximum response length in tokens")
    for name, text in _INPUTS.items():
        made.add_argument(f"--{name.replace('_', '-')}", type=float, metavar="X", help=text)
    made.add_argument("--error", type=float, default=1.0, metavar="E", help="also say which KL keeps the error below E")
    made.add_argument("--json", action="store_true", help="machine-readable")
    made.add_argument(
        "--plot", type=Path, metavar="FILE", help="write an SVG figure of every bound against the horizon"
    )
    return made


def run(argv: list[str]) -> int:
    """Print the table of bounds; --json for programs, --plot for a figure of bound against horizon."""
    options = parser().parse_args(argv)

    inputs = {name: value for name in _INPUTS if (value := getattr(options, name)) is not None}
    if not inputs:
        raise DataError(
            f"no drift given: give at least one of {', '.join('--' + n.replace('_', '-') for n in _INPUTS)}"
        )
    rows = table(options.horizon, **inputs)
    limits = _Limits.of(options.horizon, options.error)
    if options.json:
        print(json.dumps(_record(options.horizon, inputs, rows, limits), indent=1))
    else:
        _print(options.horizon, rows, limits)
    if options.plot is not None:
        _figure(options.horizon, inputs).save(options.plot)
    return 0


@dataclass(frozen=True)
class _Limits:
    """The KL per token that keeps the error below `error`: by all bounds, and by the published ones."""

    error: float
    kl: float
    published_kl: float

    @staticmethod
    def of(horizon: int, error: float) -> _Limits:
        return _Limits(error, allowed_kl(horizon, error), allowed_kl(horizon, error, published=True))


def _published(rows: Mapping[str, Bound]) -> Bound | None:
    of_paper = {name: row for name, row in rows.items() if row.published}
    return unified(of_paper) if of_paper else None


def _record(horizon: int, inputs: Mapping[str, float], rows: Mapping[str, Bound], limits: _Limits) -> dict[str, object]:
    published = _published(rows)
    return {
        "horizon": horizon,
        "inputs": dict(inputs),
        "bounds": [row.to_dict() for row in rows.values()],
        "unified": unified(rows).to_dict(),
        "unified_published": published.to_dict() if published else None,
        "allowed_kl": {"error": limits.error, "holdfast": limits.kl, "published": limits.published_kl},
    }


def _print(horizon: int, rows: Mapping[str, Bound], limits: _Limits) -> None:
    best, published = unified(rows), _published(rows)
    shown = Table(box=None, header_style="dim")
    shown.add_column("bound")
    shown.add_column("as published", justify="right")
    shown.add_column("proven here", justify="right")
    shown.add_column("")
    shown.add_column("from", style="dim")
    for row in rows.values():
        wins, vacuous = row.name == best.winner, bool(row.vacuous)
        verdict = "tightest" if wins else ""
        verdict += (", vacuous" if wins else "vacuous") if vacuous else ""
        as_published = f"{row.value.item():.5g}" if row.published else "-"
        style = "bold" if wins else "dim" if vacuous else ""
        shown.add_row(row.name, as_published, f"{row.halved.item():.5g}", verdict, ", ".join(row.inputs), style=style)
    console = Console()
    console.print(shown)
    lines = [f"\nError at most {best.halved.item():.5g} ({best.winner}), horizon {horizon}, if:"]
    lines += [f"  {assumption}" for assumption in best.assumptions]
    if published is not None:
        lines.append(f"The tightest published bound is {published.value.item():.5g} ({published.winner}).")
    lines.append(
        f"An error of at most {limits.error:g} needs a KL per token of at most {limits.kl:.3g} "
        f"(by the published bounds {limits.published_kl:.3g})."
    )
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _figure(horizon: int, inputs: Mapping[str, float]) -> Svg:
    """The distinct bounds over horizons up to the given one, sequence divergences growing in proportion."""
    steps = sorted({round(math.exp(i / _STEPS * math.log(max(horizon, 2)))) for i in range(_STEPS + 1)} - {1})
    curves: dict[str, list[float]] = {}
    for t in steps:
        scaled: dict[str, Any] = {
            name: value * (t / horizon if name.startswith("seq") else 1) for name, value in inputs.items()
        }
        for name, row in table(t, **scaled).items():
            curves.setdefault(name, []).append(row.halved.item())
    distinct: dict[str, list[float]] = {}
    for name in sorted(curves, key=lambda name: curves[name][-1]):
        same = any(
            all(math.isclose(a, b, rel_tol=0.05) for a, b in zip(curves[name], other, strict=True))
            for other in distinct.values()
        )
        if not same and len(distinct) < _PLOTTED:
            distinct[name] = curves[name]
    given = ", ".join(f"{name} {value:g}" for name, value in inputs.items())
    return line_chart(
        [Series(name, steps, values) for name, values in distinct.items()],
        title=f"Bounds on the surrogate's error ({given} at {horizon} tokens)",
        x_label="horizon in tokens",
        y_label="error at most",
        log_x=True,
        log_y=True,
        references=[Reference(1.0, "vacuous above 1")],
    )
