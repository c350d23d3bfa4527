"""Masks that reject by length or too much, clips that cannot act, weights that vanish, entropy that falls: by hand."""

from dataclasses import replace

import numpy as np
import pytest

from holdfast.audit.judge.checks.lengths import BINS, ByLength, length_bin, length_of
from holdfast.audit.judge.checks.training.acceptance_by_length import AcceptanceByLength
from holdfast.audit.judge.checks.training.dead_clip import DeadClip
from holdfast.audit.judge.checks.training.entropy_collapse import EntropyCollapse
from holdfast.audit.judge.checks.training.masks_reject_most import MasksRejectMost
from holdfast.audit.judge.checks.training.vanishing_weights import VanishingWeights
from holdfast.audit.measure.view import View
from holdfast.audit.read.columns import chunk_of
from holdfast.audit.simulate import clean_run
from holdfast.types import Rollout


def rollout(prompt, length, ratio=0.01, engine=-1.0, keep=None, **fields):
    base, change = (np.broadcast_to(np.asarray(v, float), length) for v in (engine, ratio))
    mask = None if keep is None else tuple(np.broadcast_to(np.asarray(keep, bool), length).tolist())
    return Rollout(
        (prompt,),
        (1,) * length,
        tuple(base.tolist()),
        tuple((base + change).tolist()),
        trust_mask=mask,
        group_id=prompt,
        **fields,
    )


def test_length_bins_are_four_to_a_doubling():
    assert length_bin(np.array([0, 1, 2, 3, 4, 1024, 2**40])).tolist() == [-1, 0, 4, 6, 8, 40, BINS - 1]
    assert [length_of(b) for b in (0, 4, 6, 40)] == [1, 2, 3, 1024]


def test_quarters_of_the_sequences():
    by = ByLength()
    view = View(chunk_of([rollout(i, n) for i, n in enumerate([10, 10, 20, 20, 20, 20, 80, 80])]))
    by.add(view, np.arange(8.0))
    short, long = by.quarters()
    assert short[-1] == length_bin(np.array([10]))[0]
    assert length_bin(np.array([20]))[0] < long[0] <= length_bin(np.array([80]))[0]
    assert by.binned.sums[:, long].sum() == 13.0


