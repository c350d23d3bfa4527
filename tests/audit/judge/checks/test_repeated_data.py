"""The same rollouts twice, told from answers that repeat by themselves."""

import dataclasses

import numpy as np

from holdfast.audit.judge.checks.training.repeated_data import HEAD, SURPRISE, TAIL, RepeatedData
from holdfast.types import Rollout

RNG = np.random.default_rng(0)


def sampled(step, count=10, length=40, logprob=-1.0, prompt=None):
    return [
        Rollout(
            (prompt or int(RNG.integers(1 << 30)),),
            tuple(RNG.integers(1000, size=length).tolist()),
            (logprob,) * length,
            step=step,
        )
        for _ in range(count)
    ]


def test_a_response_of_an_earlier_step(look):
    first = sampled(1)
    again = [dataclasses.replace(r, step=3, prompt_ids=(7, i)) for i, r in enumerate(first[:2])]
    (got,) = look(RepeatedData, [*first, *sampled(2), *again], tokens=100)
    assert got.evidence == {"repeated responses": 2, "share": 2 / 22}
    assert got.where.steps == (3,)
    assert got.where.sequences == (20, 21)
    assert "step 3 in step 1" in got.headline


def test_one_repeat_may_be_a_retry(look):
    first = sampled(1)
    assert look(RepeatedData, [*first, dataclasses.replace(first[0], step=2)]) == []


def test_copies_within_a_step(look):
    first = sampled(1)
    (got,) = look(RepeatedData, [*first, first[0], first[0], first[1]])
    assert got.evidence["repeated responses"] == 3
    assert "same step" in got.headline


def test_short_and_certain_answers_repeat_by_themselves(look):
    """40 tokens at -0.7 are 28 nats, below SURPRISE; at -0.8 they are 32."""
    assert SURPRISE == 30
    for logprob, findings in ((-0.7, 0), (-0.8, 1)):
        first = sampled(1, logprob=logprob)
        assert len(look(RepeatedData, [*first, *(dataclasses.replace(r, step=2) for r in first[:3])])) == findings


def test_without_logprobs_length_decides(look):
    for length, findings in ((127, 0), (128, 1)):
        first = [dataclasses.replace(r, rollout_logprobs=None) for r in sampled(1, length=length)]
        got = look(RepeatedData, [*first, *(dataclasses.replace(r, step=2) for r in first[:3])])
        assert len(got) == findings


def test_head_tail_and_length_all_count(look):
    """Responses that differ in one compared token, or in length only, are different."""
    length = HEAD + TAIL + 50
    base = sampled(1, count=1, length=length)[0]
    ids = list(base.response_ids)

    def with_token(place):
        changed = [*ids[:place], 5000, *ids[place + 1 :]]
        return dataclasses.replace(base, response_ids=tuple(changed), step=2)

    longer = dataclasses.replace(
        base,
        response_ids=(*ids[:-TAIL], 1, *ids[-TAIL:]),
        rollout_logprobs=(-1.0,) * (length + 1),
        step=2,
    )
    swapped = dataclasses.replace(base, response_ids=(ids[1], ids[0], *ids[2:]), step=2)
    different = [
        with_token(0),
        with_token(HEAD - 1),
        with_token(length - TAIL),
        with_token(length - 1),
        longer,
        swapped,
    ]
    assert look(RepeatedData, [base, *different]) == []
    assert len(look(RepeatedData, [base, *different, with_token(HEAD), with_token(HEAD + 1)])) == 1


def order(step, prompts):
    return [dataclasses.replace(r, prompt_ids=(p,)) for r, p in zip(sampled(step, len(prompts)), prompts, strict=True)]


def test_the_order_of_prompts_after_a_resume(look):
    steps = [*order(1, [1, 2, 3, 4]), *order(2, [5, 6, 7, 8]), *order(3, [9, 10, 11, 12]), *order(4, [1, 2, 3, 4])]
    (got,) = look(RepeatedData, steps, tokens=100)
    assert got.where.steps == (4,)
    assert got.severity == "warning"
    assert "step 4 those of step 1" in got.headline


def test_another_order_or_three_prompts_say_nothing(look):
    assert look(RepeatedData, [*order(1, [1, 2, 3, 4]), *order(2, [2, 1, 3, 4])]) == []
    assert look(RepeatedData, [*order(1, [1, 2, 3]), *order(2, [1, 2, 3])]) == []


def test_unshuffled_epochs_are_only_told(look):
    (got,) = look(RepeatedData, [r for s in range(1, 9) for r in order(s, [1, 2, 3, 4])])
    assert (got.severity, got.evidence["steps"]) == ("info", 7)


def test_healthy(look, healthy):
    assert look(RepeatedData, healthy()) == []
