"""`holdfast bounds`: the table, the JSON schema, the figure, and bad input."""

import json

import pytest

from holdfast.cli import dispatch
from holdfast.commands.bounds import run

NAMES = {
    "classical", "coupling", "pinsker_marginal_kl", "pinsker_marginal_tv", "mixed_kl", "mixed_tv", "adaptive",
    "linear", "path", "survival", "cauchy_schwarz", "martingale", "split", "two_parts", "sequence_kl",
}  # fmt: skip


def output(capsys, *argv):
    assert run(["--horizon", *argv]) == 0
    return capsys.readouterr().out


def test_json(capsys):
    found = json.loads(output(capsys, "4096", "--kl", "1e-4", "--seq-kl", ".01", "--chi2", "2e-4", "--json"))
    assert found["horizon"] == 4096
    assert found["inputs"] == {"kl": 1e-4, "seq_kl": 0.01, "chi2": 2e-4}
    rows = {row["name"]: row for row in found["bounds"]}
    assert set(rows) == NAMES
    assert set(rows["classical"]) == {"name", "value", "halved", "vacuous", "assumptions"}
    assert rows["classical"]["value"] == pytest.approx(1677.31, abs=0.01)
    assert rows["classical"]["vacuous"] is True
    assert rows["martingale"]["value"] == rows["martingale"]["halved"] == pytest.approx(0.3351, abs=1e-4)
    assert (found["unified"]["winner"], found["unified"]["value"]) == ("sequence_kl", pytest.approx(0.01))
    assert found["unified_published"]["value"] == pytest.approx(8.192)
    assert found["allowed_kl"]["holdfast"] == pytest.approx(1 / 4096, rel=1e-3)
    assert found["allowed_kl"]["published"] == pytest.approx(2.86e-6, rel=1e-2)


def test_table_marks_the_winner_and_the_vacuous(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "140")
    lines = output(capsys, "4096", "--kl", "1e-4").splitlines()
    row = {line.split()[0]: line for line in lines if line.strip()}
    assert "1677.3" in row["classical"]
    assert "vacuous" in row["classical"]
    assert "tightest" in row["sequence_kl"]
    assert "vacuous" not in row["sequence_kl"]
    text = " ".join(lines)
    assert "Error at most 0.4096 (sequence_kl)" in text
    assert "The tightest published bound is 34.946 (pinsker_marginal_kl)" in text


def test_error_limit(capsys):
    assert "at most 0.1 needs a KL per token of at most 2.44e-05" in output(
        capsys, "4096", "--kl", "1e-4", "--error", ".1"
    )


def test_figure(capsys, tmp_path):
    for name, argv in {"all": ("4096", "--kl", "1e-4", "--seq-kl", ".01"), "one": ("1", "--tv", ".1")}.items():
        path = tmp_path / f"{name}.svg"
        output(capsys, *argv, "--plot", str(path))
        text = path.read_text()
        assert "<svg" in text
        assert "vacuous above 1" in text
    assert "sequence_kl" in (tmp_path / "all.svg").read_text()


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--horizon", "0", "--kl", "1e-4"], "horizon is 0"),
        (["--horizon", "10"], "no drift given: give at least one of --kl"),
        (["--horizon", "10", "--kl", "-1"], "kl is -1"),
        (["--horizon", "10", "--kl", "nan"], "kl is nan"),
        (["--horizon", "10", "--tv", "1.5"], "tv is 1.5"),
        (["--horizon", "10", "--kl", "1e-4", "--tv", ".5"], "Pinsker"),
        (["--horizon", "10", "--kl", "1e-4", "--seq-kl", "1"], "seq_kl = 1 is impossible"),
        (["--horizon", "10", "--kl", "1e-4", "--error", "0"], "error is 0"),
        (["--horizon", "10", "--seq-tv", ".1"], "give at least kl or tv"),
    ],
)
def test_unusable_input_is_named_and_exits_with_two(capsys, argv, words):
    assert dispatch(["bounds", *argv]) == 2
    assert words in capsys.readouterr().err
