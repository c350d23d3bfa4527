"""Damaged files: parquet of rollouts through the audit, and checkpoints, of which the newest intact one is taken."""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import dumps
from faults.kills import forked
from faults.told import Told
from holdfast.errors import HoldfastError
from holdfast.rollout.store import LONGEST_ROW, VERSION_KEY, write_rollouts

Seen = tuple[int, dict[str, Any]]
MOST_MEMORY = 1 << 30
"""Bytes that the audit of a damaged file may take beside what its programs take."""
STRANGE = (
    pa.array([1, 2, 3, 4, 5, 6]),
    pa.array(["a", "", "\x1b[31m", "<script>", None, "x" * 1000]),
    pa.array([1.5, float("nan"), float("inf"), -1e300, None, 0.0]),
    pa.array([True, False, None, True, True, False]),
    pa.nulls(6),
    pa.array([[], [1], [2, 3], None, [None], [4] * 100]),
    pa.array([[0.5], [], [float("nan")], [float("-inf")], None, [1e300]]),
    pa.array([["a"], [], None, ["b", "c"], [None], ["d"]]),
    pa.array([{"a": 1}] * 6),
    pa.array([[[1]], [], None, [[2], []], [[]], [None]]),
    pa.array([b"\xff", b"", None, b"a", b"b", b"c"]),
    pa.array([2**62, -(2**62), 0, 2**31, -1, None]),
    pa.array([[2**31], [-1], [2**62], [0], [1], [2]]),
    pa.array(["x", "y", "x", None, "y", "x"]).dictionary_encode(),
)


def parquet(count: int, seed: int, folder: Path) -> Told:
    """Audit mutated files, each in a fork: a damaged file is named, and what is read of an intact one is unchanged."""
    told, rng = Told("mutated parquet files"), random.Random(seed)
    found: Counter[str] = Counter()
    base = folder / "base.parquet"
    write_rollouts(base, dumps.sample_rollouts(seed, count=6, largest=30), rows_per_group=3)
    expected = _measured(base)
    report = folder / "report.json"
    for first in range(0, count, 20):  # a fork each costs more than the audit
        numbers = range(first, min(first + 20, count))
        changes = [_mutation(rng, base) for _ in numbers]
        report.unlink(missing_ok=True)
        code = forked(lambda: _report(report, changes, folder, expected), folder / "files.log")  # noqa: B023
        results = json.loads(report.read_text()) if report.is_file() else []
        for place, _ in enumerate(numbers):
            told.tries += 1
            kind, trouble = results[place] if place < len(results) else ("ended the process", f"ended with {code}")
            found[kind] += 1
            if trouble:
                told.fault(trouble)
    told.facts = dict(found)
    return told


