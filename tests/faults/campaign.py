"""Kills, liars and hostile files, counted: prints a table, and with --write puts it into docs/faults.md.

python tests/faults/campaign.py --kills 300 --records 100000 --parquet 1000 --checkpoints 100 --soak 300
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import transformers  # noqa: F401  # before the forks, which share it

from faults.files import bombs, checkpoints, parquet
from faults.kills import kills
from faults.records import records
from faults.soak import soak
from faults.strangers import FUNCTIONS, SERVERS, rewards, servers
from faults.told import Told
from holdfast.rollout.store import LONGEST_ROW

PAGE = Path(__file__).parents[2] / "docs" / "faults.md"
MARK = "<!-- the last run -->"
GOALS = {
    "kills": 300,
    "records": 100_000,
    "parquet": 1000,
    "checkpoints": 100,
    "servers": len(SERVERS),
    "rewards": len(FUNCTIONS),
    "soak": 300,
}


def main() -> int:
    """Run what is asked for; 1 where there was a fault."""
    torch.set_num_threads(1)
    options = _parser().parse_args()
    with tempfile.TemporaryDirectory() as place:
        told = list(_parts(options, Path(place)))
    if options.json:
        print(json.dumps([vars(part) for part in told]))
    else:
        print(table(told))
    for fault in (fault for part in told for fault in part.faults):
        print(fault, file=sys.stderr)
    return 1 if any(part.faults for part in told) else 0


def _parts(options: argparse.Namespace, place: Path) -> list[Told]:
    """Cheap ones first; a run's kills last, after which its whole run is there for the checkpoints."""
    synchronous = -(-options.kills * 2 // 3)
    parts: list[Callable[[], Told | list[Told]]] = [
        lambda: servers(options.servers),
        lambda: rewards(options.rewards, place),
        lambda: bombs(place, longest=LONGEST_ROW if options.parquet >= 100 else 1 << 16),
        lambda: parquet(options.parquet, options.seed, place),
        lambda: records(options.records, options.seed),
        lambda: kills("sync", synchronous, options.seed, place),
        lambda: checkpoints(options.checkpoints, options.seed, place / "sync-whole" / "run", place / "damaged"),
        lambda: kills("async", options.kills - synchronous, options.seed, place),
        lambda: soak(options.soak, place),
    ]
    sys.path.insert(0, str(place))  # where the reward functions are
    out, began = [], time.monotonic()
    for part in parts:
        (place / "damaged").mkdir(exist_ok=True)
        found = part()
        out += (done := found if isinstance(found, list) else [found])
        for told in done if not options.json else ():
            print(f"{told.name}: {told.tries:,} tries, {len(told.faults)} faults", *told.faults, sep="\n  ", flush=True)
        if options.write:
            _write(options, out, time.monotonic() - began, whole=part is parts[-1])
        for log in place.glob("*.log") if options.logs else ():
            shutil.copy(log, options.logs)
    return out


def _write(options: argparse.Namespace, told: list[Told], seconds: float, *, whole: bool) -> None:
    """Put the parts that are done into the page, and say which counts are below the goals."""
    counts = " ".join(f"{name.upper()}={getattr(options, name)}" for name in GOALS)
    below = [f"{name} {n:,} of {goal:,}" for name, goal in GOALS.items() if (n := getattr(options, name)) < goal]
    said = f"`make faults {counts}`, {seconds / 60:.0f} minutes."
    said += "" if whole else " It was ended early: the parts below are those that were done."
    said += f" Below the goals: {', '.join(below)}." if below else ""
    text = PAGE.read_text(encoding="utf-8").partition(MARK)[0]
    PAGE.write_text(f"{text}{MARK}\n\n{said}\n\n{table(told)}\n", encoding="utf-8")


def table(told: list[Told]) -> str:
    """The campaign as a table of Markdown."""
    rows = ["| part | tries | faults | what came of them |", "|-|-|-|-|"]
    for part in told:
        facts = "; ".join(f"{name}: {count:,}" for name, count in part.facts.items())
        rows.append(f"| {part.name} | {part.tries:,} | {len(part.faults)} | {facts} |")
    return "\n".join(rows)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    for name, goal in GOALS.items():
        parser.add_argument(f"--{name}", type=int, default=goal, help=f"how many ({goal:,})")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print JSON, and nothing else")
    parser.add_argument("--write", action="store_true", help=f"write the table into {PAGE.name}")
    parser.add_argument("--logs", type=Path, help="a folder for what the killed runs said")
    return parser


if __name__ == "__main__":
    sys.exit(main())
