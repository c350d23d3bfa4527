"""verl's own config, composed as one of its entry points composes it, and checked without starting anything."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir, initialize_config_module
from verl.utils.config import omega_conf_to_dataclass

from holdfast.errors import ConfigError
from holdfast.integrations.verl.check import traps
from holdfast.integrations.verl.check.memory import gather_note
from holdfast.integrations.verl.check.require import require
from holdfast.integrations.verl.config import loss_config
from holdfast.integrations.verl.loss import level_1_objective
from holdfast.integrations.verl.names import TRAINER_MODE, is_ours

ENTRIES = {
    "verl.trainer.main_ppo": "ppo_trainer",
    "verl.experimental.fully_async_policy.fully_async_main": "fully_async_ppo_trainer",
    "verl.experimental.one_step_off_policy.main_ppo": "one_step_off_ppo_trainer",
}
"""verl's entry points with their default config; each has its configs in the package `config` beside it."""


@dataclass(frozen=True)
class CommandLine:
    """A command line of verl: the entry point, where its config is, and the overrides."""

    entry: str
    config_name: str
    config_path: str | None
    config_dir: str | None
    overrides: tuple[str, ...]


def command_line(arguments: Sequence[str]) -> CommandLine:
    """The arguments of a `main_ppo` run, with `python -m MODULE` before them or without.

    Raises:
        ConfigError: an option that Hydra does not have.
    """
    words, entry = list(arguments), "verl.trainer.main_ppo"
    starts = [place for place, word in enumerate(words[:-1]) if word == "-m" and words[place + 1].startswith("verl.")]
    if starts:
        entry, words = words[starts[0] + 1], words[starts[0] + 2 :]
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config-name", "-cn")
    parser.add_argument("--config-path", "-cp")
    parser.add_argument("--config-dir", "-cd")
    parser.add_argument("overrides", nargs="*")
    options, rest = parser.parse_known_intermixed_args(words)
    if unknown := [word for word in rest if word.startswith("-")]:
        raise ConfigError(f"{unknown[0]}: not an option of verl's entry points (--config-name, --config-path, -dir)")
    name = (options.config_name or ENTRIES.get(entry, "ppo_trainer")).removesuffix(".yaml")
    return CommandLine(entry, name, options.config_path, options.config_dir, tuple(options.overrides))


def composed(arguments: Sequence[str]) -> Any:
    """The config of `python -m verl.trainer.main_ppo ARGUMENTS`; Hydra's errors name the override they refuse.

    Raises:
        ConfigError: no config of this name where the command line looks for it.
    """
    line = command_line(arguments)
    overrides = list(line.overrides)
    if line.config_name.startswith("one_step_off_ppo"):
        # This config names verl's folder from the root of verl's sources, where nobody with a wheel stands.
        overrides.append("hydra.searchpath=[pkg://verl.trainer.config]")
    if line.config_dir is not None:
        # This replaces a searchpath of the config's own, so verl's folder has to be in it.
        folders = [Path(line.config_dir).absolute(), *filter(Path.is_dir, _folders(line))]
        overrides.append(f"hydra.searchpath=[{','.join(f'file://{os.path.normpath(path)}' for path in folders)}]")
    with _config_folder(line):
        return compose(config_name=line.config_name, overrides=overrides)


def report(config: Any) -> Iterator[str]:
    """What would be trained, then every trap, a paragraph each.

    Raises ConfigError for an objective that the chosen level cannot train.
    """
    if (text := explained(config)) is not None:
        yield text
    yield from map(str, traps.find(config))


def explained(config: Any) -> str | None:
    """The objective of this config in formulas, None where it is verl's own loss.

    Raises ConfigError for an objective that the chosen level cannot train.
    """
    actor = omega_conf_to_dataclass(config.actor_rollout_ref.actor)
    settings = loss_config(actor)
    if (config.trainer.get("v1") or {}).get("trainer_mode") == TRAINER_MODE:
        objective = require(config, actor)
        return objective.explain() + gather_note(config, objective)
    return level_1_objective(settings).explain() if is_ours(settings.loss_mode) else None


def _config_folder(line: CommandLine) -> AbstractContextManager[Any]:
    """Hydra initialised where the config is: an absolute folder, one beside an entry point, or a package."""
    path = line.config_path or "config"
    if path.startswith("pkg://"):
        return initialize_config_module(path.removeprefix("pkg://").replace("/", "."), version_base=None)
    folders = _folders(line)
    folders += [Path(line.config_dir).absolute()] if line.config_dir is not None else []
    for folder in folders:
        if folder.joinpath(f"{line.config_name}.yaml").is_file():
            return initialize_config_dir(os.path.normpath(folder), version_base=None)
    looked = ", ".join(dict.fromkeys(os.path.normpath(folder) for folder in folders))
    raise ConfigError(f"--config-name {line.config_name}: no such config in {looked}; give --config-path")


def _folders(line: CommandLine) -> list[Path]:
    """Where verl's entry points have their configs; people check a line of another one without naming it."""
    return [_beside(entry) / (line.config_path or "config") for entry in dict.fromkeys([line.entry, *ENTRIES])]


def _beside(entry: str) -> Path:
    """The folder of an entry point's file; Hydra looks for its config from there."""
    try:
        spec = find_spec(entry.rpartition(".")[0])
    except ImportError:
        spec = None
    return Path(next(iter(spec.submodule_search_locations or []), "")) if spec is not None else Path()
