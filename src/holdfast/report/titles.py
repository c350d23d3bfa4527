"""What a run is called: objective, data and model, the names by which a person tells runs apart."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def run_title(run_dir: Path) -> str:
    """`objective on data, model`, of which what config.toml and summary.json do not say is left out."""
    try:
        values = tomllib.loads((run_dir / "config.toml").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        values = {}
    summary = read_summary(run_dir / "summary.json")
    task, model = values.get("task", {}), values.get("model", {})
    objective = summary.get("objective") or values.get("objective", {}).get("preset")
    data = Path(task["path"]).stem if task.get("path") else summary.get("task") or task.get("name")
    name = Path(model["source"]).name if model.get("source") else summary.get("model")
    return " on ".join(map(str, filter(None, (objective, data)))) + (f", {name}" if name else "")


def read_summary(path: Path) -> Mapping[str, Any]:
    """summary.json; empty where there is none."""
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return summary if isinstance(summary, dict) else {}
