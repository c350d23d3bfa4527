"""Advantages that the rewards of a group did not make: wrong sign, wrong group, no baseline, NaN."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from holdfast.audit.judge.checks.check import Facts
from holdfast.audit.judge.checks.credit.groups import Grouped, SequenceTable
from holdfast.audit.judge.checks.places import Places
from holdfast.audit.judge.finding import Finding, Severity, Where
from holdfast.audit.judge.fixes import settings
from holdfast.audit.measure.view import View
from holdfast.audit.read.columns import Column

FEWEST_GROUPS = 8
AGREE, DOUBT = 0.9, 0.85
"""Share of the groups whose advantage falls with the reward from which on the sign is reversed; share of groups in
which it rises below which, two deviations included, it has nothing to do with the reward."""
FEW = 0.05
"""Share of groups that may be off centre."""
CHANCE = 1e-6
OFFSET = 0.2
"""Mean advantage over its root mean square from which on a baseline does not centre."""


class GroupAdvantages:
    """Compares each sequence's advantage with the rewards of its group, the answers to one prompt at one step.

    In a group of any critic-free estimator (GRPO with or without the standard deviation, leave-one-out, one whitened
    over the batch afterwards, one with the KL taken off the reward) the advantage rises with the reward, and advantages
    sum to 0 over its sequences, or over its tokens. Allowed too: advantages that are one line of the reward over the
    whole step (normalised by the batch), and groups that lost members after their advantages were made: sizes then
    differ, and within a group equal rewards still have equal advantages. Sequences whose tokens have advantages of
    their own (a critic, rewards by turn) are not judged. Told in this order: NaN, a reversed sign, no relation, the
    first member as the baseline, another cut into groups, no baseline.
    """

    name = "group_advantages"
    asks = "Are advantages what the rewards of their group make them?"
    needs = frozenset({"advantages"})

    def __init__(self) -> None:
        self.table = SequenceTable()
        self.bad = 0
        self.places = Places()

    def update(self, view: View) -> None:
        """Remember each sequence's reward and advantage, and advantages that are no numbers."""
        values = view.tokens("advantages")
        if not math.isfinite(float(values.sum(dtype=np.float64))):
            found = np.flatnonzero(~np.isfinite(values) & view.own & view.given("advantages"))
            self.bad += len(found)
            self.places.add(view, found)
        if view.has("reward"):
            self.table.update(view)

    def findings(self, facts: Facts) -> Iterable[Finding]:
        """At most one finding: the first that holds."""
        if self.bad:
            yield _invalid(self.bad, self.places.where())
            return
        groups = self.table.sequences_by_group()
        if groups is None or groups.scale == 0 or (groups.paid_apart & (groups.size > 1)).sum() < FEWEST_GROUPS:
            return
        for look in (_reversed, _unrelated, _one_member, _off_centre):
            found = look(groups)
            if found is not None:
                yield found
                return


def _invalid(count: int, where: Where) -> Finding:
    return _finding(
        f"{count:,} advantages of trained tokens are NaN or infinite",
        "One of them makes the loss and then all weights NaN.",
        "Look for a standard deviation of a group of one, a division by a standard deviation of 0 without a small "
        "number added, and rewards that are missing.",
        {"tokens": count},
        where,
    )


def _reversed(groups: Grouped) -> Finding | None:
    signs = groups.slope_sign[groups.slope_sign != 0]
    falls = float((signs < 0).mean()) if len(signs) else 0.0
    if len(signs) < FEWEST_GROUPS or falls < AGREE:
        return None
    return _finding(
        f"in {falls:.0%} of {len(signs):,} groups the advantage falls as the reward rises: its sign is reversed",
        "The run is trained towards its worst answers. Rewards fall from the first step on, as if the task were "
        "too hard.",
        "Advantage = reward less baseline. Look for a loss or a cost used as a reward, baseline less reward, and a "
        "minus sign taken twice.",
        {"groups": len(signs), "share in which it falls": falls},
        _where(groups, groups.slope_sign < 0),
    )


def _unrelated(groups: Grouped) -> Finding | None:
    signs = groups.slope_sign[groups.slope_sign != 0]
    rises = float((signs > 0).mean()) if len(signs) else 1.0
    if len(signs) < 2 * FEWEST_GROUPS or rises + 2 * math.sqrt(0.25 / len(signs)) > DOUBT:
        return None
    return _finding(
        f"advantages have little to do with the rewards beside them: they rise with the reward in {rises:.0%} of "
        f"{len(signs):,} groups",
        "Answers are pushed up or down whatever they earned; what the policy learns is noise.",
        "The advantage at row i must be that of the answer at row i. Look for a batch that was shuffled, sorted or "
        "filtered between rewards and advantages, and for rewards that arrive in another order than their requests.",
        {"groups": len(signs), "share in which it rises": rises},
        _where(groups, groups.slope_sign < 0),
    )


