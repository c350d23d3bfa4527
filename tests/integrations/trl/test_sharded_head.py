"""FSDP2 shards the head over two processes, in whatever unit: the gradients are those of one process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from integrations.trl import sharded_head

SCRIPT = Path(sharded_head.__file__)


@pytest.mark.parametrize("unit", ["head", "tail", "all", "tied"])
def test_two_ranks(unit, tmp_path):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, SCRIPT, str(rank), tmp_path, unit], stderr=subprocess.PIPE, text=True, env=environment
        )
        for rank in range(2)
    ]
    try:
        reports = [rank.communicate(timeout=900)[1] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0, 0], "\n".join(report[-2000:] for report in reports)
