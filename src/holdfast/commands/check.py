"""`holdfast check run.toml`: what can be known of a run before it starts; exit 0 fine, 1 it would fail, 2 unusable."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from rich.console import Console
from rich.markup import escape

from holdfast.errors import ConfigError, visible
from holdfast.train.settings.configfile import leading_files, load_config

COLOURS = {"ok": "green", "warning": "yellow", "error": "red"}


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    made = argparse.ArgumentParser(
        prog="holdfast check",
        usage="holdfast check CONFIG [--section.key VALUE ...] [--json]",
        description="Check a run's file in seconds: data, prompts as the model sees them, the reward of real answers, "
        "memory, what the objective needs from the engine. Loads no weights and leaves nothing behind.",
        epilog="exit codes: 0 fine, 1 the run would fail, 2 unusable input",
        allow_abbrev=False,
    )
    made.add_argument("--json", action="store_true", help="print a list of {part, status, text} instead")
    return made


def run(argv: list[str]) -> int:
    """Look at data, prompt template, reward, memory and what the objective needs; nothing is trained or written."""
    files, rest = leading_files(argv)
    options, overrides = parser().parse_known_args(rest)
    if len(files) != 1:
        raise ConfigError("check which run? give one TOML file: holdfast check examples/ledger_trm.toml")
    config = load_config(files[0], overrides)
    from holdfast.train.show.preview import preview

    lines, console = [], Console(highlight=False)
    for line in preview(config):
        lines.append(line)
        if not options.json:
            colour = COLOURS[line.status]
            text = escape(visible(line.text, keep="\n"))
            console.print(f"[{colour}]{line.status:<8}[/] {line.part:<10} {text}", soft_wrap=True)
    if options.json:
        print(json.dumps([asdict(line) for line in lines]))
    failed = sum(line.status == "error" for line in lines)
    if not options.json:
        end = f"{failed} errors: the run would fail" if failed else f"ready: holdfast train {files[0]}"
        console.print(visible(end), markup=False, soft_wrap=True)
    return 1 if failed else 0
