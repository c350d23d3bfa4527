"""The completion script of a shell, made by shtab from the parsers of all commands."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

from pydantic import BaseModel

from holdfast.cli import COMMANDS, available
from holdfast.errors import ConfigError
from holdfast.objectives.presets import list_presets
from holdfast.train.settings.config import RunConfig

SHELLS = ("bash", "zsh", "fish")
OVERRIDING = ("train", "demo", "advise", "check", "compare", "launch", "preflight")
"""Commands that take every key of a run's file as an option."""
TAKES_FILES = ("train", "advise", "check", "compare", "launch", "preflight")
"""Commands that take TOML files which their parser does not see."""


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    made = argparse.ArgumentParser(
        prog="holdfast completion",
        description="Print a script that completes holdfast's commands, options, keys and presets in your shell.",
        epilog='bash: eval "$(holdfast completion bash)" in ~/.bashrc; zsh: the same in ~/.zshrc after compinit; '
        "fish: holdfast completion fish > ~/.config/fish/completions/holdfast.fish",
        allow_abbrev=False,
    )
    made.add_argument("shell", choices=SHELLS, help="whose script")
    return made


def run(argv: list[str]) -> int:
    """Print the script; raises ConfigError where shtab is missing."""
    shell = parser().parse_args(argv).shell
    try:
        import shtab
    except ImportError:
        raise ConfigError("completion needs the package shtab: pip install 'shtab>=1.13'") from None
    whole = whole_parser()
    for action in _path_actions(whole):
        action.complete = shtab.FILE  # type: ignore[attr-defined]
    print(shtab.complete(whole, shell=shell))
    return 0


def whole_parser() -> argparse.ArgumentParser:
    """One parser with a subcommand for each command of this installation."""
    whole = argparse.ArgumentParser(prog="holdfast", allow_abbrev=False)
    whole.add_argument("--version", "-V", action="store_true", help="print the version")
    commands = whole.add_subparsers(dest="command", metavar="COMMAND")
    for name in available():
        own = _parser_of(name)
        words = COMMANDS[name].replace("%", "%%")
        sub = commands.add_parser(name, help=words, parents=[own] if own else [], add_help=own is None)
        if name in TAKES_FILES:
            sub.add_argument("configs", nargs="*", type=Path, metavar="CONFIG", help="TOML file of a run")
        if name in OVERRIDING:
            _add_keys(sub)
        if name == "presets":
            next(a for a in sub._actions if a.dest == "name").choices = sorted(list_presets())
    return whole


def _parser_of(name: str) -> argparse.ArgumentParser | None:
    module = import_module(f"holdfast.commands.{name.replace('-', '_')}")
    build = getattr(module, "parser", None)
    if name == "completion":
        build = parser
    return build() if build is not None else None


def _add_keys(sub: argparse.ArgumentParser) -> None:
    taken = {option for action in sub._actions for option in action.option_strings}
    for key, words in keys_of_runs():
        if f"--{key}" not in taken:
            sub.add_argument(f"--{key}", metavar="VALUE", help=words.replace("%", "%%"))


def keys_of_runs() -> Iterator[tuple[str, str]]:
    """Every key of a run's file by its dotted name, with what it means."""
    for name, field in RunConfig.model_fields.items():
        kind, alias = field.annotation, field.alias or name
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from ((f"{alias}.{key}", inner.description or "") for key, inner in kind.model_fields.items())
        else:
            yield alias, field.description or ""


def _path_actions(whole: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in whole._actions:
        if isinstance(action, argparse._SubParsersAction):
            for sub in action.choices.values():
                yield from _path_actions(sub)
        elif action.type is Path:
            yield action
