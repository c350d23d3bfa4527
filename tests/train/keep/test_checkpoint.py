"""Checkpoints of other devices, damaged ones, and the best one."""

import json

import pytest
import torch

from holdfast.errors import DataError
from holdfast.rollout.models import character_tokenizer, tiny_model
from holdfast.train.keep.checkpoint import (
    best_checkpoint,
    latest_checkpoint,
    load_state,
    mark_best,
    save_checkpoint,
    saved_model,
)

TOKENIZER = character_tokenizer("01")


def save(root, step, keep=2, state=None, **options):
    model = tiny_model(TOKENIZER, hidden=8, layers=1, heads=1)
    return save_checkpoint(root, step, keep, model=model, tokenizer=TOKENIZER, state=state or {}, **options)


def names(root):
    return sorted(path.name for path in root.glob("step_*"))


@pytest.fixture
def made_on_a_gpu(tmp_path, monkeypatch):
    """A checkpoint whose tensors say that they lay on cuda:0, as torch.save writes it there."""
    with monkeypatch.context() as patch:
        patch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
        return save(tmp_path, 3, state={"moment": torch.tensor([1.5, 2.5])})


def test_a_checkpoint_of_a_gpu_is_read_without_one(made_on_a_gpu):
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match="CUDA"):
            torch.load(made_on_a_gpu / "state.pt", weights_only=True)
    state = load_state(made_on_a_gpu)
    assert state["moment"].device.type == "cpu" and state["moment"].tolist() == [1.5, 2.5] and state["step"] == 3


def test_a_damaged_state_names_what_is_left(tmp_path):
    for step in (1, 2):
        save(tmp_path, step)
    newest = tmp_path / "step_0002"
    for damage in (b"", b"not a state at all", (newest / "state.pt").read_bytes()[:-200]):
        (newest / "state.pt").write_bytes(damage)
        with pytest.raises(
            DataError, match=r"state.pt is damaged .*move .*step_0002 elsewhere to resume from step_0001"
        ):
            load_state(newest)
    (newest / "state.pt").unlink()
    with pytest.raises(DataError, match=r"has no state.pt; move .*step_0002"):
        load_state(newest)


def test_the_only_checkpoint_is_never_to_be_deleted(tmp_path):
    only = save(tmp_path, 1)
    (only / "state.pt").write_bytes(b"zero")
    with pytest.raises(DataError) as caught:
        load_state(only)
    assert "no earlier checkpoint" in str(caught.value) and "model.source" in str(caught.value)
    assert "delete" not in str(caught.value) and str(only / "model") in str(caught.value)


def test_a_state_that_may_not_be_read_is_not_called_damaged(tmp_path, monkeypatch):
    only = save(tmp_path, 1)

    def refused(*args, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(torch, "load", refused)
    with pytest.raises(DataError, match=r"cannot be read: .*Permission denied"):
        load_state(only)


def judged(*rewards):
    return [{"step": step, "eval_reward": reward} for step, reward in enumerate(rewards) if reward is not None]


def test_the_best_stays_whatever_comes_after(tmp_path):
    records = judged(0.1, 0.5, 0.9, 0.2, 0.9, 0.3)
    for step in range(1, 6):
        best = best_checkpoint(tmp_path, records[: step + 1], saving=step)
        save(tmp_path, step, keep=1, best=best)
        mark_best(tmp_path, records, best)
    assert names(tmp_path) == ["step_0002", "step_0005"]
    marked = json.loads((tmp_path / "best.json").read_text())
    assert marked == {"step": 2, "eval_reward": 0.9, "model": "step_0002/model"}
    assert latest_checkpoint(tmp_path).name == "step_0005"
    assert saved_model(tmp_path, 2).is_dir()


def test_without_a_best_the_newest_stay(tmp_path):
    for step in range(1, 5):
        save(tmp_path, step, keep=2)
    assert names(tmp_path) == ["step_0003", "step_0004"]


def test_best_is_among_what_is_there(tmp_path):
    assert best_checkpoint(tmp_path, judged(0.9, 0.5)) is None, "no checkpoint of the untrained model"
    save(tmp_path, 1)
    assert best_checkpoint(tmp_path, judged(0.9, 0.5, 0.8)) == 1, "step 2 has none"
    assert best_checkpoint(tmp_path, judged(0.9, 0.5, 0.8), saving=2) == 2
    assert best_checkpoint(tmp_path, [{"step": 1, "reward_mean": 1.0}]) is None
