"""README and docs: every Python block runs as it stands, every link to a file leads somewhere."""

import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "examples" / "README.md", *(ROOT / "docs").rglob("*.md")]
PYTHON = re.compile(r"```python\n(.*?)```", re.DOTALL)
LINK = re.compile(r"\]\((?!https?:|#|mailto:)([^)#\s]+)")

# What a reader has at hand where a block begins in the middle of a run.
BATCH = """
import torch, holdfast
mask = torch.ones(16, 6, dtype=torch.bool)
sampled = -torch.rand(16, 6, generator=torch.Generator().manual_seed(0)) - 0.2
batch = holdfast.Batch(torch.tensor([1.0, -1.0] * 8), mask, old_logprobs=sampled, rollout_logprobs=sampled)
rewards, prompts = torch.tensor([1.0, 0.0] * 8), torch.arange(16) // 2
"""
BEFORE = {
    "docs/theory/README.md": BATCH + "stats = holdfast.TokenStats(logprobs=sampled, kl_rollout=torch.zeros(16, 6))\n",
    "docs/audit.md": """
from pathlib import Path
from holdfast.audit.simulate.run import clean_run
from holdfast.rollout.store import write_rollouts
Path("runs/last-night").mkdir(parents=True)
write_rollouts("runs/last-night/step_0001.parquet", clean_run(2, mean_length=20))
""",
    "docs/lm_head.md": BATCH
    + """
from types import SimpleNamespace
objective = holdfast.preset("trm")
hidden, rollout_hidden = (torch.randn(16, 6, 8).requires_grad_() for _ in range(2))
targets = torch.zeros(16, 6, dtype=torch.long)
rollout_weight = torch.randn(11, 8)
model = SimpleNamespace(lm_head=torch.nn.Linear(8, 11, bias=False))
""",
}
THEIR_OWN = ("from trl import", "import verl", "integrations.trl import")
"""Blocks that the tests of the plug-ins run, in environments that have the frameworks."""


def blocks():
    for page in PAGES:
        for number, block in enumerate(PYTHON.findall(page.read_text(encoding="utf-8"))):
            if not any(word in block for word in THEIR_OWN):
                yield pytest.param(page, block, id=f"{page.relative_to(ROOT)}-{number}")


@pytest.mark.parametrize(("page", "block"), [*blocks()])
def test_a_block_runs(page, block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names = {}
    exec(BEFORE.get(str(page.relative_to(ROOT)), ""), names)
    exec(block, names)


def test_the_first_block_of_the_library_leaves_a_gradient(capsys):
    (block,) = (b for b in PYTHON.findall((ROOT / "README.md").read_text()) if "holdfast.preset" in b)
    names = {}
    exec(block, names)
    assert names["objective"].explain() in capsys.readouterr().out
    gradient = names["current"].grad
    assert torch.isfinite(gradient).all() and gradient.abs().sum() > 0


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    gone = [link for link in LINK.findall(text) if not (page.parent / link).exists()]
    assert not gone