def kept_by_length(short_kept, long_kept, count=80):
    """Responses of 50 and 200 tokens, half each; of every ten of a kind so many are kept."""
    return [
        rollout(i, 50 if i % 2 else 200, keep=(i // 2) % 10 < (short_kept if i % 2 else long_kept))
        for i in range(2 * count)
    ]


def test_acceptance_that_falls_with_length(look):
    (got,) = look(AcceptanceByLength, kept_by_length(9, 5))
    assert got.evidence["kept, shortest quarter"] == pytest.approx(0.9)
    assert got.evidence["kept, longest quarter"] == pytest.approx(0.5)
    assert got.evidence["lost with length"].value == pytest.approx(0.4)
    assert got.severity == "warning"
    assert "90%" in got.headline
    assert "from 182 tokens" in got.headline  # the bin of 200


@pytest.mark.parametrize("kept", [(9, 9), (5, 9), (10, 9)])
def test_acceptance_that_does_not_fall(look, kept):
    assert look(AcceptanceByLength, kept_by_length(*kept)) == []


def test_a_sure_but_small_loss_with_length_is_none(look):
    """Every fifteenth long response is rejected: 6.7 %, surely more than 3, and less than 10."""
    some = [rollout(i, 5 if i % 2 else 20, keep=bool(i % 2) or i % 30 != 0) for i in range(3000)]
    assert look(AcceptanceByLength, some) == []


def test_acceptance_of_almost_nothing_long_is_critical(look):
    (got,) = look(AcceptanceByLength, kept_by_length(9, 2))
    assert got.severity == "critical"


def test_what_published_masks_would_keep(look):
    """r = .02 on 49 tokens and .4 on one: k2 .08 > .05; k3 mean (.0918 + 49·2.0e-4)/50 = .0020 > .001; product e^1.38 =
    3.97 > 3; geometric mean e^.0276. On 200 tokens of -.0005: all four keep."""
    long = [rollout(i, 50, ratio=np.r_[0.4, np.full(49, 0.02)], keep=True) for i in range(80)]
    longer = [rollout(100 + i, 200, ratio=-0.0005, keep=i % 2 == 0) for i in range(80)]
    (got,) = look(AcceptanceByLength, [*long, *longer])
    would = {name: value for name, value in got.evidence.items() if "shortest →" in name}
    assert len(would) == 4
    assert set(would.values()) == {"0% → 100%"}


def rejecting(share, count=100, **fields):
    return [rollout(i, 20, keep=i % 10 >= 10 * share, **fields) for i in range(count)]


@pytest.mark.parametrize(("share", "severity"), [(0.5, "warning"), (0.9, "critical")])
def test_masks_that_reject_most(look, share, severity):
    (got,) = look(MasksRejectMost, rejecting(share))
    assert got.evidence["rejected"] == pytest.approx(share)
    assert got.severity == severity
    assert f"{share:.0%}" in got.headline


def test_masks_that_reject_little(look):
    assert look(MasksRejectMost, rejecting(0.2)) == []


def test_tokens_of_others_are_not_rejected_ones(look):
    """Tool output is outside the trust mask and outside the response mask."""
    fields = {"keep": np.arange(20) < 5, "response_mask": tuple((np.arange(20) < 5).tolist())}
    assert look(MasksRejectMost, [rollout(i, 20, **fields) for i in range(50)]) == []


def test_a_step_of_which_nothing_is_left(look):
    steps = [rollout(10 * step + i, 30, keep=step != 3, step=step) for step in range(20) for i in range(10)]
    (got,) = look(MasksRejectMost, steps)
    assert got.severity == "critical"
    assert got.where.steps == (3,)
    assert got.evidence["steps left empty"] == 1
    assert "1 of 20 steps" in got.headline


def test_copies_to_the_last_bit(look):
    copied = [rollout(i, 30, ratio=0.0) for i in range(10)]
    others = [rollout(100 + i, 30, ratio=1e-5) for i in range(90)]
    (got,) = look(DeadClip, [*copied, *others])
    assert got.kind == "data"
    assert got.evidence["share of sequences"] == pytest.approx(0.1)
    assert got.where.sequences == tuple(range(10))
    assert (got.severity, got.invalidates) == ("warning", False)
    (got,) = look(DeadClip, copied)
    assert (got.severity, got.invalidates) == ("critical", True)


def test_certain_tokens_agree_by_rounding(look):
    assert look(DeadClip, [rollout(i, 100, ratio=0.0, engine=-1e-5) for i in range(20)]) == []


def clipped(ratio, advantage, keep, share=0.1):
    """A tenth of the tokens at this log-ratio."""
    beyond = np.arange(40) < 40 * share
    return [rollout(i, 40, np.where(beyond, ratio, 0.01), keep=keep, advantages=(advantage,) * 40) for i in range(60)]


@pytest.mark.parametrize(("ratio", "advantage"), [(0.19, 1.0), (-0.23, -1.0)])  # log 1.2 = .182, log .8 = -.223
def test_a_clip_that_lets_everything_through(look, ratio, advantage):
    (got,) = look(DeadClip, clipped(ratio, advantage, True))
    assert got.evidence["share beyond the clip"].value == pytest.approx(0.1)
    assert got.evidence["of these in the gradient"] == 1.0
    assert "denominator" in got.settings["Holdfast"]


@pytest.mark.parametrize(("ratio", "advantage", "keep", "share"), [
    (0.18, 1.0, True, 0.1),  # within
    (-0.22, -1.0, True, 0.1),
    (-0.5, 1.0, True, 0.1),  # PPO does not clip what it wants back
    (0.5, -1.0, True, 0.1),
    (0.5, 0.0, True, 0.1),  # nothing to clip
    (0.5, 1.0, np.arange(40) >= 4, 0.1),  # clipped: the mask has them out
])  # fmt: skip
def test_a_clip_that_acts_or_need_not(look, ratio, advantage, keep, share):
    assert look(DeadClip, clipped(ratio, advantage, keep, share)) == []


def weighted(long_sums, count=40):
    """Short responses of weight 1, and long ones with these sums of log-ratios in turn."""
    long = [rollout(100 + i, 200, ratio=long_sums[i % len(long_sums)] / 200) for i in range(count)]
    return [*(rollout(i, 20, ratio=0.0) for i in range(count)), *long]


def test_weights_that_vanish_with_length(look):
    """Products e^-3 = .0498 and e^1.2 = 3.32, half each: masked at 3 (.0498 + 0)/2 = .0249; truncated at 2 (.0498 +
    2)/2 = 1.0249; effective size 1.0249² / ((.0498² + 4)/2) = .525."""
    (got,) = look(VanishingWeights, weighted([-3.0, 1.2]))
    assert got.evidence["masked weight, longest quarter"].value == pytest.approx(0.0249, rel=1e-2)
    assert got.evidence["masked weight, shortest quarter"] == pytest.approx(1.0)
    assert got.evidence["truncated weight, longest quarter"] == pytest.approx(1.0249, rel=1e-3)
    assert got.evidence["effective sample size, longest quarter"] == pytest.approx(0.525, rel=1e-2)
    assert got.severity == "warning"


def test_weights_that_are_halved_are_worth_a_word(look):
    (got,) = look(VanishingWeights, weighted([-0.9]))  # e^-.9 = .407
    assert got.severity == "info"


@pytest.mark.parametrize("sums", [[0.0], [-0.6], [1.0], [-2.0, 1.0]])  # masked .55, 2.7, (.14 + 2.72)/2 = 1.43
def test_weights_that_train(look, sums):
    assert look(VanishingWeights, weighted(sums)) == []


def falling(entropies, recorded=True, **fields):
    return [
        rollout(
            100 * step + i,
            30,
            engine=-1.0 if recorded else -entropy,
            entropy=(entropy,) * 30 if recorded else None,
            step=step,
            **fields,
        )
        for step, entropy in enumerate(entropies)
        for i in range(6)
    ]


@pytest.mark.parametrize("recorded", [True, False])
def test_entropy_that_falls(look, recorded):
    """First third 1.0, .9: .95; last third .3, .2: .25; .26 of it."""
    (got,) = look(EntropyCollapse, falling([1.0, 0.9, 0.7, 0.5, 0.3, 0.2], recorded))
    assert got.evidence["entropy, first third"] == pytest.approx(0.95, rel=1e-5)
    assert got.evidence["entropy, last third"] == pytest.approx(0.25, rel=1e-5)
    assert got.severity == "warning"
    assert got.where.steps == (4, 5)


def test_entropy_that_is_gone_is_critical(look):
    (got,) = look(EntropyCollapse, falling([1.0, 0.9, 0.7, 0.5, 0.2, 0.1]))
    assert got.severity == "critical"


def rewarded(entropies, rewards, scale=1.0, shift=0.0):
    """Steps of 40 prompts, of which this share is right: reward `scale` + `shift` instead of `shift`."""
    return [
        rollout(100 * step + i, 30, entropy=(entropy,) * 30, step=step, reward=scale * (i < 40 * right) + shift)
        for step, (entropy, right) in enumerate(zip(entropies, rewards, strict=True))
        for i in range(40)
    ]


GONE = [1.0, 0.9, 0.7, 0.5, 0.2, 0.1]  # critical without rewards: .15 of .95


@pytest.mark.parametrize(
    ("rewards", "severity", "words"),
    [
        ([0.2, 0.4, 0.6, 0.8, 0.95, 0.95], "info", "with the reward at 0.95 now"),
        ([0.9, 0.9, 0.9, 0.9, 0.9, 0.9], "info", "with the reward at 0.9 now"),  # solved before, and sure of it now
        ([0.2, 0.3, 0.4, 0.4, 0.5, 0.5], "info", "while the reward rose (0.25 to 0.5)"),
        ([0.3, 0.3, 0.3, 0.3, 0.3, 0.3], "critical", "while the reward did not rise (0.3 to 0.3)"),
        ([0.5, 0.5, 0.4, 0.3, 0.2, 0.1], "critical", "while the reward did not rise (0.5 to 0.15)"),
        ([0.1, 0.1, 0.7, 0.7, 0.4, 0.4], "critical", "while the reward did not rise (0.1 to 0.4)"),  # fell from .7
    ],
)
def test_the_reward_says_how_bad_lost_entropy_is(look, rewards, severity, words):
    """Thirds of two steps; the newest two steps; 80 rollouts a third, whose mean has a deviation of at most .056."""
    (got,) = look(EntropyCollapse, rewarded(GONE, rewards))
    assert got.severity == severity and got.headline.endswith(words)
    thirds = [np.mean(rewards[i : i + 2]) for i in (0, 2, 4)]
    for name, mean in zip(
        ("first third", "middle third", "last third", "newest steps"), [*thirds, thirds[-1]], strict=True
    ):
        assert got.evidence[f"reward, {name}"] == pytest.approx(mean, abs=1e-6)
    assert bool(got.settings) == (severity != "info"), "a reward that rises needs no other objective"
    assert ("all but solved" in got.meaning) == ("now" in words)
    assert ("before the fall" in got.fix) == (severity == "critical")


def test_a_mild_fall_is_no_more_than_a_warning_whatever_the_reward(look):
    (got,) = look(EntropyCollapse, rewarded([1.0, 0.9, 0.7, 0.5, 0.4, 0.3], [0.3] * 6))
    assert got.severity == "warning"


@pytest.mark.parametrize(
    ("scale", "shift", "severity"),
    [
        (2.0, -1.0, "info"),  # -1 and 1
        (10.0, 0.0, "info"),
        (0.2, 0.0, "info"),  # nobody ever got a whole reward, but it rises
    ],
)
def test_solved_means_the_best_of_the_run_and_at_least_a_whole_reward(look, scale, shift, severity):
    (got,) = look(EntropyCollapse, rewarded(GONE, [0.2, 0.4, 0.6, 0.8, 0.95, 0.95], scale, shift))
    assert got.severity == severity


def test_part_of_a_reward_is_not_solved(look):
    (got,) = look(EntropyCollapse, rewarded(GONE, [0.9] * 6, 0.2))
    assert got.severity == "critical"


def test_rewards_that_say_nothing_excuse_nothing(look):
    """All equal, not recorded in a part of the run, or not numbers."""
    same = rewarded(GONE, [1.0] * 6)
    early = [r if r.step < 3 else replace(r, reward=None) for r in rewarded(GONE, [0.2, 0.4, 0.6, 0.8, 0.9, 0.9])]
    broken = [replace(r, reward=float("nan")) for r in same]
    for run in (same, early, broken):
        (got,) = look(EntropyCollapse, run)
        assert got.severity == "critical"


@pytest.mark.parametrize("entropies", [
    [1.0, 0.9, 0.8, 0.75, 0.7, 0.65],  # healthy learning
    [1.0, 0.3, 1.0, 0.3, 1.0, 0.3, 0.3],  # up and down
    [1.0, 0.5, 0.3, 0.2],  # four steps
    [0.2, 0.3, 0.5, 0.7, 0.9, 1.0],
])  # fmt: skip
def test_entropy_that_does_not_collapse(look, entropies):
    assert look(EntropyCollapse, falling(entropies)) == []


def test_the_covariance_that_drives_it(look):
    """log p is -.1 on half of the tokens (A = 2) and -1.9 on the rest (A = 0): Cov = -.1 - (-1)(1) = .9."""
    rising = np.arange(40) % 2 == 0
    rollouts = [
        rollout(
            100 * step + i,
            40,
            engine=np.where(rising, -0.1, -1.9),
            entropy=(1 / (1 + step),) * 40,
            advantages=tuple(np.where(rising, 2.0, 0.0).tolist()),
            step=step,
        )
        for step in range(8)
        for i in range(10)
    ]
    (got,) = look(EntropyCollapse, rollouts)
    covariance = got.evidence["covariance of log p and A"]
    assert covariance.value == pytest.approx(0.9, rel=1e-4)
    assert covariance.low <= covariance.value <= covariance.high
    assert got.evidence["share of the top 0.2%"] == pytest.approx(0.002, rel=0.3)  # all tokens carry the same


def test_a_few_tokens_that_carry_the_covariance(look):
    """One token in 500 with log p + 10 nats over the rest and A = 50; the rest has A = 0 and the same log p."""
    rare = np.arange(500) == 0
    rollouts = [
        rollout(
            100 * step + i,
            500,
            engine=np.where(rare, -0.1, -10.0),
            entropy=(1 / (1 + step),) * 500,
            advantages=tuple(np.where(rare, 50.0, 0.0).tolist()),
            step=step,
        )
        for step in range(8)
        for i in range(10)
    ]
    (got,) = look(EntropyCollapse, rollouts)
    assert got.evidence["share of the top 0.2%"] > 0.95


def test_healthy_runs_show_none(look, healthy):
    for check in (AcceptanceByLength, MasksRejectMost, DeadClip, VanishingWeights, EntropyCollapse):
        assert look(check, healthy(turns=3)) == []


def test_a_run_that_solves_its_task_is_healthy(look):
    """Logits treble while nearly everything becomes right: worth a word, no alarm."""
    run = clean_run(3, mean_length=60, prompts=16, sharpen=2.0, solved=0.98)
    (got,) = look(EntropyCollapse, run)
    assert got.severity == "info"
    (got,) = look(EntropyCollapse, [replace(r, reward=None) for r in run])
    assert got.severity == "warning"
