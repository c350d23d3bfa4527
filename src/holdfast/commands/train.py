"""`holdfast train run.toml`: one training run in one folder."""

from __future__ import annotations

import argparse
from pathlib import Path

from holdfast.errors import ConfigError
from holdfast.train.keep.folder import RunFolder, free_folder
from holdfast.train.settings.config import RunConfig
from holdfast.train.settings.configfile import leading_files, load_config
from holdfast.train.settings.device import refuse_several_processes
from holdfast.train.show.loudness import add_loudness


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    made = argparse.ArgumentParser(
        prog="holdfast train",
        usage="holdfast train CONFIG [--run-dir DIR] [--section.key VALUE ...]\n"
        "       holdfast train --run-dir DIR --resume [--steps N]",
        description="Train a model from a TOML file.",
        epilog="Every key of the file can be overridden: --optimizer.learning_rate 1e-4 --steps 20",
        allow_abbrev=False,
    )
    made.add_argument("--run-dir", type=Path, help="folder to write (default: runs/NAME, or the next free one)")
    made.add_argument("--resume", action="store_true", help="continue the run in --run-dir from its last checkpoint")
    add_loudness(made)
    return made


def run(argv: list[str]) -> int:
    """Train; 0 when finished, 1 when the guard halted it, 130 when interrupted with the state saved; else an error."""
    files, rest = leading_files(argv)
    options, overrides = parser().parse_known_args(rest)
    if len(files) > 1:
        raise ConfigError(f"one run at a time, got {len(files)} files; holdfast compare runs several side by side")
    options.config = files[0] if files else None
    refuse_several_processes(str(options.config or "run.toml"))
    folder, config = _resumed(options, overrides) if options.resume else _started(options, overrides)
    from holdfast.train.session import run_session

    return run_session(config, folder, resume=options.resume, level=options.log_level).exit_code


def _started(options: argparse.Namespace, overrides: list[str]) -> tuple[RunFolder, RunConfig]:
    if options.config is None:
        raise ConfigError("which run? give a TOML file: holdfast train examples/ledger.toml (or `holdfast demo`)")
    config = load_config(options.config, overrides)
    folder = options.run_dir or free_folder(Path("runs") / options.config.stem)
    return RunFolder.create(folder, config), config


def _resumed(options: argparse.Namespace, overrides: list[str]) -> tuple[RunFolder, RunConfig]:
    if options.run_dir is None:
        raise ConfigError("--resume needs the run to continue: --run-dir runs/NAME")
    own = RunFolder(options.run_dir).config
    source = options.config or own
    known = source.is_file() or options.config
    config = load_config(source, overrides, spelt_out=source == own) if known else None
    return RunFolder.open(options.run_dir, config)
