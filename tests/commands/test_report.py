"""`holdfast report`: a page at any time, of runs that are over, running or killed."""

import json

from holdfast.cli import dispatch


def test_a_killed_run_gets_its_page(tmp_path, capsys):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.toml").write_text(
        '[task]\nname = "jsonl"\npath = "data/sums.jsonl"\n[model]\nsource = "owner/small"\n'
        '[objective]\npreset = "dapo"\n'
    )
    lines = [json.dumps({"step": step, "reward_mean": 0.1 * step}) for step in range(1, 5)]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 5, "rew')
    assert dispatch(["report", str(folder)]) == 0
    page = (folder / "report.html").read_text()
    assert "dapo on sums, small" in page and "could not be read" in page
    assert f"wrote {folder / 'report.html'}" in capsys.readouterr().out


def test_what_is_no_run_is_a_sentence(tmp_path, capsys):
    assert dispatch(["report", str(tmp_path)]) == 2
    assert "has no config.toml" in capsys.readouterr().err
    assert dispatch(["report", str(tmp_path / "gone")]) == 2
    assert "no run folder" in capsys.readouterr().err
    assert not (tmp_path / "report.html").exists()


def test_several_runs_get_one_page(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.toml").write_text('[objective]\npreset = "dapo"\n')
        (folder / "metrics.jsonl").write_text(json.dumps({"step": 1, "reward_mean": 0.5}) + "\n")
    assert dispatch(["report", "a", "b"]) == 0
    assert "wrote report-a-b.html" in capsys.readouterr().out
    assert "All curves" in (tmp_path / "report-a-b.html").read_text()
    assert not (tmp_path / "a" / "report.html").exists()
    assert dispatch(["report", "a", "b", "--out", "mine.html"]) == 0 and (tmp_path / "mine.html").is_file()
    assert dispatch(["report", "a", "--out", "mine.html"]) == 2
    assert "one run's is a/report.html" in capsys.readouterr().err
