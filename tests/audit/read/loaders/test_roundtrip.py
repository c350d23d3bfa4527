"""What each framework writes comes back token for token: prompt, response, log-probabilities, masks, turns, numbers."""

import numpy as np
import pytest

import dumps
from dumps import load
from holdfast.audit.read.columns import missing_value
from holdfast.audit.read.reading import Reading
from holdfast.audit.read.source import detect, find_files, read_files

EVERYWHERE = ("prompt_ids", "response_ids", "response_mask", "rollout_logprobs")
BOTH = (*EVERYWHERE, "trainer_logprobs", "advantages", "turn_ids", "reward")
CARRIES = {
    "nemo_rl": (*BOTH, "step"),
    "prime_rl_tokens": (*BOTH[:-1], "entropy", "trust_mask", "environment", "step"),
    "traces": (*BOTH, "entropy", "weight_versions", "environment", "step", "finish_reason"),
    "open_instruct": (*EVERYWHERE, "advantages", "reward", "group_id", "environment", "step", "finish_reason"),
    "slime_rollout": (*EVERYWHERE, "turn_ids", "reward", "weight_versions", "group_id", "step", "finish_reason"),
    "slime_train": (*BOTH, "entropy", "sequence_id", "step", "finish_reason"),
    "miles_train": (*BOTH, "entropy", "weight_versions", "sequence_id", "step", "finish_reason"),
    "chat": ("prompt_ids", "response_ids", "finish_reason"),
    "sglang": ("prompt_ids", "response_ids", "rollout_logprobs", "reward", "step", "finish_reason"),
    "nemo_gym": ("prompt_ids", "rollout_logprobs", "reward", "environment"),
    "responses_api": ("response_ids", "rollout_logprobs", "finish_reason"),
    "generic": (*BOTH, "entropy", "step"),
}
GIVEN_ON_OWN_TOKENS = ("rollout_logprobs", "trainer_logprobs", "advantages", "entropy", "trust_mask")


@pytest.mark.parametrize("write", dumps.WRITERS, ids=lambda write: write.__name__)
def test_what_was_written_is_read(tmp_path, write):
    written = dumps.sample_rollouts()
    write(tmp_path, written)
    got, reading = load(tmp_path)
    assert reading.rejected == {}
    assert len(got) == len(written)
    for mine, theirs in zip(got, written, strict=True):
        for name in CARRIES[write.__name__]:
            a, b = getattr(mine, name), getattr(theirs, name)
            if name in GIVEN_ON_OWN_TOKENS:
                a, b = np.array(a)[list(theirs.response_mask)], np.array(b)[list(theirs.response_mask)]
            np.testing.assert_array_equal(a, b, err_msg=name)


@pytest.mark.parametrize("write", dumps.WRITERS, ids=lambda write: write.__name__)
def test_columns_are_the_rollouts(tmp_path, write):
    write(tmp_path, dumps.sample_rollouts(1))
    for _, chunk in read_files(find_files(tmp_path), Reading()):
        rollouts = [chunk.rollout(i) for i in range(len(chunk))]
        for name, column in chunk.tokens.items():
            missing = missing_value(column.dtype)
            expected = [v for r in rollouts for v in (getattr(r, name) or [missing] * len(r.response_ids))]
            np.testing.assert_array_equal(column, np.array(expected, column.dtype), err_msg=name)
        for name, column in chunk.numbers.items():
            assert column.tolist() == [getattr(r, name) for r in rollouts]


def test_a_prompt_is_the_same_prompt_in_every_format(tmp_path):
    """Rollouts are grouped by prompt: the hash must not depend on who wrote the file."""
    from holdfast.rollout.store import write_rollouts

    written = dumps.sample_rollouts()
    hashes = []
    for write in (writer for writer in dumps.WRITERS if writer is not dumps.responses_api):  # which has no prompt ids
        folder = tmp_path / write.__name__
        folder.mkdir()
        write(folder, written)
        hashes.append([h for _, chunk in read_files(find_files(folder), Reading()) for h in chunk.prompt_hashes])
    write_rollouts(tmp_path / "own.parquet", written)
    hashes.append([h for _, c in read_files(find_files(tmp_path / "own.parquet"), Reading()) for h in c.prompt_hashes])
    assert all(other == hashes[0] for other in hashes)
    assert len(set(hashes[0])) == len(written)


@pytest.mark.parametrize("write", dumps.WRITERS, ids=lambda write: write.__name__)
def test_all_bytes_are_accounted_for(tmp_path, write):
    write(tmp_path, dumps.sample_rollouts())
    reading = Reading()
    files = find_files(tmp_path)
    list(read_files(files, reading))
    assert reading.bytes_read == sum(file.size for file in files)


@pytest.mark.parametrize("write", dumps.WRITERS, ids=lambda write: write.__name__)
def test_a_renamed_file_is_recognised_by_what_is_in_it(tmp_path, write):
    path = write(tmp_path, dumps.sample_rollouts(count=2))
    expected = detect(path)
    renamed = path.rename(tmp_path / f"x{path.suffix}")
    assert detect(renamed) is expected


def test_rounded_traces_say_so(tmp_path):
    dumps.traces(tmp_path, dumps.sample_rollouts(), decimals=4)
    _, reading = load(tmp_path)
    assert reading.logprob_resolution == 5e-5
    assert any("4 decimals" in note for note in reading.notes)


def test_exact_traces_do_not(tmp_path):
    dumps.traces(tmp_path, dumps.sample_rollouts())
    _, reading = load(tmp_path)
    assert reading.logprob_resolution == 0.0


@pytest.mark.parametrize("write", [dumps.open_instruct, dumps.slime_rollout, dumps.chat], ids=lambda w: w.__name__)
def test_a_log_without_the_trainer_says_what_cannot_be_known(tmp_path, write):
    write(tmp_path, dumps.sample_rollouts())
    got, reading = load(tmp_path)
    assert all(r.trainer_logprobs is None for r in got)
    assert any("drift cannot be measured" in note and "--model" in note for note in reading.notes)
