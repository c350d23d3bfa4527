"""Which lines speak to a run, what they would change, and how far the nearest measured setting is from the run's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from holdfast.advice.change import changed
from holdfast.advice.lines import Line, Lines
from holdfast.advice.measured import JUDGED, Figure, Measured, Outcome, status_words, supported
from holdfast.advice.setting import Setting, differences, distance, fits
from holdfast.advice.traits import hold, key_of, traits_of
from holdfast.errors import ConfigError
from holdfast.objectives.presets import preset

FAR = 10.0
"""Times the drift of a log: what was seen at more says nothing of it."""
Verdict = Literal["change", "kept", "note", "not judged", "depends"]


@dataclass(frozen=True)
class Reader:
    """A run as it is known; `objective` is its [objective] table, None where nothing tells it."""

    setting: Setting
    objective: Mapping[str, Any] | None = None
    brake: bool = False

    @property
    def traits(self) -> frozenset[str] | None:
        """What its objective does."""
        if self.objective is None:
            return None
        options = {key: value for key, value in self.objective.items() if key != "preset"}
        return traits_of(preset(self.objective["preset"], **options), brake=self.brake)


@dataclass(frozen=True)
class Spoken:
    """A line that speaks to the run: `figures` nearest first, `elsewhere` what of the run was not measured there.

    "change": the run should, by what was measured nearest. "kept": it does already. "note": there is nothing to set.
    "not judged": too few seeds, nothing was separated nearest, or all was measured at far more drift. "depends":
    `unknown` names what the log does not say.
    """

    line: Line
    verdict: Verdict
    status: str
    figures: tuple[Figure, ...]
    elsewhere: tuple[str, ...]
    unknown: tuple[str, ...] = ()


@dataclass(frozen=True)
class Advised:
    """All of it. `objective` is the table with every change made, None where none is; `own` how the run's own objective
    ended in the nearest setting in which it was measured, `nearest` an outcome of the nearest setting of all.
    `remedies` do the same in other frameworks, where they do all of it.
    """

    spoken: tuple[Spoken, ...]
    objective: Mapping[str, Any] | None
    remedies: tuple[str, ...]
    own: Outcome | None
    nearest: Outcome | None
    nearest_elsewhere: tuple[str, ...]

    @property
    def changes(self) -> bool:
        """Whether something would be set."""
        return any(found.verdict == "change" for found in self.spoken)

    @property
    def judged(self) -> bool:
        """Whether something measured and judged speaks to the run."""
        return any(found.verdict in ("change", "kept", "note") for found in self.spoken)


def advise_reader(lines: Lines, measured: Measured, reader: Reader) -> Advised:
    """Every line that speaks to the run, changes made one after the other in the table's order."""
    now, spoken, remedies = reader, [], list[str]()
    for line in lines.line:
        figures = measured.figures.get(line.id, ())
        if line.docs_only or (found := _spoken(line, figures, now)) is None:
            continue
        spoken.append(found)
        if found.verdict == "change" and now.objective is not None and line.change is not None:
            now = replace(now, objective=changed(now.objective, line.change))
            remedies.append(line.remedy)
    near = _nearest(measured.outcomes, reader.setting)
    return Advised(
        spoken=tuple(spoken),
        objective=now.objective if now is not reader else None,
        remedies=tuple(dict.fromkeys(remedies)) if all(remedies) else (),
        own=_own(measured.outcomes, reader),
        nearest=near,
        nearest_elsewhere=tuple(differences(near.setting, reader.setting)) if near else (),
    )


def _spoken(line: Line, figures: Sequence[Figure], reader: Reader) -> Spoken | None:
    inside, unknown = fits(line.where, reader.setting)
    traits = reader.traits
    if not inside or (traits is not None and not hold(line.only, traits)):
        return None
    if traits is None and (line.only or line.does):
        unknown.append("objective")
    ran = [found for found in figures if found.support != "not run"]
    near = sorted(ran, key=lambda found: distance(found.setting, reader.setting))
    elsewhere = tuple(differences(near[0].setting, reader.setting)) if near else ()
    made = Spoken(line, _verdict(line, near, reader, traits), status_words(tuple(figures)), tuple(near), elsewhere)
    return replace(made, verdict="depends", unknown=tuple(unknown)) if unknown else made


def _verdict(line: Line, near: Sequence[Figure], reader: Reader, traits: frozenset[str] | None) -> Verdict:
    """By the nearest setting in which anything was judged, at a drift that is not far beyond the run's own."""
    judged = [found for found in near if found.support in JUDGED and not _far(found.setting, reader.setting)]
    if near and all(found.support == "said" for found in near):
        return "note"
    here = [found for found in judged if _same_place(found, judged[0], reader)]
    if not supported(tuple(here)):
        return "not judged"
    if line.change is None or traits is None:
        return "note"
    if hold(line.does, traits):
        return "kept"
    possible = reader.objective is not None and changed(reader.objective, line.change) is not None
    return "change" if possible else "note"


def _far(measured: Setting, reader: Setting) -> bool:
    return None not in (measured.kl, reader.kl) and (measured.kl or 0.0) > FAR * (reader.kl or 0.0)


def _same_place(one: Figure, other: Figure, reader: Reader) -> bool:
    return distance(one.setting, reader.setting) == distance(other.setting, reader.setting)


def _nearest(outcomes: Sequence[Outcome], setting: Setting) -> Outcome | None:
    return min(outcomes, key=lambda found: distance(found.setting, setting), default=None)


def _own(outcomes: Sequence[Outcome], reader: Reader) -> Outcome | None:
    """The nearest outcome of the very objective of the run, whatever its rows are called."""
    if reader.objective is None:
        return None
    options = {key: value for key, value in reader.objective.items() if key != "preset"}
    try:
        own = key_of(preset(reader.objective["preset"], **options))
    except ConfigError:
        return None
    return _nearest([found for found in outcomes if found.objective == own], reader.setting)
