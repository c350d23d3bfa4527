"""Text that was tokenised again: by the trainer, between turns, beside the ids; and what is none of it."""

import pytest

from holdfast.audit.judge.auditor import Auditor
from holdfast.audit.judge.checks.data.retokenised import Retokenised
from holdfast.audit.read.columns import pack
from holdfast.audit.read.reading import Reading
from holdfast.audit.simulate.letters import PAIRS, Letters
from holdfast.types import Rollout


def test_a_healthy_log_is_told_what_it_would_lose(look, healthy):
    (got,) = look(Retokenised, healthy(turns=3))
    assert got.severity == "info"
    assert got.headline.startswith("if text were tokenised again, ")
    shares = got.evidence
    assert 0 < shares["share of tokens"].value < 0.03
    assert shares["share of tokens"].low < shares["share of tokens"].value < shares["share of tokens"].high
    assert shares["share of sequences"].value > shares["share of tokens"].value


def test_shares_are_counted(look):
    """Of 40 responses of 10 tokens one in four has a pair that merges: 2 of 40 tokens, 5 %."""
    plain, paired = (40,) * 10, (40, 0, PAIRS, *(40,) * 7)
    (got,) = look(Retokenised, [Rollout((40, k), paired if k % 4 == 0 else plain) for k in range(40)])
    assert got.evidence["share of tokens"].value == pytest.approx(0.05)
    assert got.evidence["share of sequences"].value == pytest.approx(0.25)


def test_without_a_tokenizer_the_check_does_not_run(healthy):
    auditor = Auditor(Reading(), checks=[Retokenised()])
    for chunk in pack(healthy()[:8]):
        auditor.feed(chunk)
    audit = auditor.result()
    assert audit.findings == ()
    assert "retokenised" not in {**audit.skipped, **audit.asked}


@pytest.mark.parametrize("strength", [0.3, 1.0])
def test_a_trainer_that_scores_text(look, faulty, strength):
    (got,) = look(Retokenised, faulty("scored_from_text", strength, turns=1))
    assert got.severity == "critical"
    assert got.invalidates
    assert got.headline.startswith("the trainer scored text that was tokenised again")
    assert got.evidence["mean |log ratio| behind a change"] > 0.3
    assert got.evidence["times elsewhere"].low > 5
    assert got.where.positions
    assert "sanity_check_mode=strict" in got.settings["verl"]


def test_drift_alone_is_no_second_tokenisation(look, faulty):
    """Large drift everywhere is not more behind a change than elsewhere."""
    for got in look(Retokenised, faulty("drift_level", 1.0)):
        assert got.severity == "info"


@pytest.mark.slow
def test_history_told_again(look, faulty):
    found = look(Retokenised, faulty("retold_history", 1.0, turns=3))
    (got,) = (f for f in found if f.severity == "warning")
    assert got.headline.startswith("the history was tokenised again between turns")
    assert got.evidence["prompts with other tokens"] > 10
    assert got.where.sequences
    kept = look(Retokenised, faulty("retold_history", 0.0, turns=3))
    assert [f.severity for f in kept] == ["info"]


@pytest.mark.slow
def test_texts_of_others(look, faulty):
    found = look(Retokenised, faulty("other_texts", 0.8))
    (got,) = (f for f in found if f.severity == "warning")
    assert "texts in the log are not what the token ids beside them say" in got.headline
    assert [f.severity for f in look(Retokenised, faulty("other_texts", 0.0))] == ["info"]


def test_a_text_without_special_tokens_or_thoughts_is_the_ids_own(look, healthy):
    """A parser keeps the end of a response, and spaces may differ."""
    letters = Letters()
    rollouts = [
        Rollout(r.prompt_ids, r.response_ids, response_text=" " + letters.decode([r.response_ids[5:]])[0] + "\n")
        for r in healthy()[:40]
    ]
    assert [f.severity for f in look(Retokenised, rollouts)] == ["info"]


def test_another_tokenizer(look, healthy):
    """Ids that the vocabulary lacks are counted; one token in three that changes is more than any policy's."""
    beyond = [Rollout(r.prompt_ids, (*r.response_ids, 7000)) for r in healthy()[:20]]
    (got,) = look(Retokenised, beyond)
    assert got.severity == "warning"
    assert got.evidence["tokens"] == 20
    alien = [Rollout((20, k), (0, PAIRS, 30, 31, 32, 33)) for k in range(40)]
    (got,) = look(Retokenised, alien)
    assert got.severity == "warning"
    assert "the tokenizer is not the run's" in got.headline
