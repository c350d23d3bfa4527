"""The command over run files, launch files, run folders and logs; what it cannot read is refused with the fix."""

import json
from pathlib import Path

import pytest

from holdfast.audit.simulate.run import clean_run
from holdfast.cli import dispatch
from holdfast.rollout.store import write_rollouts

EXAMPLES = Path(__file__).parents[2] / "examples"
STALE = '[engine]\nlag = 8\n[objective]\npreset = "ppo"\n'


def asked(capsys, *arguments):
    code = dispatch(["advise", *map(str, arguments), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["exit_code"] == code
    return found


def verdicts(found):
    return {line["id"]: line["verdict"] for line in found["lines"]}


@pytest.fixture
def run_file(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text(STALE)
    return path


@pytest.fixture
def log(tmp_path):
    folder = tmp_path / "log"
    folder.mkdir()
    write_rollouts(folder / "rollouts.parquet", clean_run(3, prompts=8, group_size=4, mean_length=40, age=2))
    return folder


def test_a_stale_run_is_told_what_to_write(run_file, capsys):
    found = asked(capsys, run_file)
    assert verdicts(found)["rollout_ratio"] == "change" and found["exit_code"] == 1
    assert found["propose"]["denominator"] == "rollout" and found["setting"]["lag"] == 8
    figures = [figure for line in found["lines"] for figure in line["figures"]]
    assert figures and all(figure["text"] and figure["page"].startswith("docs/evidence/") for figure in figures)
    assert any(line["not_measured"] for line in found["lines"])


def test_what_it_proposes_it_then_leaves_alone(run_file, capsys):
    dispatch(["advise", str(run_file)])
    text = capsys.readouterr().out
    assert "CHANGE" in text
    _, _, table = text.partition("To write into the run:\n")
    run_file.write_text("[engine]\nlag = 8\n" + table)
    assert asked(capsys, run_file)["exit_code"] == 0


def test_keys_of_the_run_are_options(run_file, capsys):
    found = asked(capsys, run_file, "--engine.lag", "0", "--batch.minibatches", "4", "--objective.preset", "sspo")
    assert verdicts(found)["hard_gate_for_reuse"] == "change" and found["propose"]["preset"] == "grpo"
    assert "rollout_ratio" not in verdicts(found)


def test_where_nothing_was_measured_it_says_so_and_names_the_nearest(run_file, capsys):
    assert dispatch(["advise", str(run_file), "--batch.minibatches", "4"]) == 3
    text = capsys.readouterr().out
    assert "NOT MEASURED" in text and "Nearest measured: int8 engine, 8 updates behind" in text
    assert "4 optimiser steps a rollout batch (1 there)" in text


@pytest.mark.parametrize("path", sorted(EXAMPLES.rglob("*.toml")), ids=lambda path: path.stem)
def test_every_example_is_read(path, capsys):
    found = asked(capsys, path)
    assert found["objective"] and None not in [found["setting"][key] for key in ("lag", "updates", "tokens")]


def test_a_launch_file_is_read_for_its_trainer(capsys):
    assert dispatch(["advise", str(EXAMPLES / "launch" / "cluster_8x8.toml"), "--framework", "verl"]) == 1
    text = capsys.readouterr().out
    assert "bfloat16 engine" in text and "The same in verl:" in text and "policy_loss.objective=" in text


def test_a_log_tells_its_age_and_gets_thresholds(log, capsys):
    found = asked(capsys, log)
    assert found["setting"]["lag"] == 2 and found["setting"]["updates"] is None and found["objective"] is None
    assert set(found["thresholds"]["advice"]["recommendations"]) == {"trm_max", "trm_avg", "ln_trm"}
    (line,) = (line for line in found["lines"] if line["id"] == "rollout_ratio")
    assert line["verdict"] == "depends" and set(line["unknown"]) == {"updates", "objective"}
    said = asked(capsys, log, "--batch.minibatches", "1", "--objective.preset", "ppo")
    # Its drift is far below any at which that was measured.
    assert verdicts(said)["rollout_ratio"] == "not judged" and said["exit_code"] == 0
    write_rollouts(log / "rollouts.parquet", clean_run(3, prompts=8, group_size=4, mean_length=40, age=2, update=0.5))
    said = asked(capsys, log, "--batch.minibatches", "1", "--objective.preset", "ppo")
    assert verdicts(said)["rollout_ratio"] == "change" and said["propose"]["denominator"] == "rollout"


def test_a_broken_log_gets_no_threshold(log, capsys):
    path = log / "rollouts.parquet"
    rollouts = clean_run(3, prompts=8, group_size=4, mean_length=40)
    path.unlink()
    from dataclasses import replace

    positive = [replace(one, trainer_logprobs=tuple(0.5 for _ in one.trainer_logprobs)) for one in rollouts]
    write_rollouts(path, positive)
    found = asked(capsys, log)
    assert found["thresholds"]["advice"] is None and found["thresholds"]["propose"] == []
    assert "Fix the log first" in found["thresholds"]["missing"][0]
    assert found["thresholds"]["audit"].startswith("The log itself is wrong")


def test_a_run_folder_tells_its_settings_too(log, run_file, capsys):
    (log / "config.toml").write_text(STALE)
    for path in (log, log / "rollouts.parquet"):
        found = asked(capsys, path)
        assert verdicts(found)["rollout_ratio"] == "not judged" and found["objective"] == {"preset": "ppo"}
        # What was seen goes before what was allowed.
        assert found["setting"]["lag"] == 2 and found["setting"]["tokens"] < 256


def test_a_mask_that_pays_is_written_beside_the_runs_objective(log, capsys, monkeypatch):
    from holdfast.core.advise import Recommendation, SweepPoint

    point = SweepPoint(0.123456, 0.9, (0.9,) * 4, 0.1, 0.2)
    mask = Recommendation("trm_max", {"delta": 0.123456, "detector": "kl_exact"}, point, True, 0.8, "TRM-Max: set it")
    monkeypatch.setattr("holdfast.commands.advise.proposed_masks", lambda sample: {"trm_max": mask})
    found = asked(capsys, log, "--objective.preset", "ppo", "--batch.minibatches", "1")
    assert found["exit_code"] == 1
    assert found["propose"] == {"preset": "ppo+trm_max", "delta": 0.1235, "detector": "kl_exact"}
    found = asked(capsys, log, "--framework", "verl")
    assert found["exit_code"] == 1 and found["propose"] is None
    assert "rollout_rs=seq_max_k2" in found["thresholds"]["lines"]["trm_max"]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("empty.toml", "", "is empty; write a run's file"),
        ("pyproject.toml", "[project]\nname = 'x'\n", "is no run's file: it has project, and no key of one"),
        ("typo.toml", "steps = 3\n[objectives]\n", "unknown key 'objectives'; did you mean objective?"),
        ("broken.toml", "steps = ", "is not valid TOML"),
        ("gone.toml", None, "no configuration file"),
        ("verl.yaml", "actor_rollout_ref: {}\n", "neither a run's TOML file nor rollouts"),
        ("run.sh", "python -m verl.trainer.main_ppo\n", "holdfast advise ROLLOUTS --engine.lag N"),
        ("empty.jsonl", "", "empty.jsonl"),
        ("gone.jsonl", None, "does not exist"),
    ],
)
def test_what_cannot_be_read_is_refused_with_the_fix(tmp_path, capsys, name, text, said):
    if text is not None:
        (tmp_path / name).write_text(text)
    assert dispatch(["advise", str(tmp_path / name)]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give one run's TOML file"),
        (["a.toml", "b.toml"], "give one run's TOML file"),
        (["run.toml", "--framework", "verll"], "did you mean verl?"),
        (["run.toml", "--engine.lagg", "4"], "unknown key 'engine.lagg'; did you mean lag?"),
        (["empty"], "is an empty folder"),
    ],
)
def test_bad_arguments_are_refused(tmp_path, monkeypatch, capsys, run_file, arguments, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    assert dispatch(["advise", *arguments]) == 2
    assert said in capsys.readouterr().err
