"""`holdfast train` with vLLM as its engine: the weights it samples with are the trainer's, step after step."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from holdfast.core.divergences import top_k
from holdfast.rollout.models import load_model
from holdfast.rollout.store import read_rollouts

pytest.importorskip("vllm")

TOP, DELTA = 5, 0.02
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
    return metrics_of(folder / "run")


def metrics_of(run):
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
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


@pytest.fixture(scope="module")
def start(make_model, tokenizer, tmp_path_factory):
    """The folder of a policy that puts most of its probability on a few tokens."""
    folder = tmp_path_factory.mktemp("start")
    make_model(2, sharpness=16.0).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def run_on_a_server(start, process, tmp_path_factory):
    """The folder of a run whose server reports its likeliest tokens; its rollouts are up to one update old."""
    folder = tmp_path_factory.mktemp("server-run")
    (folder / "run.toml").write_text(CONFIG)
    options = ["--engine.kind", "server", "--engine.url", process.client.url, "--model.source", str(start)]
    options += ["--engine.exact_kl", "false", "--engine.top_logprobs", str(TOP), "--objective.detector", "kl_lower"]
    options += ["--objective.delta", str(DELTA), "--optimizer.learning_rate", "5e-4"]
    options += ["--steps", "3", "--async.staleness", "1", "--checkpoint.every", "1", "--checkpoint.keep", "3"]
    train(folder, str(folder / "run.toml"), *options)
    return folder / "run"


def rollouts(run, step):
    return list(read_rollouts(run / "rollouts" / f"step_{step:04d}.parquet"))


def test_bounds_from_a_server_contain_what_both_policies_say_of_the_whole_vocabulary(
    run_on_a_server, start, whole_forward
):
    """Every token of every step again, by a plain forward pass of the two versions that its record names."""
    folders = [start, *(run_on_a_server / "checkpoints" / f"step_{step:04d}" / "model" for step in (1, 2))]
    versions = [load_model(str(folder), torch.float32)[0].eval() for folder in folders]
    ages = set()
    records = [(step, record) for step in (1, 2, 3) for record in rollouts(run_on_a_server, step)]
    for step, record in records:
        (written,) = set(record.weight_versions)
        ages.add(step - 1 - written)
        sampled, tokens = SimpleNamespace(token_ids=record.response_ids), torch.tensor(record.response_ids)[:, None]
        p, q = (
            whole_forward(versions[version], record.prompt_ids, sampled).log_softmax(dim=-1).double()
            for version in (written, step - 1)
        )
        for reported, own in ((record.rollout_logprobs, p), (record.trainer_logprobs, q)):
            assert torch.allclose(torch.tensor(reported).double(), own.gather(1, tokens)[:, 0], atol=1e-4)
        kl, tv = (p.exp() * (p - q)).sum(dim=1), 0.5 * (p.exp() - q.exp()).abs().sum(dim=1)
        found = [torch.tensor(bound).double() for bound in (record.kl_lower, record.tv_lower, record.tv_upper)]
        assert torch.all(found[0] <= kl + 1e-5)
        assert torch.all(found[1] <= tv + 1e-5) and torch.all(tv <= found[2] + 1e-5)
        # and they are the best that the policy's own likeliest tokens allow
        likeliest = p.topk(TOP, dim=1)
        best = top_k(q.gather(1, likeliest.indices), likeliest.values)
        for bound, expected in zip(found, (best.kl_lower, best.tv_lower, best.tv_upper), strict=True):
            assert torch.allclose(bound, expected.value, atol=1e-4)
    assert ages == {0, 1}, "without drift, and with"


def test_bounds_from_a_server_reach_metrics_and_masks(run_on_a_server):
    kept = []
    for metrics in metrics_of(run_on_a_server):
        records = rollouts(run_on_a_server, metrics["step"])
        for name in ("kl_lower", "tv_lower", "tv_upper"):
            values = [value for record in records for value in getattr(record, name)]
            assert metrics[f"{name}_mean"] == pytest.approx(sum(values) / len(values), rel=1e-4, abs=1e-12)
            assert metrics[f"{name}_max"] == pytest.approx(max(values), rel=1e-6)
        keeps = [max(record.kl_lower) <= DELTA for record in records]
        assert [set(record.trust_mask) for record in records] == [{keep} for keep in keeps]
        assert metrics["masked_sequences"] == 1 - sum(keeps) / len(keeps)
        assert "kl_exact_mean" not in metrics and {record.kl_exact for record in records} == {None}
        kept.append(keeps)
    assert all(kept[0]), "no drift, nothing to reject"
    assert {*kept[1], *kept[2]} == {True, False}
