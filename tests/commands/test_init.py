"""`holdfast init` writes a file that `holdfast check` and the configuration accept."""

import json

import pytest
import torch

from holdfast.cli import dispatch
from holdfast.rollout.models import character_tokenizer, tiny_model
from holdfast.train.settings.configfile import load_config

ALPHABET = "".join(chr(n) for n in range(32, 127))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tokenizer = character_tokenizer(ALPHABET)
    tiny_model(tokenizer, hidden=16, layers=1, heads=2, seed=0).to(torch.float32).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def table(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def init(model, data, out, *more):
    return dispatch(["init", "--model", str(model), "--data", str(data), "--out", str(out), *more])


def test_what_it_writes_passes_the_check(model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rows = [{"Question": f"{i}+1?", "answer": f"so\n#### {i + 1}", "level": 1} for i in range(200)]
    data, out = table(tmp_path / "q.jsonl", rows), tmp_path / "runs of mine" / "run.toml"
    assert init(model, data, out, "--steps", "7") == 0
    config = load_config(out)
    assert config.steps == 7 and config.model.source == str(model) and not config.model.chat
    assert config.task.options == {
        "path": str(data),
        "prompt_key": "Question",
        "answer_marker": "####",
        "verifier": "numeric",
    }
    capsys.readouterr()
    assert dispatch(["check", str(out), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {line["status"] for line in found} <= {"ok"}, found
    assert sorted(p.name for p in tmp_path.iterdir()) == ["q.jsonl", "runs of mine"], "nothing else is left behind"


def test_answers_without_numbers_are_compared_as_texts(model, tmp_path):
    data = tmp_path / "a.csv"
    data.write_text("prompt,label\na,one\nb,2\n")
    assert init(model, data, tmp_path / "x.toml", "--eval-data", str(data)) == 0
    options = load_config(tmp_path / "x.toml").task.options
    assert options == {"path": str(data), "eval_path": str(data), "answer_key": "label", "verifier": "exact"}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "x", "which format? known endings are .jsonl, .csv, .tsv, .parquet"),
        ("a.jsonl", '{"text": "x", "answer": 1}', "no column for the prompt among text, answer"),
        ("a.jsonl", '{"prompt": "x", "reply": 1}', "no column for the answer among prompt, reply"),
        ("a.jsonl", "[1]", "has no rows with named columns"),
        ("a.jsonl", '{"prompt": "x", "answer": 1}\n' * 2, "too few rows to hold a tenth of them out"),
        ("a.jsonl", '{"prompt": [{"role": "user", "content": "x"}], "answer": 1}', "has no chat template"),
    ],
)
def test_data_that_cannot_be_guessed_is_a_sentence(model, tmp_path, capsys, name, text, message):
    (tmp_path / name).write_text(text)
    assert init(model, tmp_path / name, tmp_path / "x.toml") == 2
    assert message in capsys.readouterr().err and not (tmp_path / "x.toml").exists()


def test_nothing_is_overwritten_and_missing_things_are_named(model, tmp_path, capsys):
    (tmp_path / "x.toml").write_text("mine")
    assert init(model, tmp_path / "no.jsonl", tmp_path / "x.toml") == 2
    assert "exists: name another with --out" in capsys.readouterr().err
    assert init(model, tmp_path / "no.jsonl", tmp_path / "y.toml") == 2
    assert "there is no such file" in capsys.readouterr().err
    data = table(tmp_path / "q.jsonl", [{"prompt": "a", "answer": "b"}])
    assert init(tmp_path / "no_model", data, tmp_path / "y.toml") == 2
    assert "no such folder" in capsys.readouterr().err
    assert init(model, data, tmp_path / "y.toml", "--steps", "0") == 2
