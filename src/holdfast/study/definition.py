"""A study's file: the claim, what would refute it, configurations, factors, seeds and the number that decides.

Everything that decides is written down before a run is started; the results carry the hash of it.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from holdfast.errors import ConfigError, nearest
from holdfast.train.settings.section import Section, keys_of

_NAME = r"^[A-Za-z0-9][A-Za-z0-9 .,=+/()-]*$"
Value = str | int | float | bool


class Seeds(Section):
    """Seeds on which settings are chosen, and other seeds on which they are reported."""

    tuning: list[int] = Field(default_factory=list)
    reporting: list[int] = Field(min_length=1)

    @model_validator(mode="after")
    def _apart(self) -> Seeds:
        for name, seeds in (("tuning", self.tuning), ("reporting", self.reporting)):
            if len(set(seeds)) < len(seeds) or min(seeds, default=0) < 0:
                raise ValueError(f"{name} = {seeds}: each seed once, and none below 0")
        if shared := sorted(set(self.tuning) & set(self.reporting)):
            raise ValueError(
                f"seeds {shared} are both for tuning and for reporting; a setting chosen on a seed looks better on it "
                "than it is: take others for reporting"
            )
        return self


class Number(Section):
    """One number of a run, made from a key of metrics.jsonl."""

    key: str = Field(min_length=1, description="a number of metrics.jsonl, such as eval_reward")
    of: Literal["last", "mean", "area", "lowest", "highest"] = "last"
    title: str = Field(min_length=1)

    @property
    def name(self) -> str:
        """What results call it."""
        return f"{self.key}:{self.of}"


class Metric(Number):
    """The number that decides."""

    failed: float = Field(description="what a run that broke counts as: it is an outcome, not a gap")
    lowest: bool = Field(default=False, description="the lowest is the best")
    collapse: float | None = Field(
        default=None, ge=0.0, description="a run has collapsed where the number ends below this share of its start"
    )


class Factor(Section):
    """A key of the run that takes several values; every combination of the factors' values is a cell."""

    name: str = Field(pattern=_NAME)
    key: str = Field(min_length=1)
    values: list[Value] = Field(min_length=1)


class Configuration(Section):
    """What is compared: keys of the run, some of them to be chosen on the tuning seeds."""

    name: str = Field(pattern=_NAME)
    set: dict[str, Any] = Field(default_factory=dict)
    tune: dict[str, list[Value]] = Field(default_factory=dict, description="key = values; every combination is tried")


class Tuning(Section):
    """In which cell the settings are chosen; absent factors take their first value."""

    at: dict[str, Value] = Field(default_factory=dict)


class Comparison(Section):
    """Which configurations are held against which one, named before any result is seen."""

    first: list[str] = Field(default_factory=list, description="absent: all others")
    second: str
    at: dict[str, list[Value]] = Field(default_factory=dict, description="factor = values; absent: every cell")
    claim: bool = Field(default=False, description="the claim stands or falls with it: first is said to be better")
    number: str = Field(
        default="", description="absent: the metric; else one of `also` such as entropy:last, in which higher is meant"
    )


