"""Two processes give the gradients, the losses and the log of one.

They are started by torchrun, which is what `accelerate launch --multi_gpu` runs: with `--cpu`, accelerate 1.15 starts a
single process whatever `--num_processes` says.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from holdfast.rollout.store import read_rollouts
from integrations.trl import runs, two_ranks

pytestmark = pytest.mark.filterwarnings("ignore")
SCRIPT = Path(two_ranks.__file__)


@pytest.mark.parametrize("objective", ["everything", "dapo"])
def test_same_gradients(objective, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        folder.mkdir()
    two_ranks.main(str(one), 4, objective)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(
        [*launch, str(SCRIPT), str(two), "2", objective],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    alone, together = (torch.load(folder / "gradients.pt", weights_only=True) for folder in (one, two))
    assert len(alone["gradients"]) == len(together["gradients"]) == 2
    for expected, actual in zip(alone["gradients"], together["gradients"], strict=True):
        assert expected.norm() > 1e-3
        assert (actual - expected).norm() <= 2e-5 * expected.norm()
    for name, values in alone["logs"].items():
        assert together["logs"][name] == pytest.approx(values, rel=1e-4, abs=1e-6), name
    if objective == "everything":
        assert all(0 < share < 1 for share in alone["logs"]["trust_region/rejected_tokens"])
    check_records(runs.recorded(one), runs.recorded(two))


def check_records(one, two):
    """Both worlds recorded the same sequences, the two ranks each their own half."""
    assert {f.name for f in two.iterdir()} == {f"step_{s:04d}_rank_{r}.parquet" for s in (1, 2) for r in (0, 1)}
    alone = {r.sequence_id: r for r in read_rollouts(one / "step_0002.parquet")}
    together = {r.sequence_id: r for f in two.glob("step_0002*") for r in read_rollouts(f)}
    assert alone.keys() == together.keys() == set(range(8))
    for number, record in alone.items():
        assert together[number].response_ids == record.response_ids
        assert together[number].trust_mask == record.trust_mask
        assert together[number].group_id == record.group_id
        torch.testing.assert_close(torch.tensor(together[number].advantages), torch.tensor(record.advantages))


def test_the_comparison_has_something_to_get_wrong(tmp_path):
    """Eight different sequences of different lengths, so that rows or counts mixed up between ranks would show."""
    two_ranks.main(str(tmp_path), 4, "everything")
    records = list(read_rollouts(runs.recorded(tmp_path) / "step_0001.parquet"))
    assert len({r.response_ids for r in records}) == len(records) == 8
    assert len({len(r.response_ids) for r in records}) > 2
    assert len({r.reward for r in records}) > 2
