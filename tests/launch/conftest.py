"""Run files for three trainers, in an empty working folder with problems to train on."""

import json
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples" / "launch"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty working folder with problems.jsonl, as the examples expect it."""
    problems = [{"prompt": f"{a}+{b}=", "answer": str(a + b)} for a in range(30) for b in range(10)]
    (tmp_path / "problems.jsonl").write_text("\n".join(map(json.dumps, problems)))
    for name in ("WORLD_SIZE", "RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path
