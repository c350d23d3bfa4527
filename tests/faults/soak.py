"""A long run takes no more memory and no more descriptors at its end than after its first third."""

from __future__ import annotations

import json
from pathlib import Path

import tomli_w

from faults.files import memory
from faults.kills import KINDS, forked, without_processes
from faults.told import Told

MOST_GROWTH = 30 << 20
"""Bytes by which the memory of two thirds of the run may grow; a leak of 100 kB a step takes 20 MB of 300 steps."""


def soak(steps: int, folder: Path) -> list[Told]:
    """One synchronous and one asynchronous run of so many steps, looked at after each."""
    out = []
    for kind, settings in KINDS.items():
        told = Told(f"steps of one {kind} run", tries=steps)
        out.append(told)
        if not steps:
            continue
        file, seen = folder / f"soak-{kind}.toml", folder / f"soak-{kind}.json"
        every = {"checkpoint": {"every": 25, "keep": 2}, "evaluation": {"every": 50, "problems": 2}}
        file.write_text(tomli_w.dumps(settings | every | {"steps": steps}))
        code = forked(lambda: _run(file, seen), folder / "soak.log")  # noqa: B023
        if code:
            told.fault(f"exit code {code}")
            continue
        looked = json.loads(seen.read_text())
        (before, opened), (after, open_now) = looked[len(looked) // 3], looked[-1]
        told.facts = {
            "MB after a third": before // 10**6,
            "MB at the end": after // 10**6,
            "descriptors after a third": opened,
            "at the end": open_now,
        }
        if after - before > MOST_GROWTH or open_now > opened:
            told.fault(f"{before / 1e6:.0f} MB and {opened} descriptors became {after / 1e6:.0f} MB and {open_now}")
    return out


def _run(file: Path, seen: Path) -> int:
    """Train, and note memory and descriptors with every line of metrics.jsonl."""
    without_processes()
    from holdfast.cli import dispatch
    from holdfast.train.keep.folder import RunFolder

    append, looked = RunFolder.append_metrics, []

    def noted(self: RunFolder, record: dict[str, object]) -> None:
        append(self, record)
        looked.append((memory("VmRSS"), len(list(Path("/proc/self/fd").iterdir()))))

    RunFolder.append_metrics = noted  # pyright: ignore[reportAttributeAccessIssue]
    code = dispatch(["train", str(file), "--run-dir", str(seen.with_suffix(""))])
    seen.write_text(json.dumps(looked))
    return code
