"""Figures of a course: every number of the vocabulary is called by words, and long series are thinned."""

import numpy as np

from holdfast.audit.course import VOCABULARY, Course, Series
from holdfast.audit.show.page.course import MOST_POINTS, TITLES, course_section


def test_titles_are_words():
    course = Course({name: Series(np.arange(5), np.arange(5.0), named="x/y") for name in VOCABULARY})
    page = str(course_section(course))
    for title in ("KL to the reference", "KL of one update", "KL of engine and trainer", "Longest response"):
        assert title in page
    assert "Kl " not in page
    assert set(TITLES) <= set(VOCABULARY)


def test_long_and_short_series():
    assert str(course_section(Course({"reward": Series(np.arange(2), np.arange(2.0))}))) == ""
    long = Course({"reward": Series(np.arange(4000), np.arange(4000.0))})
    assert len(str(course_section(long))) < 100 * MOST_POINTS
