"""`holdfast presets`: the table of published objectives; `holdfast presets NAME`: one of them explained."""

from __future__ import annotations

import argparse
import json

import tomli_w
from rich.console import Console
from rich.table import Table

from holdfast.objectives.objective import Objective
from holdfast.objectives.presets import TABLE, preset


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    made = argparse.ArgumentParser(
        prog="holdfast presets",
        description="List the published objectives, or explain one, or several joined with '+'.",
        epilog="holdfast presets trm+sspo+kl_cov",
    )
    made.add_argument("name", nargs="?", help="a preset, or several joined with '+'")
    made.add_argument("--json", action="store_true", help="machine-readable")
    made.add_argument("--plot", metavar="FILE", help="write the gate and gradient coefficient of NAME as an SVG")
    return made


def run(argv: list[str]) -> int:
    """Print the table, or one composition with its formula, source and configuration."""
    options = parser().parse_args(argv)
    if options.name is None:
        if options.plot:
            parser().error("--plot needs the NAME of a preset")
        _print_table(options.json)
        return 0
    if options.plot:
        from holdfast.report.presets import gate_chart

        print(f"figure: {gate_chart(preset(options.name)).save(options.plot)}")
    else:
        _print_one(options.name, options.json)
    return 0


def _print_table(as_json: bool) -> None:
    if as_json:
        print(json.dumps({name: {"title": row.title, "paper": row.paper} for name, row in TABLE.items()}, indent=1))
        return
    table = Table(box=None, header_style="dim")
    for column in ("preset", "what it is", "source"):
        table.add_column(column, no_wrap=column == "preset")
    for name, row in TABLE.items():
        table.add_row(name, row.title, row.paper)
    Console().print(table)


def _print_one(name: str, as_json: bool) -> None:
    objective = preset(name)
    if as_json:
        print(json.dumps(objective.to_dict(), indent=1))
        return
    for part in name.split("+"):
        row = TABLE[part.strip()]
        print(f"{part.strip()}: {row.title}")
        print(f"  source: {row.paper}, {row.equation}\n  defaults: {row.defaults}\n  differs: {row.differs}")
    print(f"\n{objective.explain()}\n")
    _print_coefficients(objective)
    print(f'In a run\'s TOML file:\n\n[objective]\npreset = "{name}"\n')
    print("In full:\n\n" + tomli_w.dumps(objective.to_dict()))


def _print_coefficients(objective: Objective) -> None:
    """What A ∇log π is multiplied by at a few ratios, as bars."""
    import torch

    ratios = torch.tensor([[0.25, 0.5, 0.8, 0.9, 1.0, 1.1, 1.25, 2.0, 4.0]], dtype=torch.float64)
    table = Table(box=None, header_style="dim", title="factor on A ∇log π", title_justify="left")
    for column in ("ratio", "A > 0", "", "A < 0", ""):
        table.add_column(column, justify="right" if column else "left")
    factors = []
    for positive in (True, False):
        which = torch.full_like(ratios, positive, dtype=torch.bool)
        value = objective.gate.log_value(ratios.log(), which).exp()
        factor = value if objective.carrier == "score" else value * objective.gate.slope(ratios.log(), which)
        factors.append(factor[0].tolist())
    for ratio, good, bad in zip(ratios[0].tolist(), *factors, strict=True):
        table.add_row(f"{ratio:g}", f"{good:.3f}", _bar(good), f"{bad:.3f}", _bar(bad))
    Console().print(table)


def _bar(value: float) -> str:
    """Eight eighths of a block to the unit, at most two units wide."""
    eighths = round(min(max(value, 0.0), 2.0) * 64)
    return "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()
