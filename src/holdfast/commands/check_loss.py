"""`holdfast check-loss MODULE:FUNCTION`: the laws of policy losses, run against a loss of your own."""

from __future__ import annotations

import argparse
import json
from typing import Any

from holdfast.check_loss.report import check_loss
from holdfast.check_loss.shapes import SHAPES, build
from holdfast.errors import DataError


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    made = argparse.ArgumentParser(
        prog="holdfast check-loss",
        description="Run the laws of policy losses against your own: REINFORCE on policy, masks, padding, "
        "micro-batches, extreme ratios; and say which published objective it is.",
        epilog="holdfast check-loss my_losses.py:loss --shape plain; exit 0 fine, 1 a broken law, 2 unusable",
    )
    made.add_argument("loss", metavar="MODULE:FUNCTION", help="or path/to/file.py:function, or a class")
    made.add_argument("--shape", choices=list(SHAPES), default="plain", help="how its framework calls it")
    made.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of the loss or its framework (JSON)"
    )
    made.add_argument("--json", action="store_true", help="machine-readable")
    return made


def run(argv: list[str]) -> int:
    """Judge one loss; 0 where every law holds, 1 where one is broken."""
    options = parser().parse_args(argv)
    report = check_loss(build(options.loss, options.shape, dict(_setting(text) for text in options.set)))
    print(json.dumps(report.to_dict(), indent=1) if options.json else report.text())
    return 1 if report.broken else 0


def _setting(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise DataError(f"--set {text!r}: write KEY=VALUE, for example --set epsilon_high=0.28")
    try:
        return key, json.loads(value)
    except json.JSONDecodeError:
        return key, value
