"""What one part of the campaign found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Told:
    """A part's name, how much was tried, and every fault in words; `facts` are counts of what came of the tries."""

    name: str
    tries: int = 0
    faults: list[str] = field(default_factory=list)
    facts: Mapping[str, Any] = field(default_factory=dict)

    def fault(self, text: str) -> None:
        """Remember one."""
        self.faults.append(f"{self.name}, try {self.tries}: {text}")
