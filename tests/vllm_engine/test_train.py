"""`holdfast train` with vLLM as its engine: the weights it samples with are the trainer's, step after step."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("vllm")

CONFIG = """
steps = 2
[task]
name = "ledger"
entries = 2
reward = "reward_even_digits:score"
[model]
hidden = 128
layers = 2
heads = 4
[engine]
kind = "vllm"
precision = "float32"
context = 128
cache_gib = 0.25
[sampling]
max_tokens = 24
[objective]
preset = "trm_max+ppo"
delta = 0.05
detector = "kl_exact"
[optimizer]
learning_rate = 5e-3
[batch]
prompts = 4
group_size = 4
[evaluation]
every = 0
problems = 2
"""


def train(folder, *arguments):
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parent),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "holdfast", "train", *arguments, "--run-dir", str(folder / "run")]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment, cwd=folder)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    lines = (folder / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [record for record in map(json.loads, lines) if record["step"]]


def test_a_run_samples_from_the_policy_it_trains_also_after_it_was_resumed(tmp_path):
    (tmp_path / "run.toml").write_text(CONFIG)
    train(tmp_path, str(tmp_path / "run.toml"))
    records = train(tmp_path, "--resume", "--steps", "3")
    assert [record["step"] for record in records] == [1, 2, 3]
    assert {record["policy_lag"] for record in records} == {0}
    # The policy moves by far more than rounding between the steps; an engine without the new weights would show it.
    entropies = [record["entropy"] for record in records]
    assert all(abs(a - b) > 1e-2 for a, b in itertools.pairwise(entropies))
    assert max(record["kl_exact_max"] for record in records) < 1e-7
    assert all(record["reward_std"] > 0 for record in records)


def test_a_run_on_likeliest_tokens_alone(tmp_path):
    """bfloat16 against float32, so that there is drift; top-5 beside whole distributions, then alone."""
    (tmp_path / "run.toml").write_text(CONFIG)
    top = ["--engine.precision", "bfloat16", "--engine.top_logprobs", "5", "--objective.detector", "kl_lower"]
    for name, more in (("both", []), ("alone", ["--engine.exact_kl", "false"])):
        (tmp_path / name).mkdir()
        for record in train(tmp_path / name, str(tmp_path / "run.toml"), *top, *more, "--objective.delta", "1e-6"):
            assert 0 < record["kl_lower_mean"] < record["kl_lower_max"]
            assert 0 < record["tv_lower_mean"] < record["tv_upper_mean"] < 1
            assert record["masked_sequences"] > 0, "the mask reads the bound"
            assert ("kl_exact_mean" in record) == (name == "both")
            if name == "both":
                assert record["kl_lower_mean"] <= record["kl_exact_mean"] + 1e-6
                assert record["kl_lower_max"] <= record["kl_exact_max"] + 1e-6
