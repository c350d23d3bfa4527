"""From lines to figures: every reference is looked up in the evidence and said by the study package's own words."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from holdfast.advice.lines import Line, Lines, Reference
from holdfast.advice.measured import Figure, Measured, Outcome, Support
from holdfast.advice.setting import KEYS, Setting, common, setting_of
from holdfast.advice.traits import key_of
from holdfast.errors import HoldfastError, nearest
from holdfast.study import diagnosis
from holdfast.study.definition import Study, Value, read_study
from holdfast.study.judge import Judged, judge, place
from holdfast.study.plan import cells, merge
from holdfast.study.results import number_title, read_results, reported, values_of
from holdfast.study.statistics import Interval, count, figure, interval
from holdfast.train.settings.config import RunConfig
from holdfast.train.settings.configfile import build_config
from holdfast.train.settings.objective import objective_of

_KL = "kl_exact_mean:highest"


class Refused(Exception):
    """A reference that leads nowhere, or that the evidence contradicts; says so without the line's name."""


@dataclass(frozen=True)
class Source:
    """A study with results, or one that is written and not run (`results` is None)."""

    name: str
    study: Study
    results: Mapping[str, Any] | None
    written: Study | None = None
    """What its file says now, which may be more than what has been run."""

    @property
    def title(self) -> str:
        """The question that it asks."""
        return self.study.title

    @cached_property
    def judged(self) -> list[Judged]:
        """Every comparison that the study names."""
        return [] if self.results is None else judge(self.study, self.results)

    def setting(self, cell: Mapping[str, Value], *names: str) -> Setting:
        """What the settings of configurations at a cell have in common."""
        keys = {factor.name: factor.key for factor in self.study.factor}
        found = []
        for name in names:
            config = self.config({keys[factor]: value for factor, value in cell.items()}, name)
            kl = list(values_of(self.results or {"runs": []}, name, cell, _KL).values())
            found.append(replace(setting_of(config), kl=statistics.fmean(kl) if kl else None))
        return common(found)

    def config(self, factors: Mapping[str, Value], name: str) -> RunConfig:
        """The run of a configuration, with the settings that were chosen for it."""
        own = next(found.set for found in self.study.configuration if found.name == name)
        values = merge(merge(merge(self.study.base, factors), own), self.chosen(name))
        return build_config(values | {"seed": 0}, self.name, spelt_out=True)

    def chosen(self, name: str) -> Mapping[str, Value]:
        """What the tuning seeds chose for a configuration."""
        return (self.results or {}).get("chosen", {}).get(name, {})

    def beside(self, cell: Mapping[str, Value]) -> str:
        """The cell's factors that its setting does not tell, in words."""
        keys = {factor.name: factor.key for factor in self.study.factor}
        other = {name: value for name, value in cell.items() if keys[name] not in KEYS}
        return place(other) if other else ""


@dataclass(frozen=True)
class Evidence:
    """A folder of results, and one of the studies' files."""

    folder: Path
    studies: Path
    _read: dict[str, Source] = field(default_factory=dict)

    def source(self, name: str) -> Source:
        """A study by name; raises Refused where there is neither a result nor a file."""
        if name not in self._read:
            self._read[name] = self._find(name)
        return self._read[name]

    def names(self) -> list[str]:
        """The studies that have results."""
        return sorted(path.stem for path in self.folder.glob("*.json") if path.stem != diagnosis.NAME)

    @cached_property
    def diagnosed(self) -> list[dict[str, Any]]:
        """The runs of the diagnosis."""
        return diagnosis.read_diagnosis(self.folder / f"{diagnosis.NAME}.json")

    def _find(self, name: str) -> Source:
        file, path = self.studies / f"{name}.toml", self.folder / f"{name}.json"
        written = read_study(file) if file.is_file() else None
        if path.is_file():
            return Source(name, *read_results(path), written)
        if written is None:
            known = {*self.names(), *(one.stem for one in self.studies.glob("*.toml"))}
            raise Refused(f"no study {name!r} in {self.folder} or {self.studies}; {nearest(name, known)}")
        return Source(name, written, None, written)


