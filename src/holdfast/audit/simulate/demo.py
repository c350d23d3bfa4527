"""`holdfast audit --demo`: a healthy simulated run and one with each fault, audited; an index links the reports."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from holdfast.audit.judge.advice import advise_on
from holdfast.audit.judge.auditor import Audit, Auditor
from holdfast.audit.judge.verdict import verdict_of
from holdfast.audit.read.columns import pack
from holdfast.audit.read.reading import Reading
from holdfast.audit.show.outputs import write_reports
from holdfast.audit.show.page import Entry, write_index
from holdfast.audit.show.terminal import STYLES, line
from holdfast.audit.simulate import FAULTS, clean_run
from holdfast.audit.simulate.letters import Letters
from holdfast.rollout.store import write_rollouts
from holdfast.types import Rollout

SEED = 7
SMALL = {"prompts": 8, "group_size": 4, "mean_length": 80}
"""256 rollouts of some 80 tokens: enough for every check to speak."""


@dataclass(frozen=True)
class Case:
    """One run of the demo: `check` is the check that must speak, empty for the healthy run, where none may."""

    name: str
    planted: str
    check: str
    make: Callable[[], list[Rollout]]


def run_demo(out: Path, console: Console) -> int:
    """Make, audit and report every case; 0 when every fault was found and the healthy run is clean, else 1."""
    entries = []
    table = Table(box=None, title="What the audit finds", title_justify="left", padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("run", no_wrap=True)
    table.add_column("planted", ratio=2)
    table.add_column("verdict")
    table.add_column("what it says", ratio=3)
    todo = list(cases())
    for case in track(todo, "auditing", console=console, transient=True, disable=not console.is_terminal):
        entry = _report(case, out)
        entries.append(entry)
        if not console.is_terminal:
            console.print(line(f"{len(entries)} of {len(todo)}: {entry.name}: {entry.tone}"), soft_wrap=True)
        tone = entry.tone if entry.as_expected else f"{entry.tone} (not as expected)"
        table.add_row(line(entry.name), line(entry.planted), line(tone, STYLES[entry.tone]), line(entry.headline))
    index = write_index(out / "index.html", entries)
    console.print(table)
    wrong = [entry.name for entry in entries if not entry.as_expected]
    if wrong:
        console.print(line(f"\nnot as expected: {', '.join(wrong)}"), soft_wrap=True)
    console.print(line(f"\nopen {index}"), soft_wrap=True)
    return int(bool(wrong))


def _report(case: Case, out: Path) -> Entry:
    rollouts = case.make()
    folder = out / case.name
    audit = audit_rollouts(rollouts, str(folder / "rollouts.parquet"))
    page, _ = write_reports(folder, audit, advise_on(audit), title=case.name.replace("_", " "))
    write_rollouts(folder / "rollouts.parquet", rollouts)
    return _entry(case, audit, page.relative_to(out).as_posix())


def cases() -> Iterator[Case]:
    """The healthy run, then every fault at its plainest strength, each in a run in which it can show."""
    healthy = functools.cache(lambda **run: clean_run(SEED, **{"age": 1, "texts": True, **SMALL, **run}))
    yield Case("healthy", "nothing: weights one step old, ordinary numerics", "", healthy)
    for fault in FAULTS.values():
        strength = fault.strengths[-1]

        def faulty(fault=fault, strength=strength) -> list[Rollout]:
            return fault.apply(healthy(**fault.run), strength, np.random.default_rng(SEED))

        yield Case(fault.name, fault.describe.format(strength=strength), fault.check, faulty)


def audit_rollouts(rollouts: list[Rollout], source: str) -> Audit:
    """An audit of rollouts in memory."""
    auditor = Auditor(Reading(codec=Letters()))
    for chunk in pack(rollouts):
        auditor.feed(chunk, source)
    return auditor.result()


def _entry(case: Case, audit: Audit, href: str) -> Entry:
    verdict = verdict_of(audit)
    spoke = {f.name: f.headline for f in (*audit.findings, *audit.withheld) if f.severity != "info"}
    right = case.check in spoke if case.check else not spoke
    return Entry(case.name, case.planted, verdict.tone, spoke.get(case.check, verdict.headline), href, right)
