"""README's Python runs as it stands: what a reader pastes first must not fail."""

import re
from pathlib import Path

import torch

README = Path(__file__).parents[1] / "README.md"


def _blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


def test_the_first_block_runs_and_leaves_a_gradient(capsys) -> None:
    names: dict = {}
    exec(_blocks()[0], names)
    assert names["objective"].explain() in capsys.readouterr().out
    gradient = names["current"].grad
    assert torch.isfinite(gradient).all() and gradient.abs().sum() > 0


def test_every_block_of_readme_is_python() -> None:
    for block in _blocks():
        compile(block, "README.md", "exec")