def resolve(lines: Lines, evidence: Evidence) -> tuple[Measured, list[str]]:
    """Everything that the lines refer to, and what is wrong: references that lead nowhere, lines that are refuted."""
    figures: dict[str, tuple[Figure, ...]] = {}
    problems: list[str] = []
    for line in lines.line:
        found: list[Figure] = []
        for reference in line.evidence:
            try:
                found += _figures(reference, evidence)
            except (Refused, HoldfastError) as error:
                problems.append(f"line {line.id!r}: {error}")
        problems += _contradictions(line, found)
        figures[line.id] = tuple(found)
    outcomes: list[Outcome] = []
    for name in evidence.names():
        try:
            outcomes += _outcomes(evidence.source(name))
        except HoldfastError as error:
            problems.append(str(error))
    return Measured(figures, tuple(outcomes)), list(dict.fromkeys(problems))


def _contradictions(line: Line, figures: list[Figure]) -> Iterator[str]:
    for found in figures:
        if found.support == "contradicted":
            where = f" ({found.where})" if found.where else ""
            yield (
                f"line {line.id!r} says {line.say!r}, and {found.study}{where} says otherwise: {found.text} Reword the "
                "line, or take it out"
            )


def _figures(reference: Reference, evidence: Evidence) -> list[Figure]:
    if reference.signal:
        return [_alarm(reference, evidence)]
    source = evidence.source(reference.study)
    if source.results is None or not _there(reference, source.study):
        _check_names(reference, source.written or source.study)
        return [Figure(source.name, source.title, "all runs", "", "not run", Setting())]
    found = _values(reference, source) if reference.value else _comparisons(reference, source)
    if not found:
        raise Refused(
            f"{source.name} names no comparison of {' and '.join(map(repr, reference.names))}"
            f"{f' in {reference.number}' if reference.number else ''}{f' at {reference.at}' if reference.at else ''}; "
            "only what a study names beforehand is quoted"
        )
    return found


def _there(reference: Reference, study: Study) -> bool:
    names, values = [found.name for found in study.configuration], {f.name: f.values for f in study.factor}
    numbers = ["", *(number.name for number in study.also)]
    cells_there = all(set(_listed(given)) & set(values.get(key, [])) for key, given in reference.at.items())
    return all(name in names for name in reference.names) and reference.number in numbers and cells_there


def _check_names(reference: Reference, study: Study) -> None:
    names, values = [found.name for found in study.configuration], {f.name: f.values for f in study.factor}
    for name in reference.names:
        if name not in names:
            raise Refused(f"{reference.study} has no configuration {name!r}; {nearest(name, names)}")
    numbers = [number.name for number in study.also]
    if reference.number and reference.number not in numbers:
        raise Refused(f"{reference.study} has no number {reference.number!r}; {nearest(reference.number, numbers)}")
    for key, given in reference.at.items():
        for value in _listed(given):
            if value not in values.get(key, []):
                raise Refused(f"{reference.study} has no cell {key} = {value!r}; allowed: {values}")


def _comparisons(reference: Reference, source: Source) -> list[Figure]:
    title = next((number_title(one) for one in source.study.also if one.name == reference.number), "")
    found = []
    for row in source.judged:
        same = {row.first, row.second} == set(reference.names) and row.number == title
        if same and _at(reference, row.cell):
            found.append(
                Figure(
                    study=source.name,
                    title=source.title,
                    cell=place(row.cell),
                    text=row.sentence + _chosen(source, row.first, row.second),
                    support=_support(reference, row),
                    setting=source.setting(row.cell, row.first, row.second),
                    beside=source.beside(row.cell),
                )
            )
    return found


def _chosen(source: Source, *names: str) -> str:
    """The settings that were chosen for tuned configurations, in words."""
    said = [f"{name} at {key} = {value}" for name in names for key, value in source.chosen(name).items()]
    return f" Chosen on other seeds: {', '.join(said)}." if said else ""


def _support(reference: Reference, row: Judged) -> Support:
    state = row.verdict.state
    if reference.pair:
        return "said"
    if state == "too few seeds":
        return "too few seeds"
    if reference.alike:
        return "alike" if state == "not separated" else "contradicted"
    if state == "not separated":
        return "not separated"
    return "shown" if {"first": row.first, "second": row.second}[state] == reference.ahead else "contradicted"


