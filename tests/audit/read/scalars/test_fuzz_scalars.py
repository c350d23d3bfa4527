"""Mutated logs of numbers: every reader gives rows, counts what it left out, or says that the file cannot be used."""

import json
import random

import pytest

from holdfast.audit.read.reading import Reading
from holdfast.audit.read.scalars.runs import read_scalars
from holdfast.errors import DataError
from mutations import mutated_bytes

ROWS = [(s, {"critical": 0.5, "critic/score/mean": s / 10, "actor/entropy": 0.4}) for s in range(1, 9)]


def log(kind, path, write_events, write_wandb):
    """A log of each kind."""
    if kind == "events":
        return write_events(path, ROWS)
    if kind == "wandb":
        return write_wandb(path, ROWS)
    rows = [{"step": s, **row} for s, row in ROWS]
    texts = {
        "jsonl": "".join(json.dumps(row) + "\n" for row in rows),
        "json": json.dumps({"log_history": rows}),
        "csv": "\n".join([",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]),
        "log": "".join(f"step:{s} - " + " - ".join(f"{k}:{v}" for k, v in row.items()) + "\n" for s, row in ROWS)
        + "".join(f"rollout {s}: {row}\n" for s, row in ROWS),
    }
    path.write_text(texts[kind])
    return path


@pytest.mark.parametrize("kind", ["events", "wandb", "jsonl", "json", "csv", "log"])
def test_mutated_logs(tmp_path, kind, write_events, write_wandb):
    rng = random.Random(kind)
    path = log(kind, tmp_path / f"run.{kind}", write_events, write_wandb)
    good, kept = path.read_bytes(), 0
    for _ in range(300):
        path.write_bytes(mutated_bytes(good, rng))
        try:
            found = read_scalars(path, Reading())
        except DataError:
            continue
        if found is not None:
            kept += 1
            for series in found.course.series.values():
                assert len(series.steps) == len(series.values)
                assert series.steps.dtype.kind == "i"
                assert (series.steps[1:] > series.steps[:-1]).all()
    assert kept
