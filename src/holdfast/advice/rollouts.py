"""What logged rollouts tell of a setting: age of the weights, lengths, drift, all by the audit's own sums."""

from __future__ import annotations

from collections import Counter

import numpy as np

from holdfast.advice.setting import Setting
from holdfast.audit.judge.advice import SampleAdvice
from holdfast.audit.judge.auditor import Audit
from holdfast.audit.judge.checks.drift.ages import Ages
from holdfast.core.advise import Recommendation

OLDEST = 1024
_SHARE = 0.95
"""Of the tokens: as old as the youngest of them are at most is what the run's staleness is taken to be."""


def setting_of_audit(audit: Audit) -> Setting:
    """Ages, lengths and drift; what an audit cannot know of a run stays None."""
    kl = audit.statistics.mean("kl_exact") or audit.statistics.mean("k3")
    lag = age_of(audit)
    return Setting(lag=lag, tokens=audit.facts.longest or None, kl=None if kl is None else kl.value)


def age_of(audit: Audit) -> int | None:
    """The age in updates that 95 % of the sampled tokens of known age do not exceed; None where no age is known."""
    ages = Ages(OLDEST)
    for _, rollout in audit.sample.uniform():
        if rollout.step is None or not rollout.weight_versions:
            continue
        for version, count in Counter(rollout.weight_versions).items():
            ages.add(int(rollout.step), int(version), np.array([count]))
    known: Counter[int] = Counter()
    for _, age, sums in ages.by_age(paced=True):
        if age >= 0:
            known[age] += int(sums[0])
    total, reached = sum(known.values()), 0
    for age in sorted(known):
        reached += known[age]
        if reached >= _SHARE * total:
            return age
    return None


def proposed_masks(sample: SampleAdvice) -> dict[str, Recommendation]:
    """The fitted masks that leave a smaller error than none: the length-neutral one where acceptance falls with length.

    Empty where none is needed, and where nothing tells.
    """
    if sample.advice is None:
        return {}
    needed = {rule: one for rule, one in sample.advice.recommendations.items() if one.needed}
    falls = any("acceptance falls with length" in warning for warning in sample.advice.warnings)
    order = ("ln_trm", "trm_max", "trm_avg") if falls else ("trm_max", "ln_trm", "trm_avg")
    first = next((rule for rule in order if rule in needed), None)
    return {first: needed[first]} if first else {}
