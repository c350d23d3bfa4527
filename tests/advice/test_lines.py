"""A line says what it speaks of and stands on evidence; what does not fit is refused by its name."""

import copy

import pytest

from advice.conftest import LINES
from holdfast.advice.lines import parse_lines, read_lines
from holdfast.advice.traits import TRAITS
from holdfast.audit.judge.fixes import FIXES
from holdfast.errors import ConfigError
from holdfast.objectives.table import TABLE


def refused(**changes):
    values = copy.deepcopy(LINES)
    values["line"][0] |= changes
    with pytest.raises(ConfigError) as caught:
        parse_lines(values, "lines.toml")
    return str(caught.value)


def test_the_shipped_table_fits_and_holds_no_figures():
    lines = read_lines()
    for line in lines.line:
        asked = [name.removeprefix("!") for name in (*line.only, *line.does)]
        assert set(asked) <= set(TRAITS), line.id
        assert not line.remedy or line.remedy in FIXES, line.id
        assert not any(character.isdigit() for character in line.say + line.note), line.id
        if line.change:
            assert {*line.change.drop, *line.change.add, *filter(None, [line.change.loss])} <= set(TABLE), line.id


@pytest.mark.parametrize(
    ("evidence", "said"),
    [
        ([], "at least 1 item"),
        ([{"study": "small"}], "give one of: ahead and behind, alike, pair, value, signal"),
        ([{"study": "small", "ahead": "b"}], "give one of"),
        ([{"study": "small", "ahead": "b", "behind": "a", "value": "a"}], "give one of"),
        ([{"study": "small", "pair": ["a"]}], "name two configurations"),
        ([{"study": "small", "pair": ["a", "b"], "most": 0.5}], "limits of a value or a signal"),
        ([{"study": "small", "value": "a"}], "nothing could support the change"),
    ],
)
def test_evidence_is_one_thing_that_can_be_looked_up(evidence, said):
    text = refused(evidence=evidence)
    assert said in text and "line rollout" in text


def test_a_change_says_who_needs_it():
    assert "give both or neither" in refused(does=[])
    assert "Extra inputs are not permitted" in refused(sayings="x")
    assert "should match pattern" in refused(say="Take b.")


def test_names_fit():
    assert "no topic 'fresh'; there are stale" in refused(topic="fresh")
    assert "line ids ['later']: each once" in refused(id="later")


def test_a_file_that_is_no_toml_is_named(tmp_path):
    (tmp_path / "lines.toml").write_text("[[line]")
    with pytest.raises(ConfigError, match=r"lines\.toml is not valid TOML"):
        read_lines(tmp_path / "lines.toml")