def _values(reference: Reference, source: Source) -> list[Figure]:
    assert source.results is not None
    found = []
    title = next((number_title(one) for one in source.study.also if one.name == reference.number), "")
    for cell in cells(source.study):
        values = list(values_of(source.results, reference.value, cell, reference.number or "value").values())
        if _at(reference, cell) and values:
            said = f"{title or number_title(source.study.metric)}: {reference.value} {_span(values)}"
            text = f"{said} on {count(len(values))}."
            support, setting = _within(reference, interval(values)), source.setting(cell, reference.value)
            beside = source.beside(cell)
            found.append(Figure(source.name, source.title, place(cell), text, support, setting, beside))
    return found


def _within(reference: Reference, found: Interval) -> Support:
    """Whether a mean keeps to the reference's limits, and its interval too; that alone carries no order."""
    if reference.least is None and reference.most is None:
        return "said"
    if found.low is None or found.high is None:
        return "too few seeds"
    least, most = -math.inf if reference.least is None else reference.least, reference.most
    most = math.inf if most is None else most
    if not least <= found.mean <= most:
        return "contradicted"
    return "alike" if least <= found.low and found.high <= most else "not separated"


def _span(values: list[float]) -> str:
    found = interval(values)
    if found.low is None or found.high is None:
        return figure(found.mean)
    return f"{figure(found.mean)} ({figure(found.low)} to {figure(found.high)})"


def _outcomes(source: Source) -> Iterator[Outcome]:
    assert source.results is not None
    for cell in cells(source.study):
        for configuration in source.study.configuration:
            ended = list(values_of(source.results, configuration.name, cell).values())
            starts = list(values_of(source.results, configuration.name, cell, "start").values())
            if not ended:
                continue
            objective = key_of(objective_of(source.config({}, configuration.name)))
            runs = [run for run in reported(source.results, configuration.name, cell) if "collapsed" in run]
            collapsed = sum(run["collapsed"] for run in runs)
            yield Outcome(
                study=source.name,
                cell=place(cell),
                metric=number_title(source.study.metric),
                configuration=configuration.name,
                objective=objective,
                mean=statistics.fmean(ended),
                text=f"{_span(ended)} on {count(len(ended))}"
                + (f", {collapsed} of {len(runs)} collapsed" if collapsed else ""),
                start=figure(statistics.fmean(starts)) if starts else "",
                setting=source.setting(cell, configuration.name),
                beside=source.beside(cell),
            )


def _alarm(reference: Reference, evidence: Evidence) -> Figure:
    signals = {signal.key: signal for signal in diagnosis.SIGNALS}
    if reference.signal not in signals:
        raise Refused(f"the diagnosis has no signal {reference.signal!r}; {nearest(reference.signal, signals)}")
    signal = signals[reference.signal]
    if reference.published and signal.published is None:
        raise Refused(f"no threshold is published for the signal {reference.signal!r}")
    heard = diagnosis.hear(evidence.diagnosed, signal, reference.published)
    said = f"{'below' if signal.low else 'above'} {signal.published:g}" if reference.published else "outside that range"
    text = (
        f"{signal.title}, {said}: before the fall in {len(heard.leads)} of {heard.collapsed} collapsing runs, and in "
        f"{heard.false_alarms} of {heard.healthy} that held."
    )
    title, setting = "Which number speaks before a collapse?", Setting()
    return Figure(diagnosis.NAME, title, "all runs", text, _alarmed(reference, heard), setting)


def _alarmed(reference: Reference, heard: diagnosis.Heard) -> Support:
    if reference.least is None and reference.most is None:
        return "said"
    if not heard.collapsed or not heard.healthy:
        return "too few seeds"
    foretold, false = len(heard.leads) / heard.collapsed, heard.false_alarms / heard.healthy
    few = reference.most is None or foretold <= reference.most
    often = reference.least is None or false >= reference.least
    return "shown" if few and often else "contradicted"


def _at(reference: Reference, cell: Mapping[str, Value]) -> bool:
    return all(cell.get(key) in _listed(given) for key, given in reference.at.items())


def _listed(given: Value | list[Value]) -> list[Value]:
    return given if isinstance(given, list) else [given]
