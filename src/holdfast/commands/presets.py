"""`holdfast presets`: the table of published objectives; `holdfast presets NAME`: one of them explained."""

from __future__ import annotations

import argparse
import json

import tomli_w
from rich.console import Console
from rich.table import Table

from holdfast.objectives.presets import TABLE, preset


def run(argv: list[str]) -> int:
    """Print the table, or one composition with its formula, source and configuration."""
    parser = argparse.ArgumentParser(
        prog="holdfast presets",
        description="List the published objectives, or explain one, or several joined with '+'.",
        epilog="holdfast presets trm+sspo+kl_cov",
    )
    parser.add_argument("name", nargs="?", help="a preset, or several joined with '+'")
    parser.add_argument("--json", action="store_true", help="machine-readable")
    options = parser.parse_args(argv)
    if options.name is None:
        _print_table(options.json)
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
    print(f'In a run\'s TOML file:\n\n[objective]\npreset = "{name}"\n')
    print("In full:\n\n" + tomli_w.dumps(objective.to_dict()))
