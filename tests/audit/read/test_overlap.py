"""Folders as the frameworks leave them: no rollout twice, and a word where a folder mixes sources or runs."""

import shutil

import dumps
from holdfast.audit.read.overlap import run_of
from holdfast.audit.read.source import find_files

MADE = dumps.sample_rollouts(count=3)


def found(folder):
    notes = []
    files = find_files(folder, note=notes.append)
    return sorted(str(file.path.relative_to(folder)) for file in files), notes


def test_train_data_stands_for_the_rollouts_of_its_step(tmp_path):
    dumps.slime_train(tmp_path, MADE)
    rollout = dumps.slime_rollout(tmp_path, MADE)
    shutil.copy(rollout, rollout.with_name("13.pt"))
    paths, notes = found(tmp_path)
    assert paths == ["rollout_data/13.pt", "train_data/12.pt"]
    assert any("1 files left out: their rollouts are in train_data/" in note for note in notes)


def test_ranks_of_one_step_are_one_entry(tmp_path):
    dumps.miles_train(tmp_path, MADE)
    dumps.slime_rollout(tmp_path, MADE)
    paths, notes = found(tmp_path)
    assert paths == ["train_data/12_0.pt"]
    assert len(notes) == 1


def test_any_rank_of_a_step_gives_the_whole_step(tmp_path):
    dumps.miles_train(tmp_path, MADE)
    got, _ = dumps.load(tmp_path / "train_data" / "12_3.pt")
    assert [r.response_ids for r in got] == [r.response_ids for r in MADE]


def test_effective_traces_stand_for_all_and_training_for_evaluation(tmp_path):
    effective = dumps.traces(tmp_path, MADE)
    for other in ("train/all", "eval/all"):
        folder = effective.parents[2] / other
        folder.mkdir(parents=True)
        shutil.copy(effective, folder / "traces.jsonl")
    paths, notes = found(tmp_path)
    assert paths == ["rollouts/step_12/train/effective/traces.jsonl"]
    assert any("effective/traces.jsonl" in note for note in notes)
    assert any("evaluations" in note for note in notes)
    assert found(tmp_path / "rollouts/step_12/eval")[0] == ["all/traces.jsonl"]


def test_token_exports_stand_for_traces(tmp_path):
    dumps.traces(tmp_path, MADE)
    dumps.prime_rl_tokens(tmp_path, MADE)
    assert found(tmp_path)[0] == ["token_exports/step_12/rank_0.jsonl"]


def test_evaluations_alone_are_read(tmp_path):
    path = dumps.slime_rollout(tmp_path, MADE)
    path.rename(path.with_name("eval_12.pt"))
    assert found(tmp_path)[0] == ["rollout_data/eval_12.pt"]


def test_several_runs_and_sources_in_a_folder_are_said(tmp_path):
    for name in ("exp_001", "exp_002"):
        (tmp_path / name).mkdir()
        dumps.nemo_rl(tmp_path / name, MADE)
    paths, notes = found(tmp_path)
    assert len(paths) == 2
    assert notes == [
        "files of 2 folders are taken for one run: exp_001, exp_002; audit them one by one if they are several"
    ]
    dumps.open_instruct(tmp_path / "exp_001", MADE)
    assert any(
        "several sources" in note and "NeMo-RL" in note and "open-instruct" in note for note in found(tmp_path)[1]
    )


def test_steps_of_one_run_are_one_run(tmp_path):
    path = dumps.prime_rl_tokens(tmp_path, MADE)
    other = path.parents[1] / "step_13"
    shutil.copytree(path.parent, other)
    assert found(tmp_path)[1] == []
    assert run_of(path) == run_of(other / "rank_0.jsonl") == tmp_path
