"""The command line as a person meets it: exit codes, messages without tracebacks, files that are named."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import tomli_w

from holdfast import __version__
from holdfast.cli import COMMANDS, available, dispatch
from holdfast.errors import DataError

RUN = {
    "steps": 2,
    "task": {"name": "ledger", "entries": 1},
    "model": {"hidden": 32, "layers": 2, "heads": 2},
    "engine": {"precision": "int8", "lag": 1},
    "sampling": {"max_tokens": 12},
    "objective": {"preset": "trm_max+ppo", "delta": 0.5},
    "batch": {"prompts": 2, "group_size": 4},
    "evaluation": {"every": 1, "problems": 8},
    "checkpoint": {"every": 1},
}


@pytest.fixture
def run_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The small run as a file, in an empty working folder."""
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "small.toml"
    file.write_text(tomli_w.dumps(RUN))
    return file


def test_help_names_every_command(capsys):
    assert dispatch([]) == 0 and dispatch(["--help"]) == 0
    text = capsys.readouterr().out
    for name in available():
        assert f"  {name} " in text and COMMANDS[name] in text
    assert {"train", "demo", "compare", "presets"} <= set(available())


@pytest.mark.parametrize("name", ["train", "demo", "compare", "presets"])
def test_every_command_has_help(name, capsys):
    with pytest.raises(SystemExit) as caught:
        dispatch([name, "--help"])
    assert caught.value.code == 0 and f"holdfast {name}" in capsys.readouterr().out


def test_version(capsys):
    assert dispatch(["--version"]) == 0
    assert capsys.readouterr().out == f"holdfast {__version__}\n"


def test_a_full_disk_is_a_sentence(monkeypatch, capsys):
    def full(argv):
        raise OSError(28, "No space left on device", "metrics.jsonl")

    monkeypatch.setattr("holdfast.commands.presets.run", full)
    assert dispatch(["presets"]) == 2
    assert "presets: No space left on device (metrics.jsonl)" in capsys.readouterr().err


def test_unknown_command(capsys):
    assert dispatch(["trian"]) == 2
    assert "unknown command 'trian'; did you mean train?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train"], "which run? give a TOML file"),
        (["train", "absent.toml"], "no configuration file absent.toml"),
        (["train", "small.toml", "--stpes", "3"], "unknown option --stpes: --help lists the command's own"),
        (["train", "small.toml", "--engine.lag", "-1"], "engine.lag = -1 must be at least 0; nearest valid value: 0"),
        (["train", "small.toml", "--objective.preset", "grppo"], "unknown preset 'grppo': did you mean grpo, ppo"),
        (["train", "small.toml", "--objective.detla", "1"], "no setting 'detla': did you mean delta"),
        (["train", "small.toml", "--task.name", "legder"], "did you mean ledger"),
        (["train", "small.toml", "--task.entires", "3"], "did you mean entries"),
        (["train", "small.toml", "--task.entries", "99"], "task.entries = 99: must be in [1, 26]; nearest valid value"),
        (["train", "small.toml", "--engine.precision", "int9"], "did you mean int8"),
        (["train", "small.toml", "--model.source", "./absent"], "model.source = './absent': no such folder"),
        (["train", "small.toml", "--sampling.max_tokens", "5000"], "max_tokens = 5000 leaves no room for a prompt"),
        (["train", "small.toml", "--batch.max_prompt_tokens", "1"], "no prompt of task 'ledger' fits"),
        (["train", "small.toml", "--task.reward", "nowhere:f"], "task.reward = 'nowhere:f' cannot be imported"),
        (["train", "small.toml", "--task.reward", "reward"], "write package.module:function"),
        (["train", "small.toml", "--resume"], "--resume needs the run to continue"),
        (["train", "small.toml", "--resume", "--run-dir", "absent"], "nothing to resume: absent has no config.toml"),
        (["train", "small.toml", "other.toml"], "one run at a time"),
        (["compare"], "compare what? give TOML files"),
        (["compare", "small.toml"], "nothing to compare"),
        (["compare", "small.toml", "small.toml"], "two of the objectives are the same"),
        (["compare", "small.toml", "--objectives", "ppo,grppo"], "unknown preset 'grppo'"),
        (["compare", "small.toml", "--objectives", "ppo,gspo", "--seeds", "0"], "must be at least 1"),
        (["presets", "grppo"], "unknown preset 'grppo': did you mean grpo, ppo"),
    ],
)
def test_unusable_input_is_explained_without_a_traceback(run_file, arguments, words, capsys):
    assert dispatch(arguments) == 2
    error = capsys.readouterr().err
    assert words in error and "Traceback" not in error


