import dataclasses

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
        ("The worst sequence that was masked", worst),
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
    assert headings["Nothing was masked; this sequence drifted most"] is far


def test_no_sequence_is_shown_twice():
    only = sequence(reward=0.0, kept=False)
    assert len(survey([only]).examples()) == 1


def test_files_that_cannot_be_read_are_named(tmp_path):
    write_rollouts(tmp_path / "step_0001.parquet", [sequence(), sequence(reward=0.0)])
    (tmp_path / "step_0002.parquet").write_bytes(b"PAR1 torn")
    seen = survey_run(tmp_path)
    assert (seen.files, seen.sequences, seen.unreadable) == (1, 2, ["step_0002.parquet"])


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
