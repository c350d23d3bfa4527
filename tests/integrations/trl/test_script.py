"""`trl grpo` with an objective, and the example script."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import trl

from holdfast.integrations.trl import HoldfastGRPOTrainer
from holdfast.integrations.trl.__main__ import main
from holdfast.rollout.store import read_rollouts
from integrations.trl import runs

pytestmark = pytest.mark.filterwarnings("ignore")
EXAMPLE = Path(__file__).parents[3] / "examples" / "trl" / "grpo_trm.py"


@pytest.fixture
def arguments(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runs.model().save_pretrained("model")
    runs.TOKENIZER.save_pretrained("model")
    Path("data").mkdir()
    Path("data/train.jsonl").write_text("".join(json.dumps({"prompt": f"{a}+{a}="}) + "\n" for a in range(8)))
    Path("own_reward.py").write_text("def shorter(completions, **others):\n    return [-len(c) for c in completions]\n")
    Path("run.yaml").write_text(
        "use_cpu: true\nbf16: false\nmax_steps: 1\nreport_to: none\nsave_strategy: 'no'\nnum_generations: 4\n"
        "per_device_train_batch_size: 8\nmax_completion_length: 6\nobjective: dr_grpo+kl_cov\n"
    )
    return ["--config", "run.yaml", "--model_name_or_path", "model", "--dataset_name", "data", "--reward_funcs",
            "own_reward.shorter", "--output_dir", "out"]  # fmt: skip


def test_trl_grpo_with_an_objective(arguments):
    stock = trl.GRPOTrainer
    assert main(arguments) == 0
    assert trl.GRPOTrainer is stock
    assert Path("out/model.safetensors").exists()
    assert len(list(read_rollouts(runs.recorded("out") / "step_0001.parquet"))) == 8


def test_what_the_objective_decides_is_refused(arguments, capsys):
    assert main([*arguments, "--loss_type", "dapo"]) == 2
    assert "loss_type = 'dapo' (now: objective = 'dapo')" in capsys.readouterr().err
    with pytest.raises((ValueError, SystemExit)):
        main([*arguments, "--objektive", "trm"])


def test_example_starts_as_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE)])
    steps = HoldfastGRPOTrainer.__init__

    def short(self, *args, **options):
        options["args"].max_steps = 10
        steps(self, *args, **options)

    monkeypatch.setattr(HoldfastGRPOTrainer, "__init__", short)
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    (file,) = runs.recorded("runs/trl_trm").iterdir()
    records = list(read_rollouts(file))
    assert len(records) == 64 and all(record.rollout_logprobs for record in records)
    assert {record.weight_versions[0] for record in records} == {8}, "one update behind"
