"""The shipped scripts compose in verl's real config, are accepted by their level, and hold no trap."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = sorted((Path(__file__).parents[3] / "examples" / "verl").glob("*.sh"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_an_example_starts_as_it_is(script):
    environment = {**os.environ, "RUN": f"{sys.executable} -m holdfast.integrations.verl"}
    done = subprocess.run(["bash", script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert "L = −Σ_it" in done.stdout


def test_both_levels_have_an_example():
    assert len(SCRIPTS) == 2
