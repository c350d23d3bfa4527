"""The page and the kept figures follow from the evidence: a changed figure anywhere makes the check red."""

import pytest

from advice.conftest import ENDS
from holdfast.advice.choosing import BEGIN, END, Places, check_choosing, write_choosing
from holdfast.advice.measured import read_measured
from holdfast.errors import DataError


@pytest.fixture
def written(checkout):
    write_choosing(checkout.places)
    return checkout


def test_both_are_written_and_follow(written):
    places = written.places
    page = places.page.read_text()
    assert page.startswith(f"# By hand\n\n{BEGIN}\n\n## In short\n\n- Take b.\n\n## Stale engines\n\nOf letters.\n\n")
    assert page.endswith(f"\n{END}\n\nBy hand, too.\n")
    assert '**Take b**: shown. Set the loss to `ppo` and `denominator = "rollout"`.' in page
    assert (
        "2 updates behind" in page
        and "b beats a by .20" in page
        and "learning rate 2e-4, [small](evidence/small.md):\n    - b beats a by" in page
    )
    assert "## Written, and not run\n\n- What c does (`studies/waiting.toml`)." in page
    assert "| Int8 engine, 2 updates behind" in page and "held-out reward, at the end (start .60): b .70" in page
    assert "later" in read_measured(places.kept).figures
    assert check_choosing(places) == []
    write_choosing(places)
    assert places.page.read_text() == page


def test_a_changed_figure_in_the_evidence_is_seen(written):
    ends = {"a": ENDS["a"], "b": [value + 0.1 for value in ENDS["b"]]}
    written.results(ends)
    found = check_choosing(written.places)
    assert [text.split(" does not follow")[0] for text in found] == [str(written.places.page), str(written.places.kept)]
    assert all("`holdfast study --choosing` writes it anew" in text for text in found)


@pytest.mark.parametrize("which", ["page", "kept"])
def test_a_figure_changed_by_hand_is_seen(written, which):
    path = getattr(written.places, which)
    path.write_text(path.read_text().replace("by .20", "by .30"))
    assert [text.split(" does not follow")[0] for text in check_choosing(written.places)] == [str(path)]
    path.unlink()
    if which == "kept":
        assert len(check_choosing(written.places)) == 1


def test_prose_by_hand_stays(written):
    page = written.places.page
    page.write_text(page.read_text().replace("By hand, too", "By another hand"))
    assert check_choosing(written.places) == []
    write_choosing(written.places)
    assert page.read_text().endswith("By another hand.\n")


def test_nothing_is_written_of_a_line_that_is_contradicted(written):
    before = written.places.page.read_text(), written.places.kept.read_text()
    written.results({"a": ENDS["b"], "b": ENDS["a"]})
    with pytest.raises(DataError, match=r"line 'rollout' says 'Take b', and small .* says otherwise: a beats b"):
        write_choosing(written.places)
    assert (written.places.page.read_text(), written.places.kept.read_text()) == before
    assert "says otherwise" in check_choosing(written.places)[0]


def test_what_is_not_shown_is_not_said_as_if_it_were(checkout):
    checkout.results({"a": ENDS["a"], "b": [0.4, 0.6, 0.45, 0.55, 0.6, 0.42]})
    write_choosing(checkout.places)
    page = checkout.places.page.read_text()
    assert "Not shown, nothing was separated: *Take b*." in page and "**Take b**" not in page
    assert "Set the loss" not in page and "In short" not in page


def test_a_page_without_its_marks_is_refused(checkout):
    checkout.places.page.write_text(f"# By hand\n\n{BEGIN}\n")
    with pytest.raises(DataError, match="has lost a mark"):
        write_choosing(checkout.places)
    checkout.places.page.unlink()
    with pytest.raises(DataError, match=r"cannot read .*choosing\.md"):
        check_choosing(checkout.places)


def test_the_repositorys_own_page_follows():
    from pathlib import Path

    root = Path(__file__).parents[2]
    assert check_choosing(Places(root / "docs" / "evidence", root / "studies")) == []
