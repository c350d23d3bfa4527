"""From files to the course of one run: whose log, which steps, what is joined and what is kept apart."""

import json

import numpy as np
import pytest

from holdfast.audit.read.reading import Reading
from holdfast.audit.read.scalars.names import TABLES, framework_of, known_names
from holdfast.audit.read.scalars.runs import find_logs, read_scalars
from holdfast.errors import DataError

STEPS = range(1, 13)


def lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def verl(step, reward=None):
    return {"step": step, "data": {"critic/score/mean": step / 100 if reward is None else reward, "actor/entropy": 0.5}}


@pytest.mark.parametrize("framework", TABLES)
def test_every_name_of_every_framework_is_read(tmp_path, framework):
    for ours, names in TABLES[framework].items():
        for name in names:
            bare = name.removeprefix("1-")
            others = {n.removeprefix("1-"): 0.5 for key, ns in TABLES[framework].items() if key != ours for n in ns[:1]}
            rows = [{"step": s, bare: s / 16} | {n: v for n, v in others.items() if n != bare} for s in STEPS]
            course = read_scalars(lines(tmp_path / "log.jsonl", rows), Reading()).course
            expected = [1 - s / 16 if name != bare else s / 16 for s in STEPS]
            np.testing.assert_allclose(course.series[ours].values, expected, err_msg=f"{framework} {name}")


@pytest.mark.parametrize("framework", sorted(set(TABLES) - {"ms-swift"}))
def test_a_framework_is_told_by_its_names(framework):
    assert framework_of([names[0].removeprefix("1-") for names in TABLES[framework].values()]) == framework


def test_trainer_state_and_tensorboard_prefix(tmp_path):
    history = [{"step": s, "reward": s / 10, "completions/clipped_ratio": 0.1, "loss": 0.0} for s in STEPS]
    path = tmp_path / "trainer_state.json"
    path.write_text(json.dumps({"log_history": [*history, {"step": 12, "train_runtime": 3.0}], "global_step": 12}))
    log = read_scalars(path, Reading())
    assert log.course.framework == "TRL"
    assert log.course.series["truncated"].values.tolist() == [0.1] * 12
    assert known_names("TRL")["train/reward"][0] == "reward"


def test_the_checkpoints_of_one_run_are_one_run(tmp_path):
    for last in (4, 8, 12):
        path = tmp_path / f"checkpoint-{last}" / "trainer_state.json"
        path.parent.mkdir()
        path.write_text(json.dumps({"log_history": [{"step": s, "reward": s / 10} for s in range(1, last + 1)]}))
    assert len(read_scalars(tmp_path, Reading()).course.series["reward"]) == 12


def test_console_of_verl_with_ray_and_colours(tmp_path):
    path = tmp_path / "train.log"
    line = "\x1b[36m(TaskRunner pid=9)\x1b[0m step:{} - actor/entropy:0.5 - critic/score/mean:np.float64({})\n"
    path.write_text("loading\n" * 20_000 + "".join(line.format(s, s) for s in STEPS))
    course = read_scalars(path, Reading()).course
    assert course.framework == "verl"
    assert course.series["reward"].values.tolist() == list(STEPS)


def test_console_of_slime_counts_rollouts_and_updates_apart(tmp_path):
    path = tmp_path / "run.out"
    path.write_text(
        "".join(
            f"[t] model.py:918 - step {2 * s}: {{'train/grad_norm': 0.5, 'train/ppo_kl': nan, 'train/step': {2 * s}}}\n"
            f"[t] data.py:135 - rollout {s}: {{'rollout/raw_reward': {s / 10}, 'rollout/truncated': 0.0}}\n"
            for s in STEPS
        )
    )
    course = read_scalars(path, Reading()).course
    assert course.framework == "slime"
    assert course.series["gradient_norm"].steps.tolist() == [2 * s for s in STEPS]
    assert course.series["reward"].steps.tolist() == list(STEPS)
    assert np.isnan(course.series["kl_old"].values).all()


def test_wandb_chart_of_one_run_and_of_two(tmp_path):
    path = tmp_path / "export.csv"
    heads = ["Step", "lucky-sun-3 - train/reward", "lucky-sun-3 - train/reward__MIN", "lucky-sun-3 - _step"]
    path.write_text("\n".join([",".join(f'"{h}"' for h in heads), *(f"{s},{s / 10},0,{s}" for s in STEPS)]))
    assert read_scalars(path, Reading()).course.series["reward"].values.tolist() == [s / 10 for s in STEPS]
    heads[2] = "calm-sea-4 - train/reward"
    path.write_text("\n".join([",".join(f'"{h}"' for h in heads), *(f"{s},{s / 10},0,{s}" for s in STEPS)]))
    with pytest.raises(DataError, match=r"2 runs \(calm-sea-4, lucky-sun-3\)"):
        read_scalars(path, Reading())


