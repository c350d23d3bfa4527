"""`holdfast train run.toml`: one training run in one folder."""

from __future__ import annotations

import argparse
from pathlib import Path

from holdfast.errors import ConfigError
from holdfast.train.configfile import load_config
from holdfast.train.folder import RunFolder, free_folder


def run(argv: list[str]) -> int:
    """Train; 0 when finished, 130 when interrupted with the state saved, errors as HoldfastError."""
    parser = argparse.ArgumentParser(
        prog="holdfast train",
        description="Train a model from a TOML file.",
        epilog="Every key of the file can be overridden: --optimizer.learning_rate 1e-4 --steps 20",
        allow_abbrev=False,
    )
    parser.add_argument("config", type=Path, help="TOML file; see examples/")
    parser.add_argument("--run-dir", type=Path, help="folder to write (default: runs/NAME, or the next free one)")
    parser.add_argument("--resume", action="store_true", help="continue the run in --run-dir from its last checkpoint")
    options, overrides = parser.parse_known_args(argv)
    config = load_config(options.config, overrides)
    if options.resume:
        if options.run_dir is None:
            raise ConfigError("--resume needs the run to continue: --run-dir runs/NAME")
        folder, config = RunFolder.open(options.run_dir, config)
    else:
        folder = RunFolder.create(options.run_dir or free_folder(Path("runs") / options.config.stem), config)
    from holdfast.train.session import run_session

    return run_session(config, folder, resume=options.resume).exit_code
