"""A checkout in small: one study with results, one that was not run, a page with marks, and lines of its own."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from holdfast.advice.choosing import BEGIN, END, Places
from holdfast.study.definition import parse_study
from holdfast.study.results import write_results
from small_study import STUDY, results_without_runs

SMALL: dict[str, Any] = STUDY | {
    "also": [
        {"key": "entropy", "of": "last", "title": "entropy"},
        {"key": "kl_exact_mean", "of": "highest", "title": "exact KL"},
    ],
    "comparison": [
        {"first": ["b"], "second": "a", "claim": True},
        {"first": ["b"], "second": "a", "number": "entropy:last"},
    ],
}
LINES: dict[str, Any] = {
    "topic": [{"name": "stale", "title": "Stale engines", "intro": "Of letters."}],
    "line": [
        {
            "id": "rollout",
            "topic": "stale",
            "say": "Take b",
            "where": {"lag": [1, 64], "updates": [1, 1]},
            "does": ["ratio to the rollout policy"],
            "change": {"loss": "ppo", "set": {"denominator": "rollout"}},
            "remedy": "clip_on_rollout",
            "evidence": [{"study": "small", "ahead": "b", "behind": "a", "at": {"lag": 2}}],
        },
        {
            "id": "later",
            "topic": "stale",
            "say": "What c does",
            "evidence": [{"study": "waiting", "pair": ["b", "a"]}],
        },
    ],
}
ENDS = {"a": [0.5, 0.52, 0.48, 0.5, 0.51, 0.49], "b": [0.7, 0.73, 0.68, 0.71, 0.7, 0.69]}


@dataclass
class Checkout:
    """Where everything is, and what can be written anew."""

    root: Path

    @property
    def places(self) -> Places:
        """As the command would have them."""
        docs = self.root / "docs" / "evidence"
        return Places(docs, self.root / "studies", self.root / "lines.toml", self.root / "measured.json")

    def lines(self, **changes: Any) -> None:
        """Write the lines, the first of them changed."""
        first = {key: value for key, value in (LINES["line"][0] | changes).items() if value is not None}
        (self.root / "lines.toml").write_text(tomli_w.dumps(LINES | {"line": [first, *LINES["line"][1:]]}))

    def results(self, ends: dict[str, list[float]], chosen: dict[str, Any] | None = None, **changes: Any) -> None:
        """Write the study's results: in every cell configurations end at these values, seed by seed from 2."""
        study = parse_study(SMALL | changes, "small")
        results = results_without_runs(study, ends, start=0.6, chosen=chosen or {})
        write_results(self.places.evidence / "small.json", results)


@pytest.fixture
def checkout(tmp_path) -> Checkout:
    """In which b beats a by .2 at every lag."""
    made = Checkout(tmp_path)
    (tmp_path / "docs" / "evidence").mkdir(parents=True)
    (tmp_path / "studies").mkdir()
    for name in ("small", "waiting"):
        (tmp_path / "studies" / f"{name}.toml").write_text(tomli_w.dumps(SMALL | {"title": f"Study {name}"}))
    (tmp_path / "docs" / "choosing.md").write_text(f"# By hand\n\n{BEGIN}\n\n{END}\n\nBy hand, too.\n")
    made.lines()
    made.results(ENDS)
    return made