def bombs(folder: Path, *, longest: int = LONGEST_ROW) -> Told:
    """Files of kilobytes that hold far more are refused; one with a row of `longest` takes less than MOST_MEMORY."""
    told = Told("parquet files of kilobytes with rows of millions")
    for entries, others in ((40_000_000, 0), (LONGEST_ROW + 1, 3000), (longest, 0)):
        told.tries += 1
        path = folder / "bomb.parquet"
        lengths = np.array([0, *[1] * others, entries]).cumsum().astype(np.int32)
        values = pa.ListArray.from_arrays(lengths, pa.array(np.zeros(lengths[-1], np.int32)))
        table = pa.table({"prompt_ids": values, "response_ids": values})
        pq.write_table(table.replace_schema_metadata({VERSION_KEY: b"1"}), path, compression="zstd")
        del values, table
        note = folder / "peak"

        def look(path: Path = path, note: Path = note) -> int:
            Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
            before = memory("VmRSS")
            with suppress(HoldfastError):
                _measured(path)
            note.write_text(str(memory("VmHWM") - before))
            return 0

        code = forked(look, folder / "files.log")
        took = int(note.read_text()) if code == 0 else 0
        told.facts = {**told.facts, f"MB for a row of {entries:,} in {path.stat().st_size / 1e3:.0f} kB": took // 10**6}
        if code or took > MOST_MEMORY:
            told.fault(f"a row of {entries:,} entries: exit code {code}, {took / 1e9:.1f} GB")
    return told


def memory(name: str) -> int:
    """Bytes of this process, as Linux counts them."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def _mutation(rng: random.Random, base: Path) -> Callable[[Path], None]:
    """A change of the base file: some bytes, or a column."""
    raw = base.read_bytes()
    if rng.random() < 0.6:
        data = bytearray(raw)
        for _ in range(rng.randint(1, 3)):
            place, action = rng.randrange(len(data)), rng.randrange(5)
            if action < 3:
                data[place] ^= 1 << rng.randrange(8)
            elif action == 3:
                del data[place : place + rng.choice((1, 8, 300))]
            else:
                data[place:place] = rng.randbytes(rng.choice((1, 8, 300)))
        return lambda path: (path.write_bytes(bytes(data)), None)[1]
    table = pq.read_table(base)
    name, column = rng.choice(table.schema.names), rng.choice(STRANGE)
    kept = table.schema.metadata if rng.random() < 0.7 else None

    def write(path: Path) -> None:
        place = table.schema.get_field_index(name)
        changed = table.remove_column(place) if rng.random() < 0.1 else table.set_column(place, name, column)
        pq.write_table(changed.replace_schema_metadata(kept), path)

    return write


def _report(report: Path, changes: list[Callable[[Path], None]], folder: Path, intact: Seen) -> int:
    report.write_text(json.dumps(_audited(changes, folder, intact)))
    return 0


def _audited(changes: list[Callable[[Path], None]], folder: Path, intact: Seen) -> list[list[str]]:
    """Kind of outcome and trouble of each."""
    out = []
    for change in changes:
        path = folder / "mutated" / "a.parquet"
        path.parent.mkdir(exist_ok=True)
        change(path)
        try:
            named, seen = _measured(path)
            same = [name for name in seen if name in intact[1] and _equal(seen[name], intact[1][name])]
            if named > intact[0] or set(same) == set(seen):
                out.append(["left out or noted, and named" if named > intact[0] else "read, unchanged", ""])
            else:
                out.append(["read", "" if change.__name__ == "write" else f"changed in silence: {set(seen) - {*same}}"])
        except HoldfastError:
            out.append(["refused", ""])
        except Exception as error:
            out.append(["a traceback", f"{type(error).__name__}: {error}"])
    return out


def _measured(path: Path) -> Seen:
    """The whole audit of a file, with its reports: how many records and notes it names, and the columns of the rest."""
    from holdfast.audit.judge.advice import advise_on
    from holdfast.audit.judge.auditor import Auditor
    from holdfast.audit.read.reading import Reading
    from holdfast.audit.read.source import find_files, read_files
    from holdfast.audit.show.outputs import write_reports
    from holdfast.audit.show.terminal import summary

    reading, columns = Reading(), {}
    auditor = Auditor(reading)
    for file, chunk in read_files(find_files(path, note=reading.note), reading):
        auditor.feed(chunk, str(file.path))
        for name, column in {**chunk.tokens, **chunk.numbers, **chunk.words}.items():
            columns.setdefault(name, []).extend(column.tolist())
    audit = auditor.result()
    if audit.facts.sequences:
        summary(audit)
        write_reports(path.parent / "out", audit, advise_on(audit), title="damaged")
    return reading.rejected.total() + len(reading.notes), columns


def _equal(one: list[Any], other: list[Any]) -> bool:
    return len(one) == len(other) and all(a == b or (a != a and b != b) for a, b in zip(one, other, strict=True))


def checkpoints(count: int, seed: int, whole: Path, folder: Path) -> Told:
    """Damage the newest checkpoint of a finished run in one way each; the one before must be found and the damage said.

    `whole` is the run's folder; what a resumed run does with an earlier checkpoint is what the kills show.
    """
    from holdfast.train.keep.checkpoint import newest_intact

    told, rng = Told("damaged checkpoints"), random.Random(seed)
    found: Counter[str] = Counter()
    for _ in range(count):
        told.tries += 1
        root = folder / "checkpoints"
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(whole / "checkpoints", root)
        older, newest = sorted(root.glob("step_*"))[-2:]
        file = rng.choice(sorted(path for path in newest.rglob("*") if path.is_file()))
        how = rng.choice(("flipped", "cut", "gone", "longer", "empty", "a folder"))
        data = bytearray(file.read_bytes())
        if how == "flipped":
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        elif how == "cut":
            del data[rng.randrange(len(data)) :]
        elif how == "longer":
            data += rng.randbytes(9)
        elif how == "empty":
            data.clear()
        file.write_bytes(data)
        if how in ("gone", "a folder"):
            file.unlink()
        if how == "a folder":
            file.mkdir()
        found[how] += 1
        name = f"{file.relative_to(newest)} {how}"
        try:
            taken, said = newest_intact(root)
        except Exception as error:
            told.fault(f"{name}: {type(error).__name__}: {error}")
            continue
        if how == "gone" and file.name == "SHA256SUMS":  # as of a version that knew none
            continue
        if taken != older or len(said) != 1 or newest.name not in said[0] or newest.exists():
            told.fault(f"{name}: took {taken and taken.name}, said {said}")
    told.facts = dict(found)
    return told
