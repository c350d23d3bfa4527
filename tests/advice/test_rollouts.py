"""What rollouts tell: the age of their weights, their lengths and drift; which fitted mask is proposed."""

from dataclasses import replace

import pytest

from holdfast.advice.rollouts import age_of, proposed_masks, setting_of_audit
from holdfast.audit.judge.advice import SampleAdvice, advise_on
from holdfast.audit.judge.auditor import Auditor
from holdfast.audit.read.columns import pack
from holdfast.audit.read.reading import Reading
from holdfast.audit.simulate.run import clean_run


def audited(rollouts):
    auditor = Auditor(Reading())
    for chunk in pack(rollouts):
        auditor.feed(chunk, "log")
    return auditor.result()


def small(**options):
    return clean_run(3, steps=8, prompts=4, group_size=4, mean_length=40, **options)


@pytest.mark.parametrize("age", [0, 3])
def test_ages_lengths_and_drift(age):
    rollouts = small(age=age)
    audit = audited(rollouts)
    found = setting_of_audit(audit)
    assert found.lag == age and found.tokens == max(len(one.response_ids) for one in rollouts)
    assert found.kl == audit.statistics.mean("kl_exact").value
    assert found.updates is found.precision is found.rate is found.model is None


def test_a_few_old_tokens_do_not_make_a_stale_run():
    rollouts = small()
    last = max(one.step for one in rollouts)
    old = next(one for one in rollouts if one.step == last)
    others = [one for one in rollouts if one is not old]
    older = replace(old, weight_versions=tuple(0 for _ in old.weight_versions))
    assert age_of(audited([*others, older])) == 0


def test_rollouts_that_are_all_late_are_behind_the_trainer():
    """All of a step have one version, two updates behind the trainer's once that has made three steps."""
    late = [replace(one, weight_versions=(max(0, (one.step or 0) - 3),) * len(one.response_ids)) for one in small()]
    assert age_of(audited(late)) == 2


def test_no_versions_no_age():
    rollouts = [replace(one, weight_versions=None) for one in small()]
    assert age_of(audited(rollouts)) is None
    without = [replace(one, kl_exact=None) for one in rollouts]
    assert setting_of_audit(audited(without)).kl == audited(without).statistics.mean("k3").value


def test_a_mask_is_proposed_only_where_it_pays():
    sample = advise_on(audited(small()))
    assert sample.advice is not None and proposed_masks(sample) == {} and proposed_masks(SampleAdvice()) == {}

    def with_needed(warnings=(), **needed):
        kept = sample.advice.recommendations
        made = {rule: replace(one, needed=needed.get(rule, False)) for rule, one in kept.items()}
        return replace(sample, advice=replace(sample.advice, recommendations=made, warnings=warnings))

    assert list(proposed_masks(with_needed(trm_max=True, ln_trm=True))) == ["trm_max"]
    falls = ("acceptance falls with length: ...",)
    assert list(proposed_masks(with_needed(falls, trm_max=True, ln_trm=True))) == ["ln_trm"]
    assert list(proposed_masks(with_needed(trm_avg=True))) == ["trm_avg"]
    assert proposed_masks(with_needed(trm_max=None)) == {}
