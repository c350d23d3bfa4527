"""Run files for three trainers, in a working folder with problems only to train on."""

import json
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples" / "launch"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with nothing but the problems, where the examples expect them."""
    problems = [{"prompt": f"{a}+{b}=", "answer": str(a + b)} for a in range(30) for b in range(10)]
    (tmp_path / "examples" / "launch").mkdir(parents=True)
    (tmp_path / "examples" / "launch" / "problems.jsonl").write_text("\n".join(map(json.dumps, problems)))
    for name in ("WORLD_SIZE", "RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path
