"""Checkpoints of other devices, damaged ones, and the best one."""

import hashlib
import json
import shutil

import pytest
import torch

from holdfast.errors import DataError
from holdfast.rollout.models import character_tokenizer, tiny_model
from holdfast.train.keep.checkpoint import (
    best_checkpoint,
    latest_checkpoint,
    load_state,
    load_weights,
    mark_best,
    newest_intact,
    save_checkpoint,
    saved_model,
    tidy,
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


def flip(path, place):
    damaged = bytearray(path.read_bytes())
    damaged[place] ^= 1
    path.write_bytes(damaged)


@pytest.mark.parametrize("name", ["state.pt", "model/model.safetensors", "model/config.json", "SHA256SUMS"])
@pytest.mark.parametrize("damage", ["flipped", "short", "missing"])
def test_the_newest_intact_checkpoint_is_used_and_the_damaged_one_kept_aside(tmp_path, name, damage):
    for step in (1, 2):
        save(tmp_path, step)
    file = tmp_path / "step_0002" / name
    if damage == "flipped":
        flip(file, -8)
    elif damage == "short":
        file.write_bytes(file.read_bytes()[:-8])
    else:
        file.unlink()
    found, said = newest_intact(tmp_path)
    if name == "SHA256SUMS" and damage == "missing":  # as an older version left it
        assert found == tmp_path / "step_0002" and not said
        return
    assert found == tmp_path / "step_0001"
    assert len(said) == 1 and "step_0002 is damaged" in said[0] and "resuming from step_0001" in said[0]
    assert names(tmp_path) == ["step_0001", "step_0002.damaged"]
    save(tmp_path, 2, keep=1)
    assert names(tmp_path) == ["step_0002", "step_0002.damaged"] and newest_intact(tmp_path)[1] == []


def test_without_an_intact_checkpoint_nothing_is_moved(tmp_path):
    for step in (1, 2):
        flip(save(tmp_path, step) / "state.pt", 100)
    with pytest.raises(DataError, match=r"step_0002 is damaged \(state.pt is not what was written\); .*model.source"):
        newest_intact(tmp_path)
    assert names(tmp_path) == ["step_0001", "step_0002"]
    assert newest_intact(tmp_path / "nowhere") == (None, [])


def test_a_full_disk_is_a_sentence_and_costs_no_earlier_checkpoint(tmp_path, monkeypatch):
    save(tmp_path, 1)

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(DataError, match=r"step_0002 could not be written .*No space left.*make room"):
        save(tmp_path, 2, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step_0001"] and newest_intact(tmp_path)[1] == []


def test_sums_are_those_of_sha256sum(tmp_path):
    saved = save(tmp_path, 1)
    lines = dict(reversed(line.split("  ")) for line in (saved / "SHA256SUMS").read_text().splitlines())
    assert lines["state.pt"] == hashlib.sha256((saved / "state.pt").read_bytes()).hexdigest()
    assert {"model/model.safetensors", "model/config.json", "model/tokenizer.json"} <= set(lines)


def test_copies_and_other_files_of_a_person_are_neither_deleted_nor_resumed_from(tmp_path):
    save(tmp_path, 1)
    own = ["step_0003_best", "step_best", "step_0009.bak", "step_7"]
    for name in own:
        shutil.copytree(tmp_path / "step_0001", tmp_path / name)
    (tmp_path / "step_0005").write_text("a file")
    for step in (2, 4):
        save(tmp_path, step, keep=1)
    assert names(tmp_path) == sorted([*own, "step_0004", "step_0005"])
    assert latest_checkpoint(tmp_path) == tmp_path / "step_0004" == newest_intact(tmp_path)[0]


def test_what_a_kill_left_of_checkpoints_is_removed(tmp_path):
    save(tmp_path, 1)
    for name in (".step_0002.tmp", ".step_0001.old", ".step_0002.mine", ".step_x.tmp"):
        (tmp_path / name).mkdir()
    (tmp_path / "best.json.tmp").write_text('{"st')
    tidy(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".step_0002.mine", ".step_x.tmp", "step_0001"]
    tidy(tmp_path / "nowhere")


def test_a_folder_without_its_configuration_or_with_a_damaged_file_is_a_sentence(tmp_path):
    saved = save(tmp_path, 1) / "model"
    model = tiny_model(TOKENIZER, hidden=8, layers=1, heads=1)
    (saved / "model.safetensors").write_bytes((saved / "model.safetensors").read_bytes()[:100])
    with pytest.raises(DataError, match=r"damaged safetensors file"):
        load_weights(model, saved)
    (saved / "config.json").unlink()
    with pytest.raises(DataError, match=r"has no config.json"):
        load_weights(model, saved)


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


def test_a_resumed_state_is_written_with_the_same_bytes(tmp_path):
    """Keys out of a checkpoint are other objects than those of the code, and pickle writes equal objects again."""
    first = save(tmp_path / "a", 1, state={"optimizer": {"state": {0: {"step": 1}}, "groups": [{"lr": 0.1}]}})
    again = torch.load(first / "state.pt", weights_only=False)
    second = save(tmp_path / "b", 1, state={"optimizer": again["optimizer"]})
    assert (first / "state.pt").read_bytes() == (second / "state.pt").read_bytes()
