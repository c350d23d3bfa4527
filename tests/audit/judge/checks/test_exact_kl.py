"""A recorded exact KL against the sampled log-probabilities beside it."""

import dataclasses
from itertools import pairwise

import numpy as np
import pytest

from holdfast.audit.judge.advice import advise_on
from holdfast.audit.judge.auditor import Auditor
from holdfast.audit.judge.checks.data.exact_kl_contradicted import ExactKlContradicted
from holdfast.audit.read.columns import pack
from holdfast.audit.read.reading import Reading
from holdfast.types import Rollout


@pytest.mark.parametrize("factor", [1e-6, 0.5, 3.0])
def test_another_kl_is_found(look, faulty, factor):
    (got,) = look(ExactKlContradicted, faulty("other_kl", factor))
    assert got.severity == "critical" and got.spoils_advice and not got.invalidates


@pytest.mark.slow
def test_the_true_one_is_not(look, healthy, faulty):
    assert look(ExactKlContradicted, healthy()) == []
    assert look(ExactKlContradicted, faulty("other_kl", 1.0)) == []
    for name in ("trainer_temperature", "drift_with_depth", "coarse_engine"):  # recomputed under a fault
        assert look(ExactKlContradicted, faulty(name, 0.5)) == []


@pytest.mark.slow
def test_nothing_is_promised_on_it(audit_of, faulty):
    audit = audit_of(list(faulty("other_kl", 1e-6)))
    assert audit.withheld == ()
    advice = advise_on(audit)
    assert advice.certificate is None and advice.advice is None and advice.bounds == {}
    assert advise_on(audit_of(list(faulty("other_kl", 1.0)))).certificate is not None


def coin(seed, q=0.4):
    """The engine's fair coin, scored by q; the exact KL is ½ log(1 / (4 q (1 - q)))."""
    rng = np.random.default_rng(seed)
    exact = 0.5 * np.log(1 / (4 * q * (1 - q)))
    for i in range(60):
        heads = rng.random(50) < 0.5
        scored = np.where(heads, np.log(q), np.log(1 - q))
        half, kl = (float(np.log(0.5)),) * 50, (float(exact),) * 50
        yield Rollout((i,), tuple(heads.astype(int).tolist()), half, tuple(scored.tolist()), kl_exact=kl)


def test_hand_made(look):
    assert look(ExactKlContradicted, list(coin(0))) == []
    doubled = [dataclasses.replace(r, kl_exact=tuple(2 * k for k in r.kl_exact)) for r in coin(0)]
    (got,) = look(ExactKlContradicted, doubled)
    assert got.evidence["mean recorded exact KL"].value == pytest.approx(0.0408, abs=1e-4)  # log(1/.96) = .0408


def test_mass_on_tokens_that_the_engine_never_writes_is_no_contradiction(look):
    """k3 falls short by it, and the KL is right: a certificate's affair, not the log's."""
    seen = float(np.log(0.7))

    def hidden(r):
        scored, kl = tuple(t + seen for t in r.trainer_logprobs), tuple(k - seen for k in r.kl_exact)
        return dataclasses.replace(r, trainer_logprobs=scored, kl_exact=kl)

    assert look(ExactKlContradicted, [hidden(r) for r in coin(0)]) == []


def test_chunks_do_not_matter(faulty):
    def found(tokens):
        auditor = Auditor(Reading(), checks=[ExactKlContradicted()])
        for chunk in pack(faulty("other_kl", 3.0), tokens):
            auditor.feed(chunk)
        return auditor.result().findings[0].evidence["mean k3"].value

    assert all(a == pytest.approx(b, rel=1e-9) for a, b in pairwise(found(t) for t in (500, 5000, 500_000)))
