"""`holdfast advise RUN.toml|ROLLOUTS`: what was measured on trained models that speaks to a run, and what to set."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from holdfast.advice.advising import Advised, Reader, advise_reader
from holdfast.advice.change import changed
from holdfast.advice.lines import Change, read_lines
from holdfast.advice.measured import read_measured
from holdfast.advice.rollouts import proposed_masks, setting_of_audit
from holdfast.advice.setting import Setting, setting_of
from holdfast.advice.show import Fitted, advised_dict, exit_code, in_words
from holdfast.errors import ConfigError, visible
from holdfast.train.settings.config import RunConfig
from holdfast.train.settings.configfile import build_config, leading_files, read_toml, with_overrides
from holdfast.train.settings.section import keys_of

BACKENDS = ("trl", "verl")
NOT_READ = (".yaml", ".yml", ".sh", ".py")
OTHERS = (
    "For a run of another trainer give its rollouts, and what they do not say: holdfast advise ROLLOUTS --engine.lag N "
    "--batch.minibatches N --objective.preset NAME"
)


def run(argv: list[str]) -> int:
    """Say it; 0 nothing to change, 1 something would be set, 2 unusable input, 3 nothing measured speaks to it."""
    from holdfast.preflight.plan import framework_named

    files, rest = leading_files(argv)
    options, overrides = parser().parse_known_args(rest)
    if len(files) != 1:
        raise ConfigError("advise on what? give one run's TOML file, one run folder, or one file or folder of rollouts")
    path = files[0]
    if path.suffix in NOT_READ:
        raise ConfigError(f"{path} is neither a run's TOML file nor rollouts. {OTHERS}")
    framework = framework_named(options.framework) if options.framework else None
    if path.suffix == ".toml":
        reader, fitted = _of_file(path, overrides, framework), None
        advised = advise_reader(read_lines(), read_measured(), reader)
    else:
        reader, advised, fitted, framework = _of_rollouts(path, overrides, framework, options)
    framework = framework or "Holdfast"
    name = visible(str(path))
    if options.json:
        found = advised_dict(name, reader, advised, fitted, framework)
        print(json.dumps(found, ensure_ascii=True, allow_nan=False))
    else:
        console = Console(highlight=False)
        for line in in_words(name, reader, advised, fitted, framework):
            console.print(visible(line, keep="\n"), markup=False, soft_wrap=True)
    return exit_code(advised, fitted)


def _of_file(path: Path, overrides: list[str], framework: str | None) -> Reader:
    from holdfast.launch.runfile import load_run_file

    values = read_toml(path)
    if not values:
        raise ConfigError(f"{path} is empty; write a run's file, or start from one: holdfast init, or examples/*.toml")
    if not {*keys_of(RunConfig), *BACKENDS, "local"} & set(values):
        raise ConfigError(f"{path} is no run's file: it has {', '.join(list(values)[:4])}, and no key of one. {OTHERS}")
    asked = (framework or "").lower()
    there = [name for name in BACKENDS if name in values]
    backend = asked if asked in BACKENDS else there[0] if len(there) == 1 else "local"
    return _reader(load_run_file(path, backend, overrides).config)  # type: ignore[arg-type]


def _reader(config: RunConfig) -> Reader:
    table = {"preset": config.objective.preset, **config.objective.options}
    return Reader(setting_of(config), table, brake=config.guard.brake != "off")


def _of_rollouts(
    path: Path, overrides: list[str], framework: str | None, options: argparse.Namespace
) -> tuple[Reader, Advised, Fitted, str | None]:
    """What the rollouts tell, then what is written beside them, then what is said on the command line."""
    from holdfast.audit.judge.advice import advise_on
    from holdfast.audit.judge.verdict import verdict_of
    from holdfast.audit.read.raw.names import own_columns
    from holdfast.audit.read.reading import Reading
    from holdfast.commands.audit import audit_path, tokenizer_of
    from holdfast.preflight.thresholds import REMEDIES, threshold_lines

    said = _said(path, overrides)
    reading = Reading(
        allow_pickle=options.allow_pickle, columns=own_columns(options.map), codec=tokenizer_of(options.tokenizer)
    )
    audit = audit_path(path, reading, console=Console(stderr=True))
    told = setting_of_audit(audit)
    both = {key: getattr(told, key) if value is None else value for key, value in vars(said.setting).items()}
    # What was seen goes before what was allowed.
    seen = {key: value for key in ("lag", "tokens") if (value := getattr(told, key)) is not None}
    reader = Reader(Setting(**both | ({} if overrides else seen)), said.objective, said.brake)
    advised = advise_reader(read_lines(), read_measured(), reader)
    sample = advise_on(audit)
    framework = framework or audit.framework
    masks = proposed_masks(sample)
    table = advised.objective or reader.objective
    for rule, mask in masks.items():
        table = None if table is None else changed(table, Change(add=[rule], set=_rounded(mask.settings)))
        if table is not None:
            more = (*advised.remedies, REMEDIES[rule]) if advised.remedies or not advised.changes else ()
            advised = replace(advised, objective=table, remedies=more)
    lines: Mapping[str, str] = {}
    if sample.advice is not None and table is None:
        lines = {rule: threshold_lines(sample.advice, framework or "Holdfast")[rule] for rule in masks}
    # What each mask would reject is the audit's to show.
    missing = tuple(text for text in sample.missing if not text.startswith("what these masks"))
    return reader, advised, Fitted(verdict_of(audit).headline, sample.advice, masks, lines, missing), framework


def _rounded(numbers: Mapping[str, Any]) -> dict[str, Any]:
    return {key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in numbers.items()}


def _said(path: Path, overrides: list[str]) -> Reader:
    """The config.toml of a run's folder with what is said on the command line; of other logs the latter alone."""
    folder = path.parent if path.name == "rollouts" or path.is_file() else path
    for beside in (folder / "config.toml", folder.parent / "config.toml"):
        if beside.is_file() and (beside.parent == folder or path.is_file()):
            values = with_overrides(read_toml(beside), overrides)
            return _reader(build_config(values, str(beside), spelt_out=True))
    config = build_config(with_overrides({}, overrides), "command line", spelt_out=True)
    known = bool(config.objective.model_fields_set)
    whole = _reader(config)
    return Reader(setting_of(config, written=True), whole.objective if known else None, whole.brake)


def parser() -> argparse.ArgumentParser:
    """The command's options; those of the run are given with their section."""
    made = argparse.ArgumentParser(
        prog="holdfast advise",
        usage="holdfast advise RUN.toml|ROLLOUTS [--framework F] [--json] [--section.key VALUE ...]",
        description="Which objective and which threshold for this staleness, length, engine and reuse: the lines of "
        "docs/choosing.md that speak to a run's file, a run folder or logged rollouts, each with its figures, and what "
        "of the run was not measured. Rollouts also get thresholds fitted to their drift.",
        epilog="What a log does not say is given as a key of a run: --engine.lag 4 --batch.minibatches 8 "
        "--objective.preset grpo. Exit code 0 nothing to change, 1 something would be set, 2 unusable input, 3 nothing "
        "measured speaks to the run.",
        allow_abbrev=False,
    )
    made.add_argument("--framework", metavar="F", help="whose lines to print beside ours: verl, TRL, ...")
    made.add_argument("--json", action="store_true", help="print everything as JSON instead")
    made.add_argument("--map", action="append", default=[], metavar="OURS=THEIRS", help="as of holdfast audit")
    made.add_argument("--tokenizer", type=Path, help="as of holdfast audit")
    made.add_argument("--allow-pickle", action="store_true", help="read pickles, which can run any code")
    return made
