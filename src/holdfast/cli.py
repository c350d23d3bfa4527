"""The command `holdfast`: finds the command's file, imports only that, and turns errors into messages."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec

from holdfast import __version__
from holdfast.errors import HoldfastError, nearest, visible

COMMANDS = {
    "demo": "train the built-in example and open its report: ten minutes",
    "init": "write a run's file for your model and your data",
    "train": "train a model from a TOML file",
    "advise": "which objective and threshold, by what was measured",
    "check": "look a run over in seconds: data, prompts, reward, memory",
    "preflight": "before training: is the engine the trainer's policy, and why not",
    "compare": "train several objectives on the same task and seeds",
    "study": "test a claim over seeds, and write its evidence",
    "report": "write a run's page anew, at any time",
    "presets": "list the published objectives, or explain one",
    "check-loss": "run the laws of policy losses against your own",
    "bounds": "what a measured drift can cost, and which threshold limits it",
    "lab": "small policies with a known truth: bounds, masks, certificates",
    "audit": "read logged rollouts and say where and why they drifted",
    "convert": "turn other frameworks' rollout logs into Holdfast's parquet",
    "watch": "run the audit's checks while a run writes",
    "launch": "run one TOML file with our trainer, with TRL or with verl",
    "completion": "print the script that completes all this in bash, zsh or fish",
}

LAYOUT = "\n\t"
"""What messages of several lines are laid out with; every other control character is spelt out."""

EXTRAS = dict.fromkeys(("transformers", "tokenizers", "safetensors", "tqdm"), "train")
"""Packages that a plain installation leaves out, and the extra that brings each."""


def main() -> None:
    """Entry point of the console script and of `python -m holdfast`."""
    raise SystemExit(dispatch(sys.argv[1:]))


def dispatch(argv: Sequence[str]) -> int:
    """Run one command and give its exit code: 0 fine, 1 findings or failed check, 2 unusable input, 130 interrupted."""
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if argv[0] in ("-V", "--version"):
        print(f"holdfast {__version__}")
        return 0
    name = argv[0]
    if name not in available():
        print(f"holdfast: unknown command {name!r}; {nearest(name, available())}", file=sys.stderr)
        return 2
    try:
        return import_module(_module(name)).run(list(argv[1:]))
    except HoldfastError as error:
        print(f"holdfast {name}: {visible(str(error), keep=LAYOUT)}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if package not in EXTRAS:
            raise
        fix = f"pip install 'holdfast-rl[{EXTRAS[package]}]'"
        print(f"holdfast {name}: this needs the package {package}, which is not installed: {fix}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\nholdfast {name}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output went away (`holdfast presets | head`)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.filename is None and error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise
        where = "" if error.filename is None else f" ({visible(os.fsdecode(error.filename))})"
        print(f"holdfast {name}: {error.strerror}{where}; what was complete on disk stays", file=sys.stderr)
        return 2


def available() -> list[str]:
    """The commands of this installation."""
    return [name for name in COMMANDS if find_spec(_module(name)) is not None]


def _module(name: str) -> str:
    return f"holdfast.commands.{name.replace('-', '_')}"


def usage() -> str:
    """The page of `holdfast --help`."""
    lines = [f"  {name:<10} {COMMANDS[name]}" for name in available()]
    return "\n".join(
        [
            "usage: holdfast COMMAND [options]      (holdfast COMMAND --help for its options)",
            "",
            "Keeps reinforcement learning of language models stable over long horizons.",
            "",
            *lines,
            "",
            "exit codes: 0 fine, 1 findings, 2 unusable input, 3 not judged, 130 interrupted",
        ]
    )
