"""The command: what it refuses, plans, collects, draws and checks. Runs themselves: tests/study/test_results.py."""

import pytest
import tomli_w

from holdfast.cli import dispatch
from small_study import STUDY


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A folder with the small study in it, to stand in."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "studies").mkdir()
    (tmp_path / "docs" / "evidence").mkdir(parents=True)
    (tmp_path / "studies" / "small.toml").write_text(tomli_w.dumps(STUDY))
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "which study? give a name (small)"),
        (["smal"], "no study 'smal' in studies: did you mean small?"),
        (["small", "--jobs", "0"], "--jobs 0: must be at least 1"),
        (["mine.toml"], "no file mine.toml"),
        (["gone.json"], "cannot read gone.json"),
        (["--check", "--evidence", "nowhere"], "nowhere does not exist"),
        (["--diagnose"], "no finished run of a study with results in docs/evidence is in runs/studies"),
    ],
)
def test_bad_input_is_refused_with_the_fix(checkout, capsys, arguments, said):
    assert dispatch(["study", *arguments]) == 2
    assert said in capsys.readouterr().err


def test_a_plan_starts_nothing(checkout, capsys):
    assert dispatch(["study", "small", "--plan"]) == 0
    assert "24 runs, 2 configurations" in capsys.readouterr().out
    assert not (checkout / "runs").exists()


def test_evidence_is_collected_drawn_and_checked(checkout, capsys):
    (checkout / "runs" / "studies" / "small").mkdir(parents=True)
    assert dispatch(["study", "small", "--collect"]) == 0
    assert "Not judged" in capsys.readouterr().out
    evidence = checkout / "docs" / "evidence"
    assert {path.name for path in evidence.iterdir()} == {"small.json", "small.md"}
    assert (checkout / "runs" / "studies" / "small" / "report.html").is_file()
    assert dispatch(["study", "--check"]) == 0
    assert "every page in docs/evidence follows" in capsys.readouterr().out
    (evidence / "small.md").write_text("better")
    assert dispatch(["study", "--check"]) == 1
    assert "small.md does not follow" in capsys.readouterr().err
    assert dispatch(["study", "docs/evidence/small.json"]) == 0 and dispatch(["study", "--check"]) == 0
    assert dispatch(["study", "docs/evidence/small.json", "--out", "drawn", "--evidence", "copy"]) == 0
    assert [path.name for path in (checkout / "drawn").iterdir()] == ["report.html"]
    assert {path.name for path in (checkout / "copy").iterdir()} == {"small.json", "small.md"}


def test_a_file_elsewhere_keeps_its_evidence_beside_its_runs(checkout):
    (checkout / "mine.toml").write_text(tomli_w.dumps(STUDY))
    assert dispatch(["study", "mine.toml", "--collect", "--out", "here"]) == 0
    assert {path.name for path in (checkout / "here").iterdir()} == {"mine.json", "mine.md", "report.html"}
    assert not any((checkout / "docs" / "evidence").iterdir())
