"""What the evidence says of each line, made by `holdfast study --choosing` and kept in the package beside the lines."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from holdfast.advice.setting import Setting
from holdfast.errors import DataError

KEPT = Path(__file__).with_name("measured.json")
Support = Literal["shown", "alike", "not separated", "too few seeds", "contradicted", "said", "not run"]
"""How a piece of evidence bears on its line: the stated order was seen; the stated likeness was not refuted, or a value
keeps to its limits; nothing was separated; the opposite was seen; it is only said; no run of it has ended."""
JUDGED = ("shown", "alike", "not separated")
Status = Literal["shown", "in part", "alike", "not separated", "too few seeds", "said", "not run"]


@dataclass(frozen=True)
class Figure:
    """One piece of evidence: its sentence, where it was measured (`cell` as the study calls it), the page.

    `beside` are the parts of the cell that the setting does not tell.
    """

    study: str
    title: str
    cell: str
    text: str
    support: Support
    setting: Setting
    beside: str = ""

    @property
    def where(self) -> str:
        """The setting and what is beside it, in words."""
        return ", ".join(filter(None, (self.setting.words, self.beside)))

    @property
    def page(self) -> str:
        """From the root of the repository."""
        return f"docs/evidence/{self.study}.md"


@dataclass(frozen=True)
class Outcome:
    """How one objective ended in one measured setting; `objective` is its key (`traits.key_of`)."""

    study: str
    cell: str
    metric: str
    configuration: str
    objective: str
    mean: float
    text: str
    start: str
    setting: Setting
    beside: str = ""

    @property
    def page(self) -> str:
        """From the root of the repository."""
        return f"docs/evidence/{self.study}.md"


@dataclass(frozen=True)
class Measured:
    """Figures by the id of their line, and outcomes."""

    figures: Mapping[str, tuple[Figure, ...]]
    outcomes: tuple[Outcome, ...]


def status_of(figures: tuple[Figure, ...]) -> Status:
    """What all of a line's evidence comes to."""
    asked = [found.support for found in figures if found.support not in ("said", "not run")]
    if not asked:
        return "said" if any(found.support == "said" for found in figures) else "not run"
    shown, judged = asked.count("shown"), [found for found in asked if found != "too few seeds"]
    if not judged:
        return "too few seeds"
    if not shown:
        return "alike" if set(judged) == {"alike"} else "not separated"
    return "shown" if shown + asked.count("alike") == len(judged) else "in part"


def supported(figures: tuple[Figure, ...]) -> bool:
    """Whether what was seen lets the line be said: all of what was judged held, or some of it did."""
    return status_of(figures) in ("shown", "in part", "alike", "said")


def status_words(figures: tuple[Figure, ...]) -> str:
    """The same for a reader, with how many comparisons it took."""
    asked = [found.support for found in figures if found.support not in ("said", "not run")]
    judged = [found for found in asked if found != "too few seeds"]
    held = sum(found in ("shown", "alike") for found in judged)
    words = {
        "shown": "shown"
        if len(judged) == 1
        else f"shown in {'both' if len(judged) == 2 else f'all {len(judged)}'} comparisons",
        "in part": f"shown in {held} of {len(judged)} comparisons",
        "alike": "nothing was separated",
        "not separated": "not shown: nothing was separated",
        "too few seeds": "not judged: too few seeds",
        "said": "what was seen",
        "not run": "not measured",
    }[status_of(figures)]
    few = len(asked) - len(judged)
    return f"{words}, {few} more with too few seeds" if few and judged else words


def to_text(measured: Measured) -> str:
    """The content of the kept file: a figure or an outcome a line."""
    lines = [json.dumps({"line": name, **_plain(one)}) for name, found in measured.figures.items() for one in found]
    outcomes = [json.dumps(_plain(one)) for one in measured.outcomes]
    both = (("figures", lines), ("outcomes", outcomes))
    return "{\n" + ",\n".join(f' "{key}": [\n  ' + ",\n  ".join(rows) + "\n ]" for key, rows in both) + "\n}\n"


def _plain(one: Figure | Outcome) -> dict[str, Any]:
    values = asdict(one)
    values["setting"] = {key: value for key, value in values["setting"].items() if value is not None}
    return values


def read_measured(path: Path = KEPT) -> Measured:
    """What was kept.

    Raises:
        DataError: the file is missing or is not what `holdfast study --choosing` writes.
    """
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        figures: dict[str, list[Figure]] = {}
        for row in kept["figures"]:
            figures.setdefault(row.pop("line"), []).append(Figure(**row | {"setting": Setting(**row["setting"])}))
        outcomes = tuple(Outcome(**row | {"setting": Setting(**row["setting"])}) for row in kept["outcomes"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is not readable ({error}); `holdfast study --choosing` writes it anew") from error
    return Measured({name: tuple(found) for name, found in figures.items()}, outcomes)
