"""`holdfast launch --backend trl` really trains: our engine's rollouts, the run file's problems, a folder to audit."""

import os
import subprocess
import sys

import pytest
import torch

from holdfast.cli import dispatch
from holdfast.launch import trl
from holdfast.launch.runfile import load_run_file
from holdfast.rollout.store import read_rollouts
from integrations.trl import runs

pytestmark = pytest.mark.filterwarnings("ignore")

RUN = """
steps = 3

[task]
name = "ledger"
entries = 1

[model]
hidden = 32
layers = 2
heads = 2

[engine]
precision = "int8"
exact_kl = false

[sampling]
max_tokens = 12

[objective]
preset = "grpo+tis"

[batch]
prompts = 4
group_size = 4
minibatches = 2
micro_batch_tokens = 60

[evaluation]
every = 2
problems = 6

[checkpoint]
every = 3

[log]
rollouts_every = 1

[trl]
disable_tqdm = true
use_cpu = true
"""


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "run.toml"
    path.write_text(RUN)
    return path


def rollouts(folder, *names):
    place = folder / "rollouts" if (folder / "rollouts").is_dir() else runs.recorded(folder)
    found = {r.sequence_id: r for name in names for r in read_rollouts(place / f"{name}.parquet")}
    return [found[number] for number in sorted(found)]


def test_rollouts_are_those_of_our_own_trainer(file, tmp_path):
    """Same problems, same engine, same draws: as long as the weights do not move, the two backends cannot differ."""
    for backend in ("local", "trl"):
        still = ["--optimizer.learning_rate", "1e-12"]
        assert dispatch(["launch", str(file), "--backend", backend, "--run-dir", backend, *still]) == 0
    # With two optimiser steps a batch TRL's plug-in writes a file each (here every second), our trainer one a batch.
    for batch in (1, 2, 3):
        ours = {r.sequence_id: r for r in rollouts(tmp_path / "local", f"step_{batch:04d}")}
        theirs = rollouts(tmp_path / "trl", f"step_{2 * batch:04d}")
        assert len(ours) == 16 and len(theirs) == 8
        for record in theirs:
            own = ours[record.sequence_id]
            assert record.prompt_ids == own.prompt_ids and record.response_ids == own.response_ids
            # Ours numbers the groups of a step, the plug-in those of the run: 4 prompts a batch.
            assert record.group_id == own.group_id + 4 * (batch - 1) and record.reward == own.reward
            torch.testing.assert_close(torch.tensor(record.rollout_logprobs), torch.tensor(own.rollout_logprobs))
    assert (tmp_path / "trl" / "model" / "model.safetensors").is_file()
    assert (tmp_path / "trl" / "config.toml").is_file()
    assert (tmp_path / "trl" / "checkpoint-6").is_dir()


def test_a_lagging_engine_is_recorded_as_such(file, tmp_path):
    code = dispatch(["launch", str(file), "--backend", "trl", "--run-dir", "out", "--engine.lag", "1"])
    assert code == 0
    # Weights move at steps 2, 4 and 6; the third batch is sampled one sync behind, with the weights of step 2.
    versions = [{r.weight_versions[0] for r in rollouts(tmp_path / "out", f"step_{s:04d}")} for s in (2, 4, 6)]
    assert versions == [{0}, {0}, {2}]


def test_evaluation_and_reward_function(file, tmp_path, monkeypatch):
    (tmp_path / "own_reward.py").write_text("def long(problem, response):\n    return len(response) / 12\n")
    monkeypatch.syspath_prepend(tmp_path)
    run = load_run_file(file, "trl", ["--task.reward", "own_reward:long", "--steps", "2"])
    assert trl.run(run, tmp_path / "out") == 0
    records = [r for s in (2, 4) for r in rollouts(tmp_path / "out", f"step_{s:04d}")]
    for record in records:
        text = "".join(piece for piece in record.token_texts if piece not in ("<pad>", "<bos>", "<eos>", "<unk>"))
        assert record.reward == pytest.approx(len(text) / 12)


def test_evaluates_before_during_and_after(file, tmp_path):
    run = load_run_file(file, "trl")
    trainer = trl.build_trainer(run, tmp_path / "out")
    trainer.train()
    evaluated = [record["step"] for record in trainer.state.log_history if "eval_reward" in record]
    assert evaluated == [0, 4, 6]
    assert len(trainer.eval_dataset) == 6


def test_unknown_field_of_grpo_config(file, tmp_path):
    run = load_run_file(file, "trl", ["--trl.use_vlm", "true"])
    with pytest.raises(trl.ConfigError, match=r"\[trl\] use_vlm: GRPOConfig has no such field; did you mean use_vllm"):
        trl.build_trainer(run, tmp_path / "out")


def test_settings_that_trl_itself_refuses(file, tmp_path):
    run = load_run_file(file, "trl", ["--trl.log_completions_hub_repo", "me/repo"])
    with pytest.raises(trl.ConfigError, match="TRL refuses these settings: log_completions_hub_repo"):
        trl.build_trainer(run, tmp_path / "out")


def test_two_processes(file, tmp_path):
    """The command that the help text names, started by torchrun: two ranks write one folder."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "holdfast"]
    arguments = ["launch", str(file), "--backend", "trl", "--run-dir", "out", "--steps", "1"]
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "ACCELERATE_USE_CPU": "true",
        "TRL_EXPERIMENTAL_SILENCE": "1",
    }
    done = subprocess.run(
        [*launch, *arguments], env=environment, capture_output=True, text=True, timeout=300, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr[-3000:]
    alone = tmp_path / "alone"
    assert dispatch(["launch", str(file), "--backend", "trl", "--run-dir", str(alone), "--steps", "1"]) == 0
    both = rollouts(tmp_path / "out", "step_0002_rank_0", "step_0002_rank_1")
    assert len(both) == 8
    assert {r.response_ids for r in both} <= {tuple(r.response_ids) for r in rollouts(alone, "step_0002")} | first_step(
        alone, file, tmp_path
    )


def first_step(alone, file, tmp_path):
    """The other half of the batch, which was trained on in the first optimiser step."""
    run = load_run_file(file, "local")
    from holdfast.train.keep.folder import RunFolder
    from holdfast.train.session import run_session

    folder = RunFolder.create(tmp_path / "all", run.config.model_copy(update={"steps": 1}))
    run_session(run.config.model_copy(update={"steps": 1}), folder)
    return {r.response_ids for r in rollouts(tmp_path / "all", "step_0001")}


def test_likeliest_tokens_prove_bounds(file, tmp_path):
    """The run file's engine reports its K likeliest tokens; the records hold what they prove."""
    keys = ["--engine.top_logprobs", "4", "--steps", "1", "--evaluation.every", "0"]
    assert dispatch(["launch", str(file), "--backend", "trl", "--run-dir", "out", *keys]) == 0
    for record in rollouts(tmp_path / "out", "step_0002"):
        assert all(low <= high for low, high in zip(record.tv_lower, record.tv_upper, strict=True))
        assert len(record.kl_lower) == len(record.response_ids)
