"""Every example can be read, and those for a CPU run; here with fewer steps."""

import importlib.util
import json
import math
import re
from pathlib import Path

import pytest

from holdfast.objectives.presets import preset
from holdfast.rollout.models import character_tokenizer, tiny_model
from holdfast.rollout.store import read_rollouts
from holdfast.tasks import get_task
from holdfast.train.keep.folder import RunFolder
from holdfast.train.loop import train
from holdfast.train.settings.configfile import load_config
from holdfast.train.show.display import Quiet

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted(p for p in ROOT.glob("examples/**/*.toml") if p.parent.name not in ("launch", "verl"))
SMALL = sorted((ROOT / "examples" / "small").glob("*.toml"))
PRETRAINED = [path for path in SMALL if path.stem.startswith("smollm2")]
QUICK = ["--steps", "2", "--warm_start.clean_steps", "6", "--batch.prompts", "2", "--evaluation.problems", "4"]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: str(p.relative_to(ROOT / "examples")))
def test_every_example_can_be_read_and_names_an_objective(path):
    config = load_config(path)
    assert preset(config.objective.preset, **config.objective.options).explain()
    assert config.task.name in ("huggingface", "jsonl") or get_task(config.task.name, **config.task.options)


def test_every_large_example_has_a_small_one():
    large = {"gsm8k", "lora", "async", "tool_use"}
    assert large == {p.stem for p in SMALL if p not in PRETRAINED} and large <= {
        p.stem for p in (ROOT / "examples").glob("*.toml")
    }


@pytest.mark.parametrize("path", [path for path in SMALL if path not in PRETRAINED], ids=lambda p: p.stem)
@pytest.mark.filterwarnings("ignore:.*checkpointing:FutureWarning:transformers")
@pytest.mark.slow
def test_small_examples_train(path, tmp_path, monkeypatch):
    if path.stem == "lora" and importlib.util.find_spec("peft") is None:
        pytest.skip("needs peft")
    monkeypatch.chdir(ROOT)
    sloppy = ["--warm_start.sloppy_steps", "2"] if path.stem != "gsm8k" else []
    config = load_config(path, [*QUICK, *sloppy])
    folder = RunFolder.create(tmp_path / "run", config)
    summary = train(config, folder, display=Quiet())
    assert summary["finished"] and summary["steps"] == 2
    lines = folder.read_metrics()[1:]
    assert all(math.isfinite(line["loss"]) and line["kl_exact_mean"] >= 0 for line in lines)
    records = list(read_rollouts(folder.path / "rollouts" / "step_0002.parquet"))
    assert len(records) == 16 and all(record.weight_versions for record in records)
    if path.stem == "async":
        assert summary["sequences"]["trained"] == 32
    if path.stem == "tool_use":
        assert {record.environment for record in records} == {"calculator"}


@pytest.mark.parametrize("path", PRETRAINED, ids=lambda p: p.stem)
def test_examples_of_a_pretrained_model_train_with_a_stand_in(path, tmp_path, monkeypatch):
    """Another model in another engine's place, since the real ones are not part of a test environment."""
    monkeypatch.chdir(ROOT)
    tokenizer = character_tokenizer("".join(map(chr, range(32, 127))))
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    tiny_model(tokenizer, hidden=32, layers=1).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    overrides = ["--model.source", str(tmp_path / "model"), "--steps", "2", "--engine.kind", "embedded"]
    config = load_config(path, [*overrides, "--threads", "1", "--evaluation.problems", "4"])
    folder = RunFolder.create(tmp_path / "run", config)
    assert train(config, folder, display=Quiet())["finished"]
    records = list(read_rollouts(folder.path / "rollouts" / "step_0002.parquet"))
    assert len(records) == 64 and all(record.trust_mask for record in records)


def test_held_out_digits_are_in_no_training_prompt():
    """In neither order, whatever the words."""
    pairs = []
    for name in ("digits", "digits_held_out"):
        rows = map(json.loads, (ROOT / "examples" / "small" / f"{name}.jsonl").read_text().splitlines())
        found = [(tuple(sorted(map(int, re.findall(r"\d", row["prompt"])))), row["answer"]) for row in rows]
        assert all(sum(pair) == answer for pair, answer in found)
        pairs.append({pair for pair, _ in found})
    assert not pairs[0] & pairs[1] and len(pairs[0] | pairs[1]) == 45


@pytest.mark.slow
def test_the_tool_s_words_are_recorded_and_kept_out_of_the_gradient(tmp_path):
    """After a warm start long enough to end a turn, rows have the tool's answers: masked, with turns numbered."""
    overrides = [
        "--steps",
        "1",
        "--warm_start.clean_steps",
        "60",
        "--warm_start.sloppy_steps",
        "2",
        "--task.terms",
        "1",
    ]
    overrides += ["--task.terms", "1", "--task.digits", "1", "--model.hidden", "32"]
    overrides += ["--evaluation.problems", "2", "--batch.prompts", "4"]
    config = load_config(ROOT / "examples" / "small" / "tool_use.toml", overrides)
    folder = RunFolder.create(tmp_path / "run", config)
    train(config, folder, display=Quiet())
    records = list(read_rollouts(folder.path / "rollouts" / "step_0001.parquet"))
    talked = [record for record in records if not all(record.response_mask)]
    assert len(talked) > len(records) / 4
    for record in talked:
        assert max(record.turn_ids) >= 1 and list(record.turn_ids) == sorted(record.turn_ids)
        for own, trainer, rollout, trusted in zip(
            record.response_mask, record.trainer_logprobs, record.rollout_logprobs, record.trust_mask, strict=True
        ):
            assert own or (trainer == 0.0 and rollout == 0.0 and not trusted)
        answers = "".join(t for t, own in zip(record.token_texts, record.response_mask, strict=True) if not own)
        assert answers.endswith(";")
