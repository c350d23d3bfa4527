"""`holdfast launch --backend trl run.toml`: the same run file with our trainer, with TRL or with verl."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from holdfast.errors import ConfigError, nearest
from holdfast.launch.runfile import BACKENDS, RunFile, load_run_file
from holdfast.train.keep.folder import RunFolder, free_folder
from holdfast.train.settings.device import refuse_several_processes


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    made = argparse.ArgumentParser(
        prog="holdfast launch",
        usage="holdfast launch CONFIG --backend local|trl|verl [--dry-run] [--run-dir DIR] [--section.key VALUE ...]",
        description="Run one TOML file with our trainer, with TRL or with verl. What a trainer cannot honour is "
        "refused by name.",
        epilog="The file is that of holdfast train, with a table for each trainer's own settings: [local], [trl], "
        "[verl]. Several GPUs with TRL: accelerate launch -m holdfast launch CONFIG --backend trl --run-dir DIR",
        allow_abbrev=False,
    )
    made.add_argument("--backend", help="local, trl or verl")
    made.add_argument("--dry-run", action="store_true", help="check everything, print what would run, start nothing")
    made.add_argument("--run-dir", type=Path, help="folder to write (default: runs/NAME, or the next free one)")
    return made


def run(argv: list[str]) -> int:
    """Start the run, or print what would be started; errors as HoldfastError."""
    options, rest = parser().parse_known_args(argv)
    files, overrides = files_and_overrides(rest)
    if options.backend not in BACKENDS:
        raise ConfigError(f"--backend {options.backend}: {nearest(str(options.backend), BACKENDS)}")
    if len(files) != 1:
        raise ConfigError("which run? one TOML file: holdfast launch run.toml --backend trl")
    chosen = load_run_file(files[0], options.backend, overrides)
    folder = options.run_dir or free_folder(Path("runs") / files[0].stem)
    if options.dry_run:
        print(_show(chosen, options.backend, folder))
        return 0
    if options.backend == "local":
        refuse_several_processes(str(files[0]))
    return _start(chosen, options.backend, folder, named=options.run_dir is not None)


def files_and_overrides(arguments: list[str]) -> tuple[list[Path], list[str]]:
    """The run file may stand anywhere; what follows `--section.key` is its value.

    >>> files_and_overrides(["--steps", "3", "run.toml", "--trl.use_vllm=true"])
    ([PosixPath('run.toml')], ['--steps', '3', '--trl.use_vllm=true'])
    """
    files, overrides, rest = [], [], list(arguments)
    while rest:
        argument = rest.pop(0)
        if not argument.startswith("--"):
            files.append(Path(argument))
            continue
        overrides.append(argument)
        if "=" not in argument and rest:
            overrides.append(rest.pop(0))
    return files, overrides


def _show(chosen: RunFile, backend: str, folder: Path) -> str:
    if backend == "trl":
        from holdfast.launch import trl

        return trl.show(chosen, folder)
    if backend == "verl":
        from holdfast.launch import verl

        return verl.show(chosen, folder)
    from holdfast.launch import local

    return local.show(chosen)


def _start(chosen: RunFile, backend: str, folder: Path, *, named: bool) -> int:
    rank, world = (int(os.environ.get(name, default)) for name, default in (("RANK", "0"), ("WORLD_SIZE", "1")))
    if world > 1 and not named:
        raise ConfigError("several processes must agree on the run folder: give it with --run-dir")
    if rank == 0:
        RunFolder.create(folder, chosen.config)
    if backend == "trl":
        from holdfast.launch import trl

        return trl.run(chosen, folder)
    if backend == "verl":
        from holdfast.launch import verl

        return verl.run(chosen, folder)
    from holdfast.train.session import run_session

    return run_session(chosen.config, RunFolder(folder)).exit_code
