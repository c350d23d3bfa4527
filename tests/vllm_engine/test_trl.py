"""TRL with a real vLLM in its process: what the engine reports reaches the loss and the records as proven bounds."""

import importlib.util
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from holdfast.rollout.store import read_rollouts

DELTA = 5e-5
"""As in trl_run.py: about what half precision comes to, so that some sequences stay and some go."""

pytestmark = pytest.mark.skipif(
    not (importlib.util.find_spec("trl") and importlib.util.find_spec("vllm")), reason="needs TRL beside vLLM"
)


def test_bounds_of_a_real_engine(model_folder, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    script = Path(__file__).with_name("trl_run.py")
    command = [sys.executable, "-W", "ignore", str(script), str(model_folder), str(tmp_path / "out"), port]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    files = sorted((tmp_path / "out").rglob("step_*.parquet"))
    steps = [list(read_rollouts(file)) for file in files]
    assert [len(step) for step in steps] == [8, 8, 8]

    def column(step, name):
        return np.concatenate([np.asarray(getattr(record, name), dtype=np.float64) for record in step])

    for step in steps:
        lower, upper, kl = (column(step, name) for name in ("tv_lower", "tv_upper", "kl_lower"))
        assert (lower >= 0).all() and (lower <= upper).all() and (upper <= 1).all()
        # Pinsker holds on the partition into the tokens that the engine named and the rest.
        assert (kl >= 2 * lower**2 - 1e-9).all() and kl.max() > 0
        assert all(all(record.trust_mask) == (max(record.kl_lower) <= DELTA) for record in step)
    # Before the first update both have the same weights: what is left is vLLM's half precision.
    gap = np.abs(column(steps[0], "rollout_logprobs") - column(steps[0], "trainer_logprobs"))
    assert 0 < gap.max() < 0.2
    assert {record.reward for step in steps for record in step} != {0.0}
