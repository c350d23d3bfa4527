"""The campaign in its quick form: every part once, in a process of its own because it forks."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

COUNTS = {"kills": 4, "records": 100, "parquet": 20, "checkpoints": 30, "servers": 6, "rewards": 8, "soak": 0}


@pytest.mark.slow
def test_a_few_kills_liars_and_hostile_files_do_no_harm():
    options = [word for name, count in COUNTS.items() for word in (f"--{name}", str(count))]
    script = Path(__file__).with_name("campaign.py")
    command = [sys.executable, str(script), "--json", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told = {part["name"]: part for part in json.loads(done.stdout)}
    assert [part["faults"] for part in told.values()] == [[]] * 10
    tries = {name: part["tries"] for name, part in told.items()}
    assert tries["kills of sync runs"] + tries["kills of async runs"] == 4
    assert tries["mutated records"] >= 100 and tries["mutated parquet files"] == 20
    assert {"fsync", "os.rename", "os.mkdir", "open"} <= set(told["kills of sync runs"]["facts"])
