"""The table of lines: what each speaks of, what it says to do, and which comparisons of the evidence carry it.

No figure stands here: sentences are made from docs/evidence (`resolve`), and a line is only as strong as they are.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, model_validator

from holdfast.errors import ConfigError
from holdfast.train.settings.section import Section

SOURCE = Path(__file__).with_name("lines.toml")
Value = str | int | float | bool
At = dict[str, Value | list[Value]]


class Reference(Section):
    """One piece of evidence: a comparison that the study names, the outcome of a configuration, or an alarm.

    Exactly one of `ahead` with `behind` (the line stands on `ahead` having the higher number), `alike` (it stands on
    the two not being separated), `pair` (said, whatever it shows), `value` and `signal` (of the diagnosis). The line
    stands on the last two where `least` or `most` is given: a value's mean is at least or at most that; a signal spoke
    before the fall in at most that share of the collapsing runs, and in at least that share of those that held.
    """

    study: str = Field(min_length=1)
    ahead: str = ""
    behind: str = ""
    alike: list[str] = Field(default_factory=list)
    pair: list[str] = Field(default_factory=list)
    value: str = ""
    signal: str = ""
    least: float | None = None
    most: float | None = None
    published: bool = Field(default=False, description="the signal's published threshold, not the range of other runs")
    number: str = Field(default="", description="absent: the study's metric; else one of its `also`")
    at: At = Field(default_factory=dict, description="factor = value or values; absent: every cell")

    @model_validator(mode="after")
    def _one_kind(self) -> Reference:
        kinds = [bool(self.ahead or self.behind), *map(bool, (self.alike, self.pair, self.value, self.signal))]
        if sum(kinds) != 1 or bool(self.ahead) != bool(self.behind):
            raise ValueError("give one of: ahead and behind, alike, pair, value, signal")
        if any(len(names) not in (0, 2) for names in (self.alike, self.pair)):
            raise ValueError("alike and pair name two configurations")
        if not (self.value or self.signal) and (self.least, self.most) != (None, None):
            raise ValueError("least and most are limits of a value or a signal")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """The configurations that it speaks of."""
        return tuple(filter(None, (self.ahead, self.behind, *self.alike, *self.pair, self.value)))


class Where(Section):
    """The runs that a line speaks about; absent: any."""

    lag: tuple[int, int] | None = Field(default=None, strict=False, description="updates that the engine is behind")
    updates: tuple[int, int] | None = Field(default=None, strict=False, description="optimiser steps a rollout batch")
    tokens: tuple[int, int] | None = Field(default=None, strict=False, description="longest response")
    precision: list[str] | None = Field(default=None, description="numerics of the engine, by how their name begins")


class Change(Section):
    """What to set in the objective's table: another loss among its rows, rows to leave out or to add, options."""

    loss: str = ""
    drop: list[str] = Field(default_factory=list)
    add: list[str] = Field(default_factory=list)
    set: dict[str, Value] = Field(default_factory=dict)


class Line(Section):
    """One line of advice. `only` and `does` are traits (`traits.TRAITS`), with "!" before those that must be absent.

    It speaks to runs within `where` that have all of `only`; a run that has all of `does` follows it already.
    `remedy` names the entry of `audit.judge.fixes` that does the same in other frameworks.
    """

    id: str = Field(pattern=r"^[a-z0-9_]+$")
    topic: str
    say: str = Field(min_length=1, pattern=r"[^.]$")
    note: str = Field(default="", pattern=r"^(|.*\.)$")
    where: Where = Field(default_factory=Where)
    only: list[str] = Field(default_factory=list)
    does: list[str] = Field(default_factory=list)
    change: Change | None = None
    remedy: str = ""
    docs_only: bool = Field(default=False, description="for the page, not for a run")
    evidence: list[Reference] = Field(min_length=1)

    @model_validator(mode="after")
    def _change_can_be_judged(self) -> Line:
        if (self.change is None) != (not self.does):
            raise ValueError("`does` tells whether a run needs the `change`: give both or neither")
        if self.change is not None and not any(found.ahead for found in self.evidence):
            raise ValueError("nothing in its evidence is `ahead`, so nothing could support the change")
        return self


class Topic(Section):
    """A section of the page."""

    name: str
    title: str
    intro: str = ""


class Lines(Section):
    """The whole table, in the order in which lines are read and changes are applied."""

    topic: list[Topic] = Field(min_length=1)
    line: list[Line] = Field(min_length=1)

    @model_validator(mode="after")
    def _names_fit(self) -> Lines:
        ids, topics = [found.id for found in self.line], [found.name for found in self.topic]
        if twice := sorted({name for name in ids if ids.count(name) > 1}):
            raise ValueError(f"line ids {twice}: each once")
        if unknown := sorted({found.topic for found in self.line} - set(topics)):
            raise ValueError(f"no topic {unknown[0]!r}; there are {', '.join(topics)}")
        return self


def read_lines(path: Path = SOURCE) -> Lines:
    """The table of a file.

    Raises:
        ConfigError: the file is no TOML, or a line does not fit, with one line per problem.
    """
    try:
        return parse_lines(tomllib.loads(path.read_text(encoding="utf-8")), str(path))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from None


def parse_lines(values: Mapping[str, Any], origin: str = "lines") -> Lines:
    """Check plain values.

    Raises:
        ConfigError: with one line per problem, which names the line.
    """
    try:
        return Lines.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{origin}: " + "\n".join(_explain(one, values) for one in error.errors())) from None


def _explain(detail: Any, values: Mapping[str, Any]) -> str:
    place = list(detail["loc"])
    if place[:1] == ["line"] and len(place) > 1:
        place[:2] = [f"line {values['line'][place[1]].get('id', place[1])}"]
    return f"{'.'.join(map(str, place))}: {detail['msg'].removeprefix('Value error, ')}"
