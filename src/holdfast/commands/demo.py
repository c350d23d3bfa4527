"""`holdfast demo`: the run of configs/demo.toml, and its report."""

from __future__ import annotations

import argparse
from importlib.resources import as_file, files
from pathlib import Path

from holdfast.train.keep.folder import RunFolder, free_folder
from holdfast.train.settings.configfile import load_config
from holdfast.train.settings.device import refuse_several_processes
from holdfast.train.show.loudness import add_loudness


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    made = argparse.ArgumentParser(
        prog="holdfast demo",
        description="Train a small model on a long-chain task under real drift, and write a report about it.",
        epilog="Every key of the demo's configuration can be overridden: --steps 20",
        allow_abbrev=False,
    )
    made.add_argument("--run-dir", type=Path, help="folder to write (default: runs/demo, or the next free one)")
    add_loudness(made)
    return made


def run(argv: list[str]) -> int:
    """Train the built-in example; 0 when finished, 130 when interrupted."""
    options, overrides = parser().parse_known_args(argv)
    refuse_several_processes()
    with as_file(files("holdfast.train.settings") / "configs" / "demo.toml") as path:
        config = load_config(path, overrides)
    folder = RunFolder.create(options.run_dir or free_folder(Path("runs/demo")), config)
    from holdfast.train.session import run_session

    return run_session(config, folder, level=options.log_level).exit_code
