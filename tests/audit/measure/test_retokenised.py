"""Which tokens a second tokenisation changes and moves, by hand: letters A.., and pairs "AQ", "BR".. that merge."""

import numpy as np
import pytest

from holdfast.audit.measure.retokenised import places_in
from holdfast.audit.measure.view import View
from holdfast.audit.read.columns import chunk_of
from holdfast.audit.simulate.letters import PAIRS, SINGLE, Letters
from holdfast.types import Rollout

A, B, Q, R, AQ, BR = 0, 1, PAIRS, PAIRS + 1, SINGLE, SINGLE + 1


def view_of(*rollouts):
    view = View(chunk_of(rollouts))
    view.codec = Letters()
    return view


def test_letters_and_pairs():
    letters = Letters()
    assert letters.decode([[A, AQ, R]]) == ["AAQR"]
    assert letters.encode(["AAQR", "BRB"]) == [[A, AQ, R], [BR, B]]


@pytest.mark.parametrize(
    ("old", "new", "places"),
    [
        ([1, 2, 3], [1, 2, 3], [0, 1, 2]),
        ([1, 2, 3, 4, 5, 6], [1, 9, 4, 5, 6], [0, -1, -1, 2, 3, 4]),
        ([9, 4, 5, 6, 8], [2, 3, 4, 5, 6, 8], [-1, 2, 3, 4, 5]),
        ([1, 2], [1, 7], [0, -1]),
        ([1, 2, 3], [7, 8], [-1, -1, -1]),
        ([5, 6], [1, 2, 5, 6], [2, 3]),
    ],
)
def test_places(old, new, places):
    assert places_in(old, new) == places


def test_tokens_behind_a_merge_move():
    """B A Q B A B A is encoded B AQ B A B A: A and Q change, the four behind stand one place earlier."""
    again = view_of(Rollout((B, B), (B, A, Q, B, A, B, A)), Rollout((B,), (A, B))).reencoded
    assert again.looked.all()
    assert np.flatnonzero(again.changed).tolist() == [1, 2]
    assert np.flatnonzero(again.moved).tolist() == [3, 4, 5, 6]


def test_a_merge_with_the_prompt_changes_the_first_token():
    """The prompt ends with A and the response begins with Q: as one text, their token is AQ."""
    again = view_of(Rollout((B, B, A), (Q, B, B, B))).reencoded
    assert np.flatnonzero(again.changed).tolist() == [0]
    assert again.moved.tolist() == [False, True, True, True]


def test_tool_text_is_not_looked_at_and_shifts_add_up_over_turns():
    """Turn one, A Q B, loses a token; in turn two, B B, nothing changes but all stands one place earlier."""
    mask = (True, True, True, False, False, True, True)
    again = view_of(Rollout((B,), (A, Q, B, A, Q, B, B), response_mask=mask)).reencoded
    assert again.looked.tolist() == list(mask)
    assert np.flatnonzero(again.changed).tolist() == [0, 1]
    assert np.flatnonzero(again.moved).tolist() == [2, 5, 6]


def test_ids_that_no_token_has_leave_their_sequence_out():
    again = view_of(Rollout((B,), (A, 999, A, Q)), Rollout((B,), (A, Q))).reencoded
    assert again.unknown == 1
    assert again.looked.tolist() == [False] * 4 + [True] * 2


ANSWER = (A, Q, B, B, B, B, B, B, B)
AGAIN = (AQ, B, B, B, B, B, B, B)


@pytest.mark.parametrize(
    ("later", "kept", "broken"),
    [
        ((B, R, *ANSWER, R, B), 1, 0),
        ((B, R, *AGAIN, R, B), 0, 1),
        ((B, R, R, R, R, B), 0, 0),
        ((R, *ANSWER, R, B), 0, 0),
    ],
    ids=["the ids go on", "the text goes on", "another text", "another prompt"],
)
def test_prompts_that_continue_an_answer(later, kept, broken):
    turns = view_of(Rollout((B, R), ANSWER), Rollout((B, R), (B, B, A)), Rollout(later, (A, B))).turns
    assert (turns.kept, turns.broken) == (kept, broken)
    assert turns.sequences == [2] * broken


def test_the_turn_before_is_asked_and_no_earlier_one():
    """The third prompt holds both answers before it in other ids: its own fault is the second, counted once."""
    second = (B, R, *AGAIN, R)
    third = (*second, *AGAIN, R)
    turns = view_of(Rollout((B, R), ANSWER), Rollout(second, ANSWER), Rollout(third, (A,))).turns
    assert (turns.kept, turns.broken, turns.sequences) == (0, 2, [1, 2])