class Study(Section):
    """One study."""

    title: str = Field(min_length=1)
    claim: str = Field(min_length=1)
    refuted_by: str = Field(min_length=1)
    about: str = Field(default="", description="the setting in words, and what it cannot show")
    base: dict[str, Any]
    seeds: Seeds
    metric: Metric
    also: list[Number] = Field(default_factory=list)
    factor: list[Factor] = Field(default_factory=list)
    configuration: list[Configuration] = Field(min_length=1)
    tuning: Tuning = Field(default_factory=Tuning)
    comparison: list[Comparison] = Field(default_factory=list)

    @model_validator(mode="after")
    def _names_once(self) -> Study:
        for kind, parts in (("configuration", self.configuration), ("factor", self.factor)):
            names = [part.name for part in parts]
            if len(set(names)) < len(names):
                raise ValueError(f"{kind} names {names}: each once")
        if not any(found.claim for found in self.comparison):
            raise ValueError("no comparison has claim = true, so no result could refute the claim")
        for found in self.configuration:
            if found.tune and not self.seeds.tuning:
                raise ValueError(
                    f"configuration {found.name!r} is tuned, but seeds.tuning is empty; nearest valid value: [0, 1]"
                )
        return self

    @model_validator(mode="after")
    def _comparisons_exist(self) -> Study:
        names = [found.name for found in self.configuration]
        for number, found in enumerate(self.comparison, 1):
            for name in (*found.first, found.second):
                if name not in names:
                    raise ValueError(f"comparison {number}: no configuration {name!r}; {nearest(name, names)}")
            if found.second in found.first:
                raise ValueError(f"comparison {number}: {found.second!r} is compared with itself")
            others = [other.name for other in self.also]
            if found.number and found.number not in others:
                raise ValueError(
                    f"comparison {number}: no number {found.number!r} in also; {nearest(found.number, others)}"
                )
            for factor, values in found.at.items():
                for value in values:
                    self._check_place(f"comparison {number}", factor, value)
        for factor, value in self.tuning.at.items():
            self._check_place("tuning.at", factor, value)
        return self

    def _check_place(self, where: str, factor: str, value: Value) -> None:
        known = {found.name: found.values for found in self.factor}
        if factor not in known:
            raise ValueError(f"{where}: no factor {factor!r}; {nearest(factor, known)}")
        if value not in known[factor]:
            raise ValueError(f"{where}: factor {factor!r} has no value {value!r} (allowed: {known[factor]})")

    @property
    def hash(self) -> str:
        """Names everything the study says: a result belongs to the file whose hash it carries.

        Defaults are left out, so that a key that comes later leaves the hash of every older study as it is.
        """
        text = json.dumps(self.model_dump(mode="json", exclude_defaults=True), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_study(path: Path) -> Study:
    """Read a study's file; `base` is a table, or the path of a run's file from the study's folder.

    Raises:
        ConfigError: the file is missing or not TOML, a key is unknown, a value is wrong, or names do not fit together.
    """
    values = _toml(path)
    base = values.get("base")
    if isinstance(base, str):
        values["base"] = _toml(path.parent / base)
    return parse_study(values, str(path))


def parse_study(values: Any, origin: str) -> Study:
    """Check plain values.

    Raises:
        ConfigError: with one line per problem.
    """
    try:
        return Study.model_validate(values)
    except ValidationError as error:
        lines = [_explain(detail) for detail in error.errors()]
        raise ConfigError(f"{origin}: " + "\n".join(lines)) from None


def find_study(name: str, folder: Path) -> Path:
    """The file of a study given by path, or by its name in `folder`.

    Raises:
        ConfigError: there is none.
    """
    if name.endswith(".toml") or "/" in name:
        return Path(name)
    known = sorted(path.stem for path in folder.glob("*.toml"))
    if name not in known:
        there = nearest(name, known) if known else f"{folder} has none"
        raise ConfigError(f"no study {name!r} in {folder}: {there}; or give the path of a TOML file")
    return folder / f"{name}.toml"


def _toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"no file {path}; give the name of a study in studies/, or the path of one") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from None
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None


def _explain(detail: Any) -> str:
    """One pydantic error as a sentence."""
    location = [str(part) for part in detail["loc"]]
    key, value = ".".join(location), detail["input"]
    if detail["type"] == "extra_forbidden":
        return f"unknown key {key!r}; {nearest(location[-1], _keys(location[:-1]))}"
    if detail["type"] == "missing":
        return f"{key} is required"
    if detail["type"] == "value_error":
        return f"{key + ': ' if key else ''}{detail['ctx']['error']}"
    return f"{key} = {value!r}: {detail['msg'].lower()}"


def _keys(location: list[str]) -> list[str]:
    tables: dict[str, type[Section]] = {
        "seeds": Seeds,
        "metric": Metric,
        "also": Number,
        "factor": Factor,
        "configuration": Configuration,
        "tuning": Tuning,
        "comparison": Comparison,
    }
    return list(keys_of(tables[location[0]] if location else Study))
