"""`holdfast check`: every part of a run is looked at, and nothing is left behind."""

import json

import pytest

from holdfast.cli import dispatch


def check(tmp_path, text, capsys, *overrides):
    (tmp_path / "run.toml").write_text(text)
    code = dispatch(["check", str(tmp_path / "run.toml"), *overrides, "--json"])
    printed = capsys.readouterr()
    return code, json.loads(printed.out or "[]"), printed.err


def told(lines, part, status):
    return " / ".join(line["text"] for line in lines if (line["part"], line["status"]) == (part, status))


def test_a_good_run_is_ready(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, lines, _ = check(tmp_path, 'steps = 2\n[task]\nname = "ledger"\nentries = 9\n', capsys)
    assert code == 0 and not [line for line in lines if line["status"] != "ok"]
    assert [line["part"] for line in lines] == [
        *("objective", "data", "model", "engine", "prompt", "prompt", "reward", "batch", "memory")
    ]
    assert "1, 1, 1, 1 for reference answers as responses, 0, 0, 0, 0 for empty ones" in told(lines, "reward", "ok")
    assert [p.name for p in tmp_path.iterdir()] == ["run.toml"]
    assert dispatch(["check", "run.toml"]) == 0
    assert "ready: holdfast train run.toml" in capsys.readouterr().out


def test_everything_that_is_broken_is_named_at_once(tmp_path, capsys):
    text = 'model.source = "./gone"\n[task]\nname = "jsonl"\npath = "no.jsonl"\n[lora]\nrank = 2\n'
    code, lines, _ = check(tmp_path, text, capsys)
    assert code == 1
    assert "there is no such file" in told(lines, "data", "error")
    assert "no such folder" in told(lines, "model", "error")


@pytest.mark.parametrize(
    ("task", "part", "status", "message"),
    [
        ('verifier = "exact"\nmarker = "#"', "reward", "ok", "1, 1, 1, 1 for reference"),
        ('reward = "{folder}/r.py:same"', "reward", "warning", "earns no more than an empty one"),
        ('reward = "{folder}/r.py:broken"', "reward", "warning", "the reward function raised KeyError: 'x'"),
        ('reward = "{folder}/r.py:gone"', "reward", "error", "cannot be imported"),
        ('system = "Be brief."', "prompt", "error", "set model.chat = true"),
        ('eval_path = "{folder}/q.jsonl"', "data", "warning", "are training problems"),
    ],
)
def test_data_prompts_and_rewards(tmp_path, capsys, task, part, status, message):
    rows = [{"prompt": f"{i}?", "answer": str(i)} for i in range(200)]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "r.py").write_text(
        "def same(problem, response): return 1.0\ndef broken(problem, response): raise KeyError('x')\n"
    )
    text = f'evaluation.problems = 8\n[task]\nname = "jsonl"\npath = "{tmp_path}/q.jsonl"\n'
    code, lines, _ = check(tmp_path, text + task.replace("{folder}", str(tmp_path)) + "\n", capsys)
    assert message in told(lines, part, status), lines
    assert code == (1 if status == "error" else 0)


def test_a_run_that_does_not_fit_and_prompts_that_are_too_long(tmp_path, capsys):
    text = "[model]\nhidden = 8192\nlayers = 128\nheads = 64\n[task]\nentries = 20\n[batch]\nmax_prompt_tokens = 30\n"
    code, lines, _ = check(tmp_path, text, capsys)
    assert code == 1 and "needs about" in told(lines, "memory", "error")
    assert "100% are longer and left out" in told(lines, "prompt", "warning")


def test_a_file_that_cannot_be_used_exits_with_2(tmp_path, capsys):
    code, lines, said = check(tmp_path, "stps = 3\n", capsys)
    assert (code, lines) == (2, []) and "did you mean steps" in said
    assert dispatch(["check"]) == 2
