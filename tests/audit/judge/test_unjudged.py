"""Silence is not health: what makes a run unjudged, what intervals resample, and what the verdict says of it."""

import dataclasses

import numpy as np
import pytest

from holdfast.audit.course import Course, Series
from holdfast.audit.judge.advice import advise_on
from holdfast.audit.judge.auditor import Auditor
from holdfast.audit.judge.verdict import SEQUENCES_ONLY, verdict_of
from holdfast.audit.read.columns import chunk_of, pack
from holdfast.audit.read.reading import Reading
from holdfast.audit.read.scalars.runs import ScalarLog
from holdfast.audit.simulate import clean_run
from holdfast.types import Rollout

SMALL = {"steps": 3, "prompts": 6, "group_size": 4, "mean_length": 40}


def nameless(rollouts):
    return [dataclasses.replace(r, prompt_ids=(), group_id=None) for r in rollouts]


def apart(size, count=64, **more):
    """Rollouts of one prompt whose two log-probabilities differ by ±size at every token."""
    for i in range(count):
        rng = np.random.default_rng(i)
        engine, signs = rng.uniform(-1.5, -1.0, 40), rng.choice([-1.0, 1.0], 40)
        trainer = tuple((engine + size * signs).tolist())
        yield Rollout((7, 7), tuple(range(i, i + 40)), tuple(engine.tolist()), trainer, **more)


def test_sequences_of_one_prompt_that_differ_are_not_healthy(audit_of):
    """64 sequences that differ by .26 nats a token: one prompt gives no interval over prompts, its sequences do."""
    audit = audit_of(list(apart(0.26)))
    assert audit.facts.unit == "sequence"
    assert [f.name for f in audit.findings if f.severity != "info"] == ["drift_level"]
    assert "intervals resample sequences" in str(verdict_of(audit))


def test_a_log_without_prompts_is_judged_by_sequences(audit_of, small_run):
    audit = audit_of(nameless(small_run()))
    assert audit.facts.unit == "sequence" and audit.unjudged == ()
    assert verdict_of(audit).tone == "clean"
    mean = audit.statistics.mean("abs_log")
    assert mean.low < mean.value < mean.high
    advice = advise_on(audit)
    assert advice.certificate is None and advice.masks
    assert any("at least 8 prompts" in said for said in advice.missing)
    assert audit_of(small_run()).facts.unit == "prompt"


@pytest.mark.parametrize(("lacks", "words"), [
    ("trainer_logprobs", "no log-probabilities of the trainer"),
    ("rollout_logprobs", "no log-probabilities of the engine"),
])  # fmt: skip
def test_one_side_alone_is_not_judged(audit_of, small_run, lacks, words):
    audit = audit_of([dataclasses.replace(r, **{lacks: None, "kl_exact": None}) for r in small_run()])
    verdict = verdict_of(audit)
    assert verdict.tone == "unjudged"
    assert verdict.headline.startswith("Not judged: ") and words in verdict.headline
    assert "Log both" in verdict.headline


def test_too_little_is_not_judged(audit_of, small_run):
    audit = audit_of(small_run()[:10])
    assert audit.facts.measured_tokens < 1000
    assert "the checks of drift need 1,000" in verdict_of(audit).headline
    one = verdict_of(audit_of(small_run(steps=1, mean_length=2000, prompts=1)))
    assert "4 sequences are too few" in one.headline


def test_what_was_found_comes_before_what_was_not_judged(audit_of):
    broken = [dataclasses.replace(r, trainer_logprobs=None, rollout_logprobs=(float("nan"),) * 40) for r in apart(0)]
    verdict = verdict_of(audit_of(broken))
    assert verdict.tone == "critical"
    assert "Not judged: " in str(verdict)


def feed(rollouts, chunk=200):
    made = Auditor(Reading())
    for part in pack(rollouts, chunk):
        made.feed(part, "a")
    return made


def test_intervals_are_over_prompts_once_there_are_enough_of_them():
    assert feed(clean_run(0, **SMALL)).result().facts.unit == "prompt"
    few = feed(apart(0.01))
    for _ in range(2):  # asking changes nothing
        assert few.result().facts.unit == "sequence"
    for part in pack(clean_run(0, **SMALL)):
        few.feed(part, "b")
    both = few.result()
    assert (both.facts.unit, both.facts.sequences) == ("prompt", 64 + 72)


def test_numbering_goes_on_over_chunks():
    made = Auditor(Reading())
    for part in (list(apart(0.0)), list(apart(0.5, count=3))):
        made.feed(chunk_of(part))
    worst = [number for number, _ in made.result().sample.worst()]
    assert set(worst[:3]) == {64, 65, 66}


def test_a_log_of_numbers_is_told_nothing_about_prompts():
    """It has no sequence that an interval could resample."""
    auditor = Auditor(Reading())
    auditor.scalars = ScalarLog(Course({"reward": Series(np.arange(20), np.linspace(0, 1, 20))}), ())
    assert SEQUENCES_ONLY not in verdict_of(auditor.result()).details
