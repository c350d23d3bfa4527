"""Parts of a measurement add up in any order, and what is kept of many is the same in any order."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.audit.measure.adding import First, Sampled, SampledRows, Span, add_up, hash_numbers, hash_text


def test_hashes_are_the_same_everywhere():
    """SplitMix64 of 0 and 1 from seed 0, by its published constants: next() of state 0 is e220a8397b1dcdaf."""
    assert hash_numbers(0).tolist() == [0xE220A8397B1DCDAF]
    assert len({*hash_numbers(np.arange(1000)).tolist()}) == 1000
    assert hash_numbers(5, 1) != hash_numbers(5, 2)
    assert hash_text("a") == 0xE8B7BE43  # CRC-32


def test_states_add_up_part_by_part():
    class State:
        def __init__(self, k):
            self.count, self.sums, self.seen, self.flag, self.none = k, np.array([k, 1.0]), {k}, k > 1, None
            self.steps, self.parts = {k: np.array([1]), 0: np.array([k])}, [First(2, [k]), Span(float(k), float(k))]

    one = add_up(State(1), State(2))
    assert (one.count, one.sums.tolist(), one.seen, one.flag, one.none) == (3, [3.0, 2.0], {1, 2}, True, None)
    assert {step: values.tolist() for step, values in one.steps.items()} == {1: [1], 0: [3], 2: [1]}
    assert one.parts[0].numbers == [1, 2] and (one.parts[1].low, one.parts[1].high) == (1, 2)
    assert add_up(None, 3) == 3 and add_up(3, None) == 3
    with pytest.raises(TypeError, match="str and str do not add up"):
        add_up("a", "b")


def test_the_first_are_the_smallest_in_any_order():
    one, other = First(3), First(3)
    one.add([5, 9, 11, 12])
    one.add([2, 30])
    other.add([1, 7])
    assert one.numbers == [2, 5, 9]
    one.merge(other)
    assert one.numbers == [1, 2, 5]


ITEMS = st.dictionaries(st.integers(0, 50), st.integers(1, 9), max_size=30)


@settings(max_examples=60, deadline=None)
@given(items=ITEMS, data=st.data())
def test_a_sample_is_the_shortest_prefix_of_keys_that_weighs_enough(items, data):
    enough = data.draw(st.integers(1, 60))
    order = data.draw(st.permutations(sorted(items)))
    cut = data.draw(st.integers(0, len(order)))
    parts = []
    for keys in (order[:cut], order[cut:]):
        parts.append(Sampled(enough))
        for key in keys:
            parts[-1].add(key, items[key], key)
    parts[1].merge(parts[0])
    expected, weight = [], 0
    for key in sorted(items):
        if weight >= enough:
            break
        expected.append(key)
        weight += items[key]
    assert parts[1].values() == expected
    assert parts[1].weight == weight
    assert all(parts[1].wants(key) == (weight < enough or key < expected[-1]) for key in range(51))


@settings(max_examples=60, deadline=None)
@given(keys=st.lists(st.integers(0, 12), max_size=40), most=st.integers(1, 15), data=st.data())
def test_rows_of_a_key_are_kept_together(keys, most, data):
    order = data.draw(st.permutations(range(len(keys))))
    cut = data.draw(st.integers(0, len(keys)))
    parts = []
    for rows in (order[:cut], order[cut:]):
        parts.append(SampledRows(most))
        for row in rows:
            parts[-1].add(np.array([keys[row]], np.uint64), {"row": np.array([row])})
    parts[1].merge(parts[0])
    expected: list[int] = []
    for key in sorted(set(keys)):
        rows = [row for row, k in enumerate(keys) if k == key]
        if expected and len(expected) + len(rows) > most:
            break
        expected += rows
    table = parts[1].table()
    assert sorted(table["row"].tolist() if table else []) == sorted(expected)
