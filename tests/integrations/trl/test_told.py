"""Which objective trained stands where people look: model card, trackers, training_args.bin, trainer_state.json."""

import dataclasses
import fnmatch
import inspect
import json

import pytest
import torch
import transformers
from trl import GRPOConfig

import holdfast
from holdfast.cli import dispatch
from holdfast.integrations.trl import HoldfastGRPOTrainer
from holdfast.integrations.trl.config import DEFAULTS
from holdfast.integrations.trl.settings import resolve
from holdfast.rollout.store import read_rollouts, run_id
from integrations.trl import runs

pytestmark = pytest.mark.filterwarnings("ignore")


@dataclasses.dataclass
class OwnConfig(GRPOConfig):
    """A team's own."""

    team: str = "us"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    plain = runs.config(folder, max_steps=1, save_strategy="steps", save_steps=1, entropy_coef=0.02)
    args = OwnConfig(**{f.name: getattr(plain, f.name) for f in dataclasses.fields(plain)
                        if f.init and f.name not in ("generation_batch_size", "steps_per_generation")})  # fmt: skip
    objective = holdfast.preset("trm_max+grpo", **{"gate.low": 0.15, "trm_max.delta": 9.0})
    trainer = runs.Mismatched(
        runs.model(), runs.small_digits, args, runs.PROMPTS, processing_class=runs.TOKENIZER, objective=objective
    )
    trainer.engine = runs.EmbeddedEngine(trainer.model, eos_token_id=runs.TOKENIZER.eos_token_id,
                                         pad_token_id=runs.TOKENIZER.pad_token_id)  # fmt: skip
    trainer.use_vllm = True
    trainer.train()
    return trainer, folder


def test_trackers_are_told(run):
    """What trackers ask of the arguments: numbers of the objective, and none of TRL's that do not act."""
    trainer, _ = run
    told = trainer.args.to_sanitized_dict()
    assert told["holdfast/objective.gate.low"] == 0.15
    assert told["holdfast/objective.masks.trm_max.delta"] == 9.0
    assert told["holdfast/objective.penalties.entropy_bonus.alpha"] == 0.02
    assert "max(r, 0.85)" in told["holdfast/explain"]
    assert not DEFAULTS.keys() & told.keys()
    assert (told["team"], told["entropy_coef"], told["learning_rate"]) == ("us", 0.02, 1e-3)
    assert json.loads(trainer.args.to_json_string())["holdfast/objective.gate.low"] == 0.15


def test_training_args_are_the_users_own_class(run):
    _, folder = run
    saved = torch.load(folder / "checkpoint-1" / "training_args.bin", weights_only=False)
    assert type(saved) is OwnConfig
    assert saved.holdfast["objective"]["name"] == "trm_max+grpo" and "0.85)" in saved.holdfast["explain"]
    assert all(getattr(saved, name) is None for name in DEFAULTS)
    objective, args = resolve("grpo", saved)
    assert objective.penalties[0].alpha == 0.02 and args.loss_type == DEFAULTS["loss_type"]


def test_state_and_card(run):
    _, folder = run
    state = json.loads((folder / "checkpoint-1" / "trainer_state.json").read_text())
    entry = state["stateful_callbacks"]["HoldfastObjective"]
    assert entry["objective"]["gate"]["low"] == 0.15 and "max(r, 0.85)" in entry["explain"]
    card = (folder / "README.md").read_text()
    assert "trained with trm_max+grpo (Holdfast" in card and "max(r, 0.85)" in card
    assert "- holdfast" in card and "arXiv 2402.03300" in card
    assert "introduced in [DeepSeekMath" not in card


def test_records_stay_out_of_uploads(run):
    """The patterns that transformers leaves out of a model repository, taken from its source."""
    _, folder = run
    assert 'ignore_patterns=["_*", f"{PREFIX_CHECKPOINT_DIR}-*"]' in inspect.getsource(transformers.Trainer)
    files = [str(path.relative_to(folder)) for path in folder.rglob("*.parquet")]
    assert len(files) == 1 and all(fnmatch.fnmatch(name, "_*") for name in files)


def test_a_second_run_in_the_folder_is_told_apart(run, monkeypatch, tmp_path, capsys):
    trainer, folder = run
    first = runs.recorded(folder)
    assert run_id(first / "step_0001.parquet") == first.name == trainer.run
    entry = json.loads((folder / "checkpoint-1" / "trainer_state.json").read_text())
    assert entry["stateful_callbacks"]["HoldfastObjective"]["run"] == first.name
    again = HoldfastGRPOTrainer(
        runs.model(), runs.small_digits, runs.config(folder, max_steps=1), runs.PROMPTS, objective="grpo",
        processing_class=runs.TOKENIZER,
    )  # fmt: skip
    again.train()
    assert {path.name for path in first.parent.iterdir()} == {first.name, again.run}
    monkeypatch.chdir(tmp_path)
    dispatch(["audit", str(folder), "--allow-unjudged"])
    said = " ".join(capsys.readouterr().out.split())
    assert "these files are of 2 runs" in said and "audit the folder of one run" in said
    assert len(list(read_rollouts(first / "step_0001.parquet"))) == 8


def test_a_resumed_run_is_the_same_run(tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 1, "max_steps": 1}
    first = runs.mismatched(runs.Mismatched, tmp_path, settings=settings, objective="grpo")
    first.train()
    second = runs.mismatched(runs.Mismatched, tmp_path, settings=settings | {"max_steps": 2}, objective="grpo")
    second.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert second.run == first.run
    assert {f.name for f in runs.recorded(tmp_path).iterdir()} == {"step_0001.parquet", "step_0002.parquet"}


def test_default_folder_is_named_after_the_model(tmp_path, monkeypatch):
    from holdfast.integrations.trl.arguments import default_config

    # transformers refuses bfloat16, TRL's default, where there is no GPU.
    monkeypatch.setattr("transformers.training_args.is_torch_bf16_gpu_available", lambda: True)
    assert default_config("owner/small").output_dir == "small-GRPO"
