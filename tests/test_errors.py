"""Texts of others in messages."""

import subprocess
import sys
from pathlib import Path

from holdfast.errors import visible

ROOT = Path(__file__).parents[1]


def test_what_steers_a_terminal_is_spelt_out_and_layout_stays():
    assert visible("\x1b]0;title\x07 \x9b1m \u202e \ud800") == "\\x1b]0;title\\x07 \\x9b1m \\u202e \\ud800"
    assert visible("a\n\tb\r", keep="\n\t") == "a\n\tb\\r"


MISTAKES = """
import torch
from holdfast import Batch, TokenStats, preset
mask = torch.ones(1, 2, dtype=torch.bool)
values = {"response_mask": mask, "advantages": torch.ones(1), "old_logprobs": -torch.ones(1, 2)}
batch, stats, objective = Batch(**values), TokenStats(logprobs=-torch.ones(1, 2)), preset("ppo")
for call in (
    lambda: preset(1), lambda: preset(None), lambda: preset(["grpo"]), lambda: objective(values, stats),
    lambda: objective.prepare(values, stats), lambda: objective(batch, vars(stats)), lambda: objective.prepare(None),
):
    try:
        call()
    except Exception as error:
        print(type(error).__name__, error)
"""


def test_things_of_another_kind_are_sentences():
    """In a process of its own: the checks of types that tests switch on would come first."""
    done = subprocess.run([sys.executable, "-c", MISTAKES], capture_output=True, text=True, check=True)
    said = done.stdout.splitlines()
    assert len(said) == 7
    for line, value in zip(said[:3], ("1", "None", "['grpo']"), strict=True):
        assert line.startswith(f"ConfigError preset {value} is no name; allowed: ") and "grpo" in line
    for line, kind in zip(said[3:], ("Batch", "Batch", "TokenStats", "Batch"), strict=True):
        assert line.startswith("DataError ") and f"is no {kind}: make one, holdfast.{kind}(" in line


def test_every_server_that_is_shown_listens_to_this_machine_alone():
    files = [path for name in ("docs", "examples", "src") for path in (ROOT / name).rglob("*")]
    shown = [
        (path.name, line)
        for path in [*files, ROOT / "README.md"]
        if path.suffix in (".md", ".py", ".sh", ".toml")
        for line in path.read_text(encoding="utf-8").splitlines()
        if "vllm serve FOLDER" in line or "vllm serve {folder}" in line or '"serve", "{folder}"' in line
    ]
    assert len(shown) >= 4
    assert [(name, line) for name, line in shown if "127.0.0.1" not in line] == []