def test_jsonl_prompts_and_their_errors(run_file, capsys):
    Path("problems.jsonl").write_text('{"prompt": "2+2=", "answer": "4"}\n{"prompt": "1+1=", "answer": "2"}\n')
    task = ["--task", "{name = 'jsonl', path = 'problems.jsonl', eval_path = 'problems.jsonl'}"]
    assert dispatch(["train", "small.toml", "--run-dir", "run", "--steps", "1", *task]) == 0
    capsys.readouterr()
    for options, words in (
        (["--task.path", "absent.jsonl"], "task.path = 'absent.jsonl': there is no such file"),
        (["--task.prompt_key", "question"], "no field 'question'"),
        (["--warm_start.sloppy_steps", "1"], "no sloppy teacher"),
        (["--warm_start.clean_steps", "1"], "has no solution"),
    ):
        assert dispatch(["train", "small.toml", *task, *options]) == 2
        assert words in capsys.readouterr().err


@pytest.mark.slow
def test_train_resume_and_refuse(run_file, capsys):
    assert dispatch(["train", "small.toml", "--run-dir", "run"]) == 0
    text = capsys.readouterr().out
    assert "step 2/2" in text and "report: run/report.html" in text and Path("run/report.html").is_file()
    assert dispatch(["train", "small.toml", "--run-dir", "run"]) == 2
    assert "never overwritten" in capsys.readouterr().err
    assert dispatch(["train", "--run-dir", "run", "--resume", "--steps", "3"]) == 0
    assert "step 3/3" in capsys.readouterr().out
    assert json.loads(Path("run/summary.json").read_text())["steps"] == 3
    assert dispatch(["train", "--run-dir", "run", "--resume", "--seed", "7"]) == 2
    assert "seed differ from the run's config.toml" in capsys.readouterr().err


def test_default_folder_is_the_next_free_one(run_file):
    assert dispatch(["train", "small.toml", "--steps", "0"]) == 0
    assert dispatch(["train", "small.toml", "--steps", "0"]) == 0
    assert {path.name for path in Path("runs").iterdir()} == {"small", "small-2"}


@pytest.mark.slow
def test_a_saved_model_can_be_trained_on_and_needs_its_tokenizer(run_file, capsys):
    assert dispatch(["train", "small.toml", "--run-dir", "run", "--steps", "1"]) == 0
    model = Path("run/checkpoints/step_0001/model")
    assert dispatch(["train", "small.toml", "--run-dir", "next", "--model.source", str(model)]) == 0
    for file in model.glob("*token*"):
        file.unlink()
    capsys.readouterr()
    assert dispatch(["train", "small.toml", "--run-dir", "third", "--model.source", str(model)]) == 2
    assert "no tokenizer" in capsys.readouterr().err


@pytest.mark.slow
def test_compare_writes_one_table_and_continues(run_file, capsys):
    command = ["compare", "small.toml", "--objectives", "ppo,gspo", "--seeds", "2", "--out", "cmp"]
    command += ["--warm_start.clean_steps", "2"]
    assert dispatch(command) == 0
    first = capsys.readouterr().out
    assert "report: cmp/report.html" in first and Path("cmp/report.html").is_file()
    results = json.loads(Path("cmp/results.json").read_text())
    assert [(run["objective"], run["seed"]) for run in results["runs"]] == [
        ("ppo", 0), ("gspo", 0), ("ppo", 1), ("gspo", 1),
    ]  # fmt: skip
    for run in results["runs"]:
        assert {len(column) for column in run["curve"].values()} == {3}
        assert run["final"] == run["final_reward"] == run["curve"]["ranked"][-1]
    assert results["ranked_by"]["key"] == "eval_reward" and "mean reward on held-out problems" in first
    starts = {(run["seed"], run["start"], run["curve"]["ranked"][0]) for run in results["runs"]}
    assert len(starts) == 2, "one warm start per seed, shared by the objectives"
    assert len(list(Path("cmp/warm_start").iterdir())) == 2

    assert dispatch([*command, "--rank-by", "kl_exact_mean", "--lowest"]) == 0
    ranked = json.loads(Path("cmp/results.json").read_text())
    assert ranked["ranked_by"] == {"key": "kl_exact_mean", "title": "kl_exact_mean", "lowest": True}
    assert [run["final"] for run in ranked["runs"]] == [run["curve"]["kl_exact_mean"][-1] for run in ranked["runs"]]
    capsys.readouterr()
    assert dispatch([*command, "--rank-by", "kl_exakt_mean"]) == 2
    assert "kl_exakt_mean: no run has measured it" in (error := capsys.readouterr().err) and "kl_exact_mean" in error

    (Path("cmp/runs/gspo/seed_1") / "summary.json").unlink()
    assert dispatch(command) == 0
    again = capsys.readouterr().out
    assert "4 runs, 3 of them finished before" in again and "[1/1] gspo, seed 1" in again
    repeated = json.loads(Path("cmp/results.json").read_text())
    for one, other in zip(results["runs"], repeated["runs"], strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}