def test_other_names_are_told_what_was_looked_for_and_can_be_given(tmp_path):
    path = tmp_path / "export.csv"
    path.write_text("_step,my_reward\n" + "\n".join(f"{s},{s}" for s in STEPS))
    with pytest.raises(DataError, match=r"my_reward.*reward as critic/score/mean.*--map reward=NAME"):
        read_scalars(path, Reading())
    log = read_scalars(path, Reading(columns={"reward": "my_reward"}))
    assert log.course.series["reward"].values.tolist() == list(STEPS)


def test_no_steps_are_said_and_counted(tmp_path):
    reading = Reading()
    course = read_scalars(lines(tmp_path / "a.jsonl", [{"critic/score/mean": s} for s in STEPS]), reading).course
    assert course.series["reward"].steps.tolist() == list(STEPS)
    assert "12 rows name no step" in reading.notes[0]


def test_a_resumed_run_counts_as_written_last(tmp_path):
    reading = Reading()
    rows = [*(verl(s, 0.0) for s in range(1, 9)), *(verl(s, 1.0) for s in range(6, 13))]
    reward = read_scalars(lines(tmp_path / "a.jsonl", rows), reading).course.series["reward"]
    assert reward.steps.tolist() == list(STEPS)
    assert reward.values.tolist() == [0.0] * 5 + [1.0] * 7
    assert "steps 6 to 8 were logged more than once" in reading.notes[0]


def test_two_files_of_a_resumed_run_are_joined(tmp_path, write_events):
    reading = Reading()
    write_events(tmp_path / "events.out.tfevents.1", [(s, {"critic/score/mean": 0.0}) for s in range(1, 9)])
    write_events(tmp_path / "events.out.tfevents.2", [(s, {"critic/score/mean": 1.0}) for s in range(6, 13)])
    reward = read_scalars(tmp_path, reading).course.series["reward"]
    assert reward.values.tolist() == [0.0] * 5 + [1.0] * 7
    assert "goes on at step 6" in reading.notes[0]


def test_two_runs_in_one_folder_are_refused_by_name(tmp_path):
    lines(tmp_path / "a.jsonl", [verl(s) for s in STEPS])
    lines(tmp_path / "b.jsonl", [verl(s, 0.3) for s in STEPS])
    with pytest.raises(DataError, match=r"2 runs or more.*a\.jsonl.*b\.jsonl"):
        read_scalars(tmp_path, Reading())


def test_two_components_of_one_run_are_one_run(tmp_path):
    lines(tmp_path / "trainer" / "metrics.jsonl", [{"step": s, "optim/grad_norm": 1.0} for s in STEPS])
    lines(tmp_path / "orch" / "metrics.jsonl", [{"step": s, "train/agg/all/reward/mean": s / 20} for s in STEPS])
    course = read_scalars(tmp_path, Reading()).course
    assert course.framework == "prime-rl"
    assert {"reward", "gradient_norm"} <= set(course.series)


def test_nan_is_kept(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(f'{{"step": {s}, "data": {{"actor/grad_norm": NaN, "actor/lr": "NaN"}}}}\n' for s in STEPS))
    course = read_scalars(path, Reading()).course
    assert np.isnan(course.series["gradient_norm"].values).all()
    assert np.isnan(course.series["learning_rate"].values).all()


def test_other_files_are_no_logs(tmp_path):
    (tmp_path / "config.json").write_text('{"lr": 0.1, "name": "x"}')
    (tmp_path / "notes.txt").write_text("step by step\n")
    lines(tmp_path / "rollouts.jsonl", [{"step": 1, "token_ids": [1, 2], "reward": 1.0}])
    assert find_logs(tmp_path) == []
    assert read_scalars(tmp_path, Reading()) is None


def test_summaries_and_other_records_beside_a_log_are_left_aside(tmp_path):
    """A summary says other things of the last step, a ledger counts seconds its own way: neither is another run."""
    lines(tmp_path / "log.jsonl", [verl(s) | {"seconds": s} for s in STEPS])
    lines(tmp_path / "ledger.jsonl", [{"step": s, "seconds": -1.0} for s in STEPS])
    (tmp_path / "summary.json").write_text(json.dumps({"step": 12, "critic/score/mean": 0.9, "seconds": 7}))
    log = read_scalars(tmp_path, Reading())
    assert [file.name for file in log.files] == ["log.jsonl"]
    assert log.course.series["reward"].values.tolist() == [s / 100 for s in STEPS]


def test_files_that_are_not_to_be_looked_at(tmp_path):
    lines(tmp_path / "log.jsonl", [verl(s) for s in STEPS])
    other = lines(tmp_path / "other.jsonl", [verl(s, reward=0.9) for s in STEPS])
    with pytest.raises(DataError, match="2 runs"):
        read_scalars(tmp_path, Reading())
    assert read_scalars(tmp_path, Reading(), without={other}).files == (tmp_path / "log.jsonl",)
