"""A vocabulary spread over two processes gives the statistics and gradients of the whole head."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_two_ranks(tmp_path):
    script = Path(__file__).with_name("two_ranks.py")
    ranks = [
        subprocess.Popen([sys.executable, script, str(rank), tmp_path], stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    try:
        reports = [rank.communicate(timeout=900)[1] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0, 0], "\n".join(reports)
