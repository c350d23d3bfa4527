"""What a row of the table says about one published objective."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Row:
    """One published objective: where it is from, what it sets, and how our row differs from the source."""

    title: str
    paper: str
    equation: str
    defaults: str
    differs: str
    sets: Mapping[str, Any] = field(default_factory=dict)
    alone: Mapping[str, Any] = field(default_factory=dict)
