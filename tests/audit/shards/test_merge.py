"""Partial audits add up: any split of a log and any order of its shards give the audit of the whole."""

import itertools
import pickle

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from audit.shards.conftest import PLANTED, auditor_of, differences, report_of
from holdfast.audit.judge.auditor import Auditor
from holdfast.audit.judge.checks import CHECKS
from holdfast.audit.read.reading import Reading
from holdfast.audit.shards.shard import dump, load
from holdfast.errors import DataError

FILES = range(len(PLANTED))


def split(order, cuts):
    """Shards of a log: its files in this order, cut at these places."""
    ends = [0, *sorted(set(cuts)), len(order)]
    return [order[start:end] for start, end in itertools.pairwise(ends) if end > start]


@pytest.mark.parametrize("small", [False, True])
@pytest.mark.slow
def test_any_split_and_any_order_add_up_to_the_whole(small, planted, request):
    if small:
        request.getfixturevalue("bounded")
    files = planted()
    whole = report_of(auditor_of(files, FILES))
    names = {finding["name"] for finding in whole["findings"] + whole["withheld"]}
    assert len(names & {check.name for check in CHECKS}) >= 8  # something to lose

    @settings(max_examples=5, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
    @given(order=st.permutations(FILES), cuts=st.lists(st.integers(1, 5), min_size=1, max_size=3), data=st.data())
    def add_up(order, cuts, data):
        parts = [load(dump(auditor_of(files, shard))) for shard in split(order, cuts)]
        while len(parts) > 1:  # in any tree
            other = parts.pop(data.draw(st.integers(0, len(parts) - 1)))
            parts[data.draw(st.integers(0, len(parts) - 1))].merge(other)
        assert differences(report_of(parts[0]), whole) == []

    add_up()


def test_asking_a_part_changes_nothing(planted):
    files = planted()
    first, second = auditor_of(files, [0]), auditor_of(files, [1])
    report_of(first)
    first.merge(second)
    assert differences(report_of(first), report_of(auditor_of(files, [0, 1]))) == []


def test_sequences_are_counted_in_reading_order(planted):
    files = planted()
    last, first = auditor_of(files, [5], tokens=10**6), auditor_of(files, [0], tokens=10**6)
    count = sum(map(len, files[5]))
    assert [n for n, _ in last.result().sample.uniform()] == [*range(count)]
    last.merge(first)
    assert [n for n, _ in last.result().sample.uniform()] == [*range(sum(map(len, files[0])) + count)]


def test_parts_of_different_logs_are_refused_by_name(planted):
    one, other = auditor_of(planted(), [0], log="run A"), auditor_of(planted(), [1], log="run B")
    with pytest.raises(DataError, match=r"different logs.*run A, and run B"):
        one.merge(other)


def test_a_file_in_both_parts_is_refused_by_name(planted):
    one, other = auditor_of(planted(), [0, 1]), auditor_of(planted(), [1])
    with pytest.raises(DataError, match="file_1 is in both parts"):
        one.merge(other)


def test_parts_with_different_checks_are_refused():
    one, other = Auditor(Reading()), Auditor(Reading(), checks=[CHECKS[0]()])
    with pytest.raises(DataError, match=rf"different checks.*{CHECKS[1].name}"):
        one.merge(other)


def test_another_version_is_refused_by_name(planted):
    state = dump(auditor_of(planted(), [0]))
    head, _, body = state.partition(b"\n")
    with pytest.raises(DataError, match=r"of Holdfast 0\.0\.1 and this is"):
        load(b'{"holdfast": "0.0.1"}\n' + body)
    with pytest.raises(DataError, match="no partial audit"):
        load(pickle.dumps(1))
    assert load(head + b"\n" + body).facts.sequences == sum(map(len, planted()[0]))
