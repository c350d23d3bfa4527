"""The results as a Markdown page."""

from __future__ import annotations

from typing import Any

ORDER = ("machine", "kernels", "presets", "train", "head", "update")
TITLES = {
    "machine": "Machine",
    "kernels": "The LM head against float64",
    "presets": "Presets against the CPU, without waiting for the device",
    "train": "holdfast train and resume",
    "head": "Speed of the LM head",
    "update": "Updates",
}


def page(rows: list[dict[str, Any]]) -> str:
    """One table for each part and set of columns, in the order of the check; figures as they were measured."""
    machine = next((row for row in rows if row["part"] == "machine"), {})
    lines = [f"# Holdfast on {machine.get('device', 'an unknown device')}", ""]
    lines += ["Written by `benchmarks/gpu_check.py`. Parts that were cut short or failed say so.", ""]
    for part in ORDER:
        found = [{k: v for k, v in row.items() if k not in ("part", "t")} for row in rows if row["part"] == part]
        lines += [f"## {TITLES[part]}", ""]
        lines += [line for table in _tables(found) for line in (*table, "")] if found else ["Not run.", ""]
    return "\n".join(lines)


def _tables(rows: list[dict[str, Any]]) -> list[list[str]]:
    """Consecutive rows with the same columns make one table."""
    tables: list[list[str]] = []
    columns: tuple[str, ...] = ()
    for row in rows:
        if tuple(row) != columns:
            columns = tuple(row)
            tables.append([f"| {' | '.join(columns)} |", "|" + "-|" * len(columns)])
        tables[-1].append(f"| {' | '.join(_cell(value) for value in row.values())} |")
    return tables


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{k} {_cell(v)}" for k, v in value.items())
    if isinstance(value, list):
        return "; ".join(map(str, value)) or "none"
    return "" if value is None else str(value).replace("|", "\\|").replace("\n", " ")
