"""From a study to runs: every configuration in every cell with every seed, and the settings chosen by tuning."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from glob import escape
from pathlib import Path
from typing import Any, Literal

from holdfast.errors import ConfigError, HoldfastError
from holdfast.study.definition import Configuration, Study, Value
from holdfast.train.compare import Entry
from holdfast.train.settings.config import RunConfig
from holdfast.train.settings.configfile import build_config, read_toml

Settings = Mapping[str, Value]


@dataclass(frozen=True)
class Planned:
    """One run of a study: what it is for, and the run itself."""

    configuration: str
    cell: Settings
    seed: int
    purpose: Literal["tuning", "reporting"]
    settings: Settings
    config: RunConfig = field(repr=False)

    @property
    def folder(self) -> str:
        """Names the run by what it is: another configuration of the same name is another run."""
        text = json.dumps(self.config.to_dict(), sort_keys=True)
        words = [self.configuration, *(f"{k}={v}" for k, v in self.cell.items()), f"seed={self.seed}"]
        slug = re.sub(r"[^A-Za-z0-9.=+-]+", "_", "_".join(words)).strip("_")
        return f"{slug}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"

    def place(self, out: Path) -> Path:
        """Where the run is kept: under its name, or where a version that knew fewer keys named it.

        A key that came later stands in no older config.toml, so it has its default there; where all is equal then,
        it is the same run.
        """
        named = out / "runs" / self.folder
        if (named / "config.toml").is_file():
            return named
        wanted = self.config.to_dict()
        older = (out / "runs").glob(f"{escape(self.folder.rpartition('-')[0])}-*")
        return next((path for path in sorted(older) if _kept_config(path / "config.toml") == wanted), named)

    def entry(self, out: Path, warm_starts: Path) -> Entry:
        """The run as the comparison's runner takes it."""
        words = [self.configuration, *(f"{k} {v}" for k, v in {**self.cell, **self.settings}.items())]
        return Entry(", ".join(words), "", self.config, self.place(out), warm_starts)


def _kept_config(path: Path) -> dict[str, Any] | None:
    """What a config.toml says; None where there is none, or none that this version reads."""
    try:
        return build_config(read_toml(path), origin=str(path), spelt_out=True).to_dict()
    except HoldfastError:
        return None


def cells(study: Study) -> list[dict[str, Value]]:
    """Every combination of the factors' values, the last factor changing fastest; one empty cell without factors."""
    names = [factor.name for factor in study.factor]
    return [dict(zip(names, values, strict=True)) for values in itertools.product(*(f.values for f in study.factor))]


def tuning_cell(study: Study) -> dict[str, Value]:
    """Where settings are chosen."""
    return {factor.name: study.tuning.at.get(factor.name, factor.values[0]) for factor in study.factor}


def candidates(configuration: Configuration) -> list[dict[str, Value]]:
    """Every combination of the values to be tried; one empty one where nothing is tuned."""
    keys = list(configuration.tune)
    return [dict(zip(keys, values, strict=True)) for values in itertools.product(*configuration.tune.values())]


def plan_tuning(study: Study, origin: str) -> list[Planned]:
    """The runs that choose settings, seed by seed."""
    return [
        _planned(study, found, tuning_cell(study), seed, "tuning", settings, origin)
        for seed in study.seeds.tuning
        for found in study.configuration
        if found.tune
        for settings in candidates(found)
    ]


def plan_reporting(study: Study, chosen: Mapping[str, Settings], origin: str) -> list[Planned]:
    """The runs that are reported, seed by seed, so that a study that is cut short has whole seeds."""
    return [
        _planned(study, found, cell, seed, "reporting", chosen.get(found.name, {}), origin)
        for seed in study.seeds.reporting
        for cell in cells(study)
        for found in study.configuration
    ]


def choose(study: Study, value: Callable[[Planned], float | None], tuning: Sequence[Planned]) -> dict[str, Settings]:
    """The settings with the best mean over the tuning seeds; of equals, those that the file names first.

    `value` is the deciding number of a run, None where there is none yet. Configurations of which a run is missing
    are left out.
    """
    chosen: dict[str, Settings] = {}
    sign = -1 if study.metric.lowest else 1
    for found in study.configuration:
        if not found.tune:
            continue
        means: list[tuple[float, Settings]] = []
        for settings in candidates(found):
            runs = [run for run in tuning if run.configuration == found.name and run.settings == settings]
            values = [v for run in runs if (v := value(run)) is not None]
            if len(values) == len(study.seeds.tuning):
                means.append((sign * statistics.fmean(values), settings))
        if len(means) == len(candidates(found)):
            chosen[found.name] = max(means, key=lambda pair: pair[0])[1]
    return chosen


def total_runs(study: Study) -> int:
    """How many runs the study has, those that choose settings among them."""
    tried = sum(len(candidates(found)) for found in study.configuration if found.tune)
    reported = len(study.seeds.reporting) * len(cells(study)) * len(study.configuration)
    return len(study.seeds.tuning) * tried + reported


def check_plan(study: Study, origin: str) -> None:
    """Build every run's configuration once, before the first is started.

    Raises:
        ConfigError: a run that cannot be built, or two that are the same.
    """
    names: dict[str, Planned] = {}
    for found in study.configuration:
        for settings in candidates(found):
            for cell in cells(study):
                run = _planned(study, found, cell, study.seeds.reporting[0], "reporting", settings, origin)
                key = json.dumps(run.config.to_dict(), sort_keys=True)
                if (other := names.setdefault(key, run)) is not run:
                    raise ConfigError(
                        f"{origin}: {other.configuration!r} at {_words(other)} and {run.configuration!r} at "
                        f"{_words(run)} are the same run; leave one out"
                    )


def _words(run: Planned) -> str:
    return ", ".join(f"{k} = {v}" for k, v in {**run.cell, **run.settings}.items()) or "the base's settings"


def _planned(
    study: Study,
    found: Configuration,
    cell: Settings,
    seed: int,
    purpose: Literal["tuning", "reporting"],
    settings: Settings,
    origin: str,
) -> Planned:
    keys = {factor.name: factor.key for factor in study.factor}
    values = merge(study.base, {keys[name]: value for name, value in cell.items()})
    values = merge(merge(values, found.set), settings) | {"seed": seed}
    where = ", ".join([found.name, *(f"{k} = {v}" for k, v in cell.items())])
    return Planned(found.name, cell, seed, purpose, settings, build_config(values, f"{origin} ({where})"))


def merge(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Tables merged into tables; a key "section.name" is that section's `name`, whatever dots follow."""
    merged = dict(values)
    for key, value in changes.items():
        section, dot, name = key.partition(".")
        change = {name: value} if dot else value
        before = merged.get(section)
        if isinstance(change, Mapping) and (dot or isinstance(before, Mapping)):
            if before is not None and not isinstance(before, Mapping):
                raise ConfigError(f"{key}: {section} is a value, not a table")
            merged[section] = {**(before or {}), **change}
        else:
            merged[section] = change
    return merged