def _one_member(groups: Grouped) -> Finding | None:
    """The advantage of one place in every group is 0, as if that member were the baseline."""
    chosen = np.flatnonzero(groups.paid_apart & (groups.size >= 3))
    if len(chosen) < FEWEST_GROUPS:
        return None
    zero = np.abs(groups.advantage) <= groups.tolerance
    for which, at in (("first", groups.starts), ("last", groups.starts + groups.size - 1)):
        mine = zero[at[chosen]]
        others = (groups.sum(zero)[chosen].sum() - mine.sum()) / (groups.size[chosen] - 1).sum()
        if mine.all() and len(chosen) * math.log(max(others, 1e-9)) < math.log(CHANCE):
            return _finding(
                f"the {which} member of every group has advantage 0, and {1 - others:.0%} of the others have not: its "
                "reward is taken for the group's mean",
                "The baseline is one answer instead of the mean of all: the advantage is noisy, its mean over a group "
                "is not 0, and a standard deviation of that one answer, 0, blows it up.",
                "Take the mean and the standard deviation over all rewards of the group. Look for statistics that are "
                "computed while answers arrive, or keyed by an id that only the first one has.",
                {"groups": len(chosen), "share of the others with advantage 0": float(others)},
                _where(groups, groups.paid_apart & (groups.size >= 3)),
            )
    return None


def _off_centre(groups: Grouped) -> Finding | None:
    several = groups.size > 1
    off = several & ~groups.centred
    share = float(off.sum() / several.sum())
    if share <= FEW or groups.of_the_batch():
        return None
    seen = {
        "groups": int(several.sum()),
        "share off centre": share,
        "mean advantage over its root mean square": float(groups.advantage.mean() / groups.scale),
    }
    where = _where(groups, off)
    disorder = float((~groups.orderly[off]).mean())
    if disorder > 0.3:
        cut = groups.wrong_cut()
        if cut or groups.complete:
            return _misgrouped(
                cut, share, {**seen, "share of these with unequal advantages at equal rewards": disorder}, where
            )
        return None
    if np.mean(np.abs(groups.advantage - groups.reward) <= groups.tolerance) > 0.98:
        return _no_baseline(groups, seen, where)
    if groups.complete and abs(seen["mean advantage over its root mean square"]) > OFFSET:
        return _finding(
            f"advantages do not sum to 0 in {share:.0%} of {several.sum():,} groups, and are "
            f"{groups.advantage.mean():+.2g} on average: their baseline is not the mean of the group",
            _PUSH,
            "Compute the baseline from the rewards of the sequence's own group, all of them, after every penalty that "
            "is added to the reward.",
            seen,
            where,
            "warning",
        )
    return None


def _misgrouped(cut: tuple[str, int] | None, share: float, seen: dict[str, float | int], where: Where) -> Finding:
    how = {
        None: "",
        "blocks": f"; over every {cut[1] if cut else 0} neighbouring rows they do",
        "turns": f"; over rows dealt out in turns, {cut[1] if cut else 0} to a group, they do",
    }[cut[0] if cut else None]
    return _finding(
        f"advantages are not made from the rewards of their own group: in {share:.0%} of the groups they do not sum to "
        f"0 and equal rewards have different advantages{how}",
        "Each answer is compared with answers to another prompt: whoever stands beside an easy prompt looks bad. The "
        "gradient rewards luck, and the run learns slowly or not at all.",
        "Group by an id that every rollout carries, not by position: failed or filtered episodes shift all rows after "
        "them, and repeat and repeat_interleave order a batch differently.",
        seen,
        where,
    )


def _no_baseline(groups: Grouped, seen: dict[str, float | int], where: Where) -> Finding:
    ids = " (each sequence has a group id of its own)" if groups.by == "prompt" else ""
    return _finding(
        f"the advantage is the reward itself: groups of {int(np.median(groups.size[groups.size > 1]))} answers have no "
        f"baseline{ids}, and their mean advantage is {groups.advantage.mean():+.2g}",
        _PUSH + " A group of one has mean 0 and standard deviation 1 in some frameworks, which is how this happens.",
        "Give all answers to one prompt one group id (verl and rLLM: uid; TRL: num_generations in a row). If the run "
        "has no baseline on purpose, nothing needs to change.",
        seen,
        where,
        "warning",
    )


_PUSH = (
    "All answers to a prompt are pushed the same way by an amount that has nothing to do with which of them is better: "
    "the gradient is noisier, entropy falls faster, and easy prompts decide the step."
)


def _finding(
    headline: str,
    meaning: str,
    fix: str,
    evidence: dict[str, float | int],
    where: Where,
    severity: Severity = "critical",
) -> Finding:
    return Finding(
        name=GroupAdvantages.name,
        kind="training",
        severity=severity,
        headline=headline,
        meaning=meaning,
        fix=fix,
        evidence=evidence,
        where=where,
        settings=settings("groups_by_prompt"),
    )


def _where(groups: Grouped, chosen: Column) -> Where:
    first = np.flatnonzero(chosen & (groups.size > 1))[:10]
    steps = dict.fromkeys(int(s) for s in groups.table["step"][groups.starts[first]] if s >= 0)
    return Where(steps=tuple(steps), sequences=tuple(groups.table["number"][groups.starts[first]].tolist()))