@pytest.mark.slow
def test_compare_runs_at_the_same_time_give_the_same_numbers(run_file):
    command = ["compare", "small.toml", "--objectives", "ppo,gspo", "--seeds", "1", "--warm_start.clean_steps", "1"]
    assert dispatch([*command, "--out", "one", "--jobs", "1"]) == 0
    assert dispatch([*command, "--out", "two", "--jobs", "2"]) == 0
    one, two = (json.loads(Path(f"{name}/results.json").read_text())["runs"] for name in ("one", "two"))
    assert [run["curve"] for run in one] == [run["curve"] for run in two]


def test_interrupted_compare_says_how_to_continue(run_file, monkeypatch, capsys):
    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("holdfast.train.loop.train", interrupt)
    assert dispatch(["compare", "small.toml", "--objectives", "ppo,gspo", "--out", "cmp"]) == 130
    assert "interrupted; the same command continues in cmp" in capsys.readouterr().err


def test_a_failed_run_is_reported_and_the_others_count(run_file, monkeypatch, capsys):
    from holdfast.errors import DataError
    from holdfast.train import loop

    train = loop.train

    def sometimes(config, *arguments, **options):
        if config.objective.preset == "gspo":
            raise DataError("the gradient norm is nan")
        return train(config, *arguments, **options)

    monkeypatch.setattr(loop, "train", sometimes)
    assert dispatch(["compare", "small.toml", "--objectives", "ppo,gspo", "--seeds", "1", "--out", "cmp"]) == 1
    assert "gspo, seed 0: failed: the gradient norm is nan" in capsys.readouterr().err
    assert [run["objective"] for run in json.loads(Path("cmp/results.json").read_text())["runs"]] == ["ppo"]


def test_compare_refuses_different_tasks(run_file, capsys):
    Path("other.toml").write_text(tomli_w.dumps(RUN | {"task": {"name": "ledger", "entries": 2}}))
    assert dispatch(["compare", "small.toml", "other.toml"]) == 2
    assert "different tasks" in capsys.readouterr().err


def test_presets_are_listed_and_explained(capsys):
    from holdfast import list_presets

    assert dispatch(["presets"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in list_presets())
    assert dispatch(["presets", "trm+kl_cov"]) == 0
    text = capsys.readouterr().out
    assert "2512.23075" in text and "2505.22617" in text and 'preset = "trm+kl_cov"' in text
    assert dispatch(["presets", "ppo", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["gate"]["kind"] == "clip"


@pytest.mark.skipif(os.name != "posix", reason="POSIX signals")
@pytest.mark.slow
def test_ctrl_c_keeps_the_run_and_exits_130(run_file):
    command = [sys.executable, "-m", "holdfast", "train", "small.toml", "--run-dir", "run", "--steps", "100000"]
    with subprocess.Popen(
        [*command, "--evaluation.every", "0", "--checkpoint.every", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        # A shell's background job starts with Ctrl-C ignored, and what it starts does too.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("step 2/"):
                break
        process.send_signal(signal.SIGINT)
        rest = process.stdout.read()
        assert process.wait(timeout=60) == 130
    assert "interrupted; " in rest and "--resume" in rest and "Traceback" not in rest
    assert Path("run/report.html").is_file()
    kept = json.loads(Path("run/summary.json").read_text())
    assert not kept["finished"] and kept["steps"] >= 2
    assert [path.name for path in Path("run/checkpoints").iterdir()] == [f"step_{kept['steps']:04d}"]


def test_importing_the_command_line_is_light():
    code = "import sys, holdfast.cli; print(sorted({'transformers', 'pyarrow', 'rich', 'pydantic'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_errors_do_not_steer_the_terminal(monkeypatch, capsys):
    def fails(argv):
        raise DataError("red \x1b[31m text\x07 \u202e\nsecond line")

    monkeypatch.setattr("holdfast.commands.presets.run", fails)
    assert dispatch(["presets"]) == 2
    assert capsys.readouterr().err == "holdfast presets: red \\x1b[31m text\\x07 \\u202e\nsecond line\n"


def test_a_folder_that_may_not_be_written_is_a_sentence(tmp_path, monkeypatch, capsys):
    """A folder in place of a file, for a superuser may write anywhere."""

    def refused(argv):
        (tmp_path / "a\x1bb").write_text("")

    (tmp_path / "a\x1bb").mkdir()
    monkeypatch.setattr("holdfast.commands.presets.run", refused)
    assert dispatch(["presets"]) == 2
    assert "Is a directory" in (said := capsys.readouterr().err) and "a\\x1bb" in said


def test_a_password_in_an_address_reaches_no_file(run_file, capsys):
    assert dispatch(["train", str(run_file), "--engine.kind", "server", "--engine.url", "http://me:secret@h:1"]) == 2
    said = capsys.readouterr().err
    assert "engine.url = 'http://...@h:1' holds a name or password" in said and "secret" not in said
    assert not Path("runs").exists()
