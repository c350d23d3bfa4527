"""Records cost less than 13 bytes a token, and rounded bounds are bounds."""

import pytest
import torch

from holdfast.integrations.trl import records, whole_step
from holdfast.rollout.store import read_rollouts, write_rollouts
from holdfast.types import LossOutput, TokenStats
from integrations.trl import runs

ROWS, LENGTH = 16, 1024


def trained():
    """Sequences as incompressible as they come: random tokens and log-probabilities."""
    g = torch.Generator().manual_seed(0)
    logprobs = torch.rand(ROWS, LENGTH, generator=g).log()
    ones = torch.ones(ROWS, LENGTH, dtype=torch.long)
    inputs = {
        "prompt_ids": torch.randint(3, 14, (ROWS, 64), generator=g), "prompt_mask": torch.ones(ROWS, 64),
        "completion_ids": torch.randint(3, 14, (ROWS, LENGTH), generator=g), "completion_mask": ones,
        "sampling_per_token_logps": logprobs, "advantages": torch.randn(ROWS, generator=g), "rewards": torch.rand(ROWS),
        "weight_versions": torch.zeros(ROWS), "sequence_ids": torch.arange(ROWS), "group_ids": torch.arange(ROWS) // 4,
    }  # fmt: skip
    ours = logprobs * (1 + 0.01 * torch.randn(ROWS, LENGTH, generator=g))
    stats = TokenStats(logprobs=ours, entropy=torch.rand(ROWS, LENGTH, generator=g))
    mask = whole_step.batch_of(inputs).response_mask
    return records.Trained(inputs, stats, LossOutput(torch.zeros(()), {}, mask))


@pytest.mark.filterwarnings("ignore")
def test_bytes_per_token(tmp_path):
    args = runs.config(tmp_path)
    found = list(records.rollouts_of(trained(), args, runs.TOKENIZER, [2], 1))
    file = tmp_path / "step.parquet"
    write_rollouts(file, found, run="r")
    assert file.stat().st_size / (ROWS * LENGTH) < 13
    again = list(read_rollouts(file))
    assert again[3].rollout_logprobs == found[3].rollout_logprobs, "log-probabilities are kept as they are"
    assert again[3].trainer_logprobs == found[3].trainer_logprobs


def test_rounded_bounds_are_bounds():
    g = torch.Generator().manual_seed(0)
    values = torch.cat([torch.rand(10_000, generator=g), torch.tensor([0.0, 1.0, 1e-30, 0.999999])])[None]
    down, up = records._down(values), records._up(values)
    assert (down <= values).all() and (values <= up).all() and (up <= 1).all() and (down >= 0).all()
    torch.testing.assert_close(down, values, rtol=2**-7, atol=0)
    torch.testing.assert_close(up, values, rtol=2**-7, atol=1e-30)
    assert (down.view(torch.int32) & 0xFFFF == 0).all() and (up.view(torch.int32) & 0xFFFF == 0).all()


def test_names_of_runs_sort_by_time_and_differ():
    names = [records.new_run() for _ in range(3)]
    assert len(set(names)) == 3 and all(len(name) == 26 for name in names)
    assert str(records.records_file("out", "r", 3, 1)) == "out/_rollouts/r/step_0003_rank_1.parquet"
