"""What a line's evidence comes to, and that what is kept is what was made."""

import pytest

from holdfast.advice.lines import read_lines
from holdfast.advice.measured import Figure, Measured, Outcome, read_measured, status_of, status_words, to_text
from holdfast.advice.setting import Setting
from holdfast.errors import DataError


def figures(*support):
    return tuple(Figure("s", "t", "all runs", "text.", one, Setting(lag=1)) for one in support)


@pytest.mark.parametrize(
    ("support", "status", "words"),
    [
        (["shown"], "shown", "shown"),
        (["shown", "shown"], "shown", "shown in both comparisons"),
        (["shown", "alike", "said"], "shown", "shown in both comparisons"),
        (["shown", "not separated"], "in part", "shown in 1 of 2 comparisons"),
        (["shown", "too few seeds"], "shown", "shown, 1 more with too few seeds"),
        (["alike", "alike"], "alike", "nothing was separated"),
        (["not separated", "alike", "alike"], "not separated", "not shown: nothing was separated"),
        (["alike", "not separated"], "not separated", "not shown: nothing was separated"),
        (["not separated"], "not separated", "not shown: nothing was separated"),
        (["too few seeds", "said"], "too few seeds", "not judged: too few seeds"),
        (["said"], "said", "what was seen"),
        (["not run"], "not run", "not measured"),
        ([], "not run", "not measured"),
        (["shown", "not run"], "shown", "shown"),
    ],
)
def test_status(support, status, words):
    assert status_of(figures(*support)) == status
    assert status_words(figures(*support)) == words


def test_what_is_kept_is_what_was_made(tmp_path):
    outcome = Outcome("s", "all runs", "reward", "a", "0123", 0.5, ".50", ".10", Setting(kl=0.1))
    measured = Measured({"one": figures("shown", "said")}, (outcome,))
    (tmp_path / "m.json").write_text(to_text(measured))
    assert read_measured(tmp_path / "m.json") == measured
    assert outcome.page == measured.figures["one"][0].page == "docs/evidence/s.md"


@pytest.mark.parametrize("text", ["", "{}", '{"figures": [{"line": "x"}], "outcomes": []}', None])
def test_what_cannot_be_read_says_what_writes_it(tmp_path, text):
    if text is not None:
        (tmp_path / "m.json").write_text(text)
    with pytest.raises(DataError, match="`holdfast study --choosing` writes it anew"):
        read_measured(tmp_path / "m.json")


def test_the_kept_figures_speak_of_every_shipped_line():
    assert list(read_measured().figures) == [line.id for line in read_lines().line]
