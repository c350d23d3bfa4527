"""Reading ahead changes nothing but the time: order, errors and closing."""

import threading

import pytest

from holdfast.audit.read.prefetch import prefetch


def test_same_items_in_order():
    assert list(prefetch(iter(range(1000)), ahead=3)) == list(range(1000))
    assert list(prefetch(iter([None, None]))) == [None, None]


def test_an_error_comes_after_the_items_before_it():
    def items():
        yield 1
        raise ValueError("cut")

    got = prefetch(items())
    assert next(got) == 1
    with pytest.raises(ValueError, match="cut"):
        next(got)


def test_closing_stops_the_reader():
    read = []

    def items():
        for i in range(10_000):
            read.append(i)
            yield i

    got = prefetch(items(), ahead=2)
    assert next(got) == 0
    got.close()
    assert len(read) < 10
    assert not any(thread.name == "holdfast-prefetch" for thread in threading.enumerate())
