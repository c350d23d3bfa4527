"""`holdfast preflight`: its exit codes, what it writes, and bad input in one sentence each."""

import json

import pytest
import torch

from holdfast.cli import available, dispatch
from holdfast.commands.preflight import parser
from holdfast.rollout.models import character_tokenizer, tiny_model

QUICK = ["--sampling.max_tokens", "24", "--threads", "1", "--no-sync", "--no-switches"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small open policy and its tokenizer."""
    path = tmp_path_factory.mktemp("model")
    tokenizer = character_tokenizer("abcdefghijklmnopqrstuvwxyz0123456789 .,?ABCDEFGHIJKLMNOPQRSTUVWXYZ")
    model = tiny_model(tokenizer, hidden=32, layers=1, heads=2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(6.0)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def call(folder, *argv):
    return dispatch(["preflight", "--model", str(folder), "--engine", "embedded", *argv])


@pytest.mark.slow
def test_a_fine_engine_exits_with_0_and_leaves_page_and_json(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert call(folder, "--engine.precision", "float32", "--responses", "96", *QUICK) == 0
    said = capsys.readouterr()
    assert said.out.startswith("Ready: ") and "sampling as the run will" in said.err
    out = tmp_path / f"preflight-{folder.name}"
    assert {path.name for path in out.iterdir()} == {"report.html", "report.json"}
    assert json.loads((out / "report.json").read_text())["verdict"]["tone"] == "clean"


@pytest.mark.slow
def test_findings_exit_with_1_and_json_alone_writes_nothing(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    few = ("--responses", "8", "--json", *QUICK)
    assert call(folder, *few) == 1
    found = json.loads(capsys.readouterr().out)
    assert "not_judged" in {finding["name"] for finding in found["findings"]}
    assert not list(tmp_path.iterdir())
    assert call(folder, *few, "--fail-on", "never") == 0


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "which model? give --model"),
        (["--model", "/nowhere"], "no such folder"),
        (["--model", "{}", "--engine", "vlm"], "engine.kind = 'vlm'"),
        (["--model", "{}", "--engine", "http://x/path"], "without a path"),
        (["--model", "{}", "--engine.precison", "int8"], "did you mean precision"),
        (["--model", "{}", "--nonsense", "1"], "unknown option --nonsense"),
        (["--model", "{}", "--framework", "verll"], "did you mean verl"),
        (["--model", "{}", "--responses", "3"], "--responses 3: must be at least 8"),
        (["--model", "{}", "--length", "7"], "--length 7: must be at least sampling.max_tokens"),
        (["--model", "{}", "--staleness", "-1"], "--staleness -1: must be at least 0"),
        (["--model", "{}", "--update-kl", "0"], "--update-kl 0.0: must be above 0"),
        (["--model", "{}", "--request", "penalty"], "write it as KEY=VALUE"),
        (["--model", "{}", "--request", "repetition_penalty=1.1"], "takes no further fields"),
        (["--model", "{}", "--prompts", "ONE"], "holds 1 prompt: intervals are over prompts"),
        (["--model", "{}", "--engine-template", "absent.jinja"], "--engine-template absent.jinja cannot be read"),
        (["--model", "{}", "--engine.precision", "bfloat16,tail=int8"], "names 'tail'"),
        (["--model", "{}", "--sampling.max_tokens", "4000"], "leaves no room for a prompt"),
    ],
)
def test_unusable_input_is_one_sentence(folder, tmp_path, monkeypatch, capsys, argv, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ONE").write_text("a single prompt\n")
    assert dispatch(["preflight", *(text.replace("{}", str(folder)) for text in argv)]) == 2
    said = capsys.readouterr()
    last = [line for line in said.err.splitlines() if line.startswith("holdfast preflight: ")]
    assert len(last) == 1 and message in said.err
    assert "Traceback" not in said.err and said.out == ""


def test_a_model_that_does_not_fit_is_refused_before_it_is_loaded(folder, monkeypatch, capsys):
    def loaded(*_):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("holdfast.preflight.session.free_memory", lambda device: 1000)
    monkeypatch.setattr("holdfast.preflight.session.build_model", loaded)
    assert call(folder, *QUICK) == 2
    said = capsys.readouterr().err
    assert "the preflight needs about" in said and "--model.memory_check false" in said
    with pytest.raises(AssertionError, match="was loaded"):
        call(folder, "--model.memory_check", "false", *QUICK)


def test_an_interrupt_exits_with_130(folder, monkeypatch, capsys):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("holdfast.preflight.session.run_preflight", stop)
    assert call(folder, *QUICK) == 130
    assert "interrupted" in capsys.readouterr().err


def test_the_run_s_own_file_sets_engine_and_sampling(folder, tmp_path, monkeypatch):
    seen = []

    def look(plan, *_):
        seen.append(plan)
        raise KeyboardInterrupt

    monkeypatch.setattr("holdfast.preflight.session.run_preflight", look)
    run = tmp_path / "run.toml"
    run.write_text(
        f'[model]\nsource = "{folder}"\n[engine]\nprecision = "bfloat16"\n[sampling]\ntop_p = 0.9\n'
        'max_tokens = 50\n[async]\nstaleness = 2\n[task]\nname = "ledger"\n'
    )
    assert dispatch(["preflight", str(run), "--sampling.max_tokens", "60"]) == 130
    plan = seen[0]
    assert (plan.sampling.top_p, plan.sampling.max_tokens, plan.config.engine.precision) == (0.9, 60, "bfloat16")
    assert plan.planned_length == 60 and plan.planned_staleness == 2
    assert dispatch(["preflight", str(tmp_path / "absent.toml")]) == 2


def test_the_command_is_listed_and_explains_itself(capsys):
    assert "preflight" in available()
    with pytest.raises(SystemExit):
        parser().parse_args(["--help"])
    assert "--engine.precision bfloat16" in capsys.readouterr().out
