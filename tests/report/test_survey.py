import dataclasses

import pytest

from holdfast.report.survey import survey, survey_run, thin_points
from holdfast.rollout.store import write_rollouts
from holdfast.types import Rollout


def sequence(step=1, drift=0.1, kept=True, reward=1.0, kl=None):
    return Rollout(
        prompt_ids=(1,),
        response_ids=(1, 2),
        rollout_logprobs=(-1.0, -1.0),
        trainer_logprobs=(-1.0, -1.0 - drift),
        trust_mask=(kept, kept),
        kl_exact=None if kl is None else (0.0, kl),
        reward=reward,
        step=step,
    )


def test_one_of_each_kind_is_chosen():
    early, right = sequence(1), sequence(2)
    mild, worst = sequence(drift=0.5, kept=False), sequence(drift=3.0, kept=False)
    wrong = sequence(3, reward=0.0)
    seen = survey([early, mild, worst, right, wrong])
    assert [(e.heading, e.rollout) for e in seen.examples()] == [
        ("Accepted, right answer", right),
        ("Of the masked sequences, the one that drifted most", worst),
        ("A wrong answer", wrong),
    ]
    assert (seen.sequences, seen.tokens, seen.verdicts) == (5, 10, {"accepted": 3, "rejected": 2})


def test_exact_kl_decides_which_is_worst():
    loud, deep = sequence(drift=3.0, kept=False, kl=0.1), sequence(drift=0.5, kept=False, kl=2.0)
    assert survey([loud, deep]).rejected is deep
    # an engine that reports only its likeliest tokens: the KL that they prove
    tv = {"tv_lower": (0.0, 0.1), "tv_upper": (0.0, 0.9)}
    loud, deep = (dataclasses.replace(r, kl_exact=None, kl_lower=r.kl_exact, **tv) for r in (loud, deep))
    assert survey([loud, deep]).rejected is deep


def test_without_a_rejection_the_one_that_drifted_most_is_shown():
    calm, far = sequence(drift=0.1), sequence(drift=0.9)
    headings = {e.heading: e.rollout for e in survey([far, calm]).examples()}
    assert headings["No sequence was masked; this one drifted most"] is far


def test_no_sequence_is_shown_twice():
    only = sequence(reward=0.0, kept=False)
    assert len(survey([only]).examples()) == 1


def test_files_that_cannot_be_read_are_named(tmp_path):
    write_rollouts(tmp_path / "step_0001.parquet", [sequence(), sequence(reward=0.0)])
    (tmp_path / "step_0002.parquet").write_bytes(b"PAR1 torn")
    seen = survey_run(tmp_path)
    assert (seen.files, seen.sequences, seen.unreadable) == (1, 2, ["step_0002.parquet"])


@pytest.mark.slow
def test_many_files_are_sampled_with_the_last_among_them(tmp_path):
    for step in range(100):
        write_rollouts(tmp_path / f"step_{step:04d}.parquet", [sequence(step)])
    seen = survey_run(tmp_path)
    assert (seen.files, seen.skipped_files) == (48, 52)
    assert seen.accepted is not None
    assert seen.accepted.step == 99


def test_no_folder_is_no_rollouts(tmp_path):
    assert survey_run(tmp_path / "rollouts").examples() == []


def test_thinning_keeps_the_largest():
    points = [(i, float(i)) for i in range(1000)]
    kept = thin_points(points, 100)
    assert len(kept) <= 100
    assert set(points[-50:]) <= set(kept)


def test_a_rollout_without_logprobs_counts_but_draws_nothing():
    seen = survey([dataclasses.replace(sequence(), rollout_logprobs=None)])
    assert (seen.sequences, seen.ratios, seen.points) == (1, [], {})


def headings(rollouts):
    return [example.heading for example in survey(rollouts).examples()]


def test_right_and_wrong_are_words_for_rewards_of_0_and_1_alone():
    low, middle, high = (sequence(drift=1 / (1 + abs(reward - 0.5)), reward=reward) for reward in (-1.0, 0.5, 2.0))
    seen = survey([low, high, middle])
    assert [(e.heading, e.rollout) for e in seen.examples()] == [
        ("Accepted, highest reward", high), ("No sequence was masked; this one drifted most", middle),
        ("Lowest reward", low),
    ]  # fmt: skip
    assert headings([sequence(reward=None)])[0] == "Accepted"
    assert "A wrong answer" not in headings([sequence(), sequence(2)])


def test_what_was_not_judged_or_not_read_is_not_called_unmasked(tmp_path, monkeypatch):
    unjudged = dataclasses.replace(sequence(), trust_mask=None)
    assert headings([unjudged]) == ["The sequence that drifted most"]
    write_rollouts(tmp_path / "step_0001.parquet", [sequence(), sequence(2), sequence(3)])
    whole = survey_run(tmp_path)
    assert whole.whole and "No sequence was masked; this one drifted most" in [e.heading for e in whole.examples()]
    monkeypatch.setattr("holdfast.report.survey.MOST_TOKENS", 4)
    cut = survey_run(tmp_path)
    assert (cut.sequences, cut.cut_files, cut.whole) == (2, 1, False)
    assert "Of those read, no sequence was masked; this one drifted most" in [e.heading for e in cut.examples()]
