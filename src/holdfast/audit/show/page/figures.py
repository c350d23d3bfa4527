"""The figures of an audit: drift over steps, by position and by size, acceptance by length, thresholds and errors."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from holdfast.audit.judge.advice import SampleAdvice
from holdfast.audit.judge.verdict import REGION_HEADS, interval, region_row
from holdfast.audit.measure.binned import Binned
from holdfast.audit.measure.estimate import Estimate
from holdfast.audit.measure.extremes import RATES, SIGNS
from holdfast.audit.measure.statistics.running import ESTIMATORS, REGIONS, Statistics, per
from holdfast.audit.measure.statistics.tails import Tails, pareto_k
from holdfast.audit.measure.tokens import Unit
from holdfast.audit.show.jsonout import QUANTILES
from holdfast.core.advise import PUBLISHED
from holdfast.report.charts.bars import bar_chart
from holdfast.report.charts.frame import Reference
from holdfast.report.charts.plots import Series, line_chart
from holdfast.report.charts.scales import Number, number
from holdfast.report.page import Markup, absent, columns, element, figure, join, paragraph, section, table

NAMES = {"abs_log": "|log ratio|", "k3": "k3 estimate of KL", "kl_exact": "exact KL", "kl_lower": "KL, at least"}
_READINGS = {
    "k1": "−r: unbiased for KL, noisy",
    "k2": "r²/2",
    "k3": "eʳ − 1 − r: unbiased for KL, never negative",
    "abs_log": "|r|",
    "kl_exact": "over the whole vocabulary at each context",
    "kl_lower": "KL is at least this, by the engine's likeliest tokens",
    "tv_lower": "total variation, from 0 to 1, is at least this",
    "tv_upper": "total variation is at most this",
}
_RATE_READINGS = {
    **{
        name: f"tokens whose two probabilities differ by more than a factor of {name.split()[1]}" for name in RATES[:-1]
    },
    RATES[-1]: "tokens that the engine gives a half or more, and the trainer less than a seventh of that",
}
_MIN_SHARE_TOKENS = 50


def drift_section(statistics: Statistics, unit: Unit = "prompt") -> Markup:
    """How far engine and trainer are apart, wherever one may look for it."""
    lead = f"r = log p(trainer) − log p(engine) of a sampled token, in nats. Bands: 95 % intervals over {unit}s."
    if statistics.mean("abs_log") is None:
        needs = "it takes log-probabilities of both engine and trainer for the same tokens."
        return section("Drift", absent(f"Drift could not be measured: {needs}"))
    blocks = [_over_steps(statistics), _by_depth(statistics), _sizes(statistics), _by_environment(statistics)]
    return section("Drift", columns(*(b for b in blocks if b)), _estimators(statistics), lead=lead)


def _over_steps(statistics: Statistics) -> Markup:
    steps = statistics.by_step
    keys = sorted(int(key) for key in steps.sums)  # pyright: ignore[reportArgumentType]
    if len(keys) < 2:
        return absent("Drift over steps: the log holds fewer than two training steps.")
    lines = [
        _band(NAMES[name], keys, [steps.mean(name, per(name), key) for key in keys])
        for name in NAMES
        if statistics.mean(name) is not None
    ]
    each = f"One point is {steps.width} steps. " if steps.width > 1 else ""
    return figure(
        line_chart(lines, title="Drift over steps", x_label="step", y_label="nats per token", log_y=True),
        f"{each}Rising with the step at equal settings: the policy sharpens, or the engine falls behind.",
    )


def _by_depth(statistics: Statistics) -> Markup:
    bins = np.flatnonzero(statistics.by_depth.count() >= _MIN_SHARE_TOKENS)
    if len(bins) < 2:
        return absent("Drift by position: the responses are too short.")
    places = [1.0 if b == 0 else float(1 << (int(b) - 1)) + 1 for b in bins]
    lines = [
        _band(name, places, [_bin_mean(binned, int(b)) for b in bins])
        for name, binned in ((NAMES["abs_log"], statistics.by_depth), (NAMES["k3"], statistics.k3_by_depth))
    ]
    chart = line_chart(
        lines,
        title="Drift by depth",
        x_label="position in the response (from here to the next point)",
        y_label="nats per token",
        log_x=True,
        log_y=True,
    )
    return figure(chart, "Flat is healthy: the end of a long chain should be as faithful as its start.")


def _sizes(statistics: Statistics) -> Markup:
    values, shares = statistics.sizes.above()
    visible = (shares > 0) & (values > 1e-6)
    if visible.sum() < 2:
        return absent("The sizes of log ratios: every one of them is 0.")
    line = Series("share", values[visible].tolist(), (100 * shares[visible]).tolist())
    chart = line_chart(
        [line],
        title="How large single tokens' drift is",
        x_label="|log ratio|",
        y_label="tokens above it, %",
        log_x=True,
        log_y=True,
        references=[Reference(float(np.sqrt(2 * PUBLISHED["trm_max"])), "k2 = 0.05", "x")],
    )
    return figure(chart, "The rule marks where TRM-Max at its published threshold rejects the whole sequence.")


def _by_environment(statistics: Statistics) -> Markup:
    rows = statistics.by_environment
    means = {name: rows.mean("abs_log", "tokens", name) for name in sorted(map(str, rows.sums))}
    known = {name: mean for name, mean in means.items() if mean is not None}
    if len(known) < 2:
        return Markup()
    order = sorted(known, key=lambda name: -known[name].value)[:12]
    chart = bar_chart(
        order,
        [known[name].value for name in order],
        title="Drift by environment",
        x_label="mean |log ratio|, nats",
        intervals=[_ends(known[name]) for name in order],
    )
    return figure(chart, f"The {len(order)} largest of {len(known)}." if len(known) > len(order) else "")


def _estimators(statistics: Statistics) -> Markup:
    rows = [(name, _READINGS[name], interval(mean)) for name in ESTIMATORS if (mean := statistics.mean(name))]
    rows += [
        (f"|r|, {100 * share:g} %", "this share of tokens is below", interval(statistics.sizes.quantile(share)))
        for share in QUANTILES
    ]
    rows.append(("|r|, largest", "the worst token of all", number(statistics.sizes.largest)))
    rows += _tails(statistics.tails)
    return table(
        ("per token", "what it is", "estimate (95 % interval)"), rows, label="Estimates of the drift", numeric=(2,)
    )


def _tails(tails: Tails) -> list[tuple[str, str, str]]:
    """What the tails of the weights say: Pareto's k, extreme tokens, and whom the errors hit."""
    found = [
        ("Pareto's k, tokens", "of token weights; above 0.7 their means are unreliable", pareto_k(tails.above)),
        ("Pareto's k, sequences", "the same of the product over a sequence", pareto_k(tails.sequences)),
    ]
    found += [(f"share {name}", _RATE_READINGS[name], tails.rate(name)) for name in RATES]
    found += [
        (f"signed skew, A {'>' if sign == 'positive' else '<'} 0", "mean -(w - 1) A: 0 at no drift", skew)
        for sign in SIGNS
        if (skew := tails.signed_skew(sign))
    ]
    return [(name, says, interval(value)) for name, says, value in found if value]


def acceptance_section(statistics: Statistics, advice: SampleAdvice) -> Markup:
    """What masks keep, by length, and what each threshold costs."""
    pair = [block for block in (_sweep(advice), _errors(advice)) if block]
    lead = "Which sequences a trust region keeps. Thresholds and errors are estimated on a uniform sample of rollouts."
    rest = columns(*pair) if pair else ""
    return section("Masks and thresholds", _acceptance(statistics, advice), _regions(statistics), rest, lead=lead)


def _regions(statistics: Statistics) -> Markup:
    regions = statistics.regions()
    if not regions:
        return Markup()
    rows = [region_row(region) for region in regions]
    kl, tv = (number(REGIONS[name]) for name in ("kl", "tv"))
    why = (
        "Shares of the sequences, from the engine's likeliest tokens and the mass of all others. These can prove a "
        "total variation small, never a KL: the trainer may all but exclude one of the others. Wherever KL is at most "
        f"{kl}, TV is at most {tv}."
    )
    label = "What the engine's likeliest tokens prove"
    shown = table(REGION_HEADS, rows, label=label, numeric=(1, 2, 3))
    return join((element("h3", label), paragraph(why, css="caption"), shown))


def _acceptance(statistics: Statistics, advice: SampleAdvice) -> Markup:
    lengths = sorted(int(key) for key in statistics.by_length.sums if key)  # pyright: ignore[reportArgumentType]
    places = [float(1 << (key - 1)) for key in lengths]
    detector = "exact KL" if statistics.exact else "k2"
    named = (("recorded in this log", "accepted", "judged"), (f"TRM-Max, {detector} ≤ 0.05", "within", "compared"))
    lines = []
    for name, value, of in named:
        means = [statistics.by_length.mean(value, of, key) for key in lengths]
        if any(means):
            lines.append(_band(name, places, means, scale=100))
    lines += _tv_lines(statistics, lengths, places)
    if advice.advice and places:
        best = advice.advice.recommendations["trm_max"].point
        a, b, c = advice.advice.length_quartiles
        middles = [(places[0] + a) / 2, (a + b) / 2, (b + c) / 2, max(c, places[-1])]
        kept = [None if share is None else 100 * share for share in best.acceptance_by_length]
        if len(set(middles)) == 4:
            lines.append(Series(f"TRM-Max at {best.threshold:.2g}, proposed", middles, kept))
    if not lines:
        return absent("Acceptance by length: the log has neither a recorded mask nor both log-probabilities.")
    chart = line_chart(
        lines,
        title="Acceptance by length",
        x_label="response length, tokens",
        y_label="sequences kept, %",
        log_x=True,
        y_range=(0, 100),
    )
    return figure(chart, "A mask on the worst token rejects long responses first: it teaches brevity.", full=True)


def _tv_lines(statistics: Statistics, lengths: Sequence[int], places: Sequence[float]) -> list[Series]:
    """Shares of the sequences proven to stay within the trust region's TV, and of those that may."""
    inside, outside = (
        [statistics.by_length.mean(name, "bounded", key) for key in lengths] for name in ("tv_inside", "tv_outside")
    )
    if not any(inside):
        return []
    may = [Estimate(1 - share.value, 1 - share.high, 1 - share.low) if share else None for share in outside]
    name = f"TV ≤ {number(REGIONS['tv'])}"
    return [_band(f"{name}, proven", places, inside, 100), _band(f"{name}, possible", places, may, 100)]


def _sweep(advice: SampleAdvice) -> Markup:
    if advice.advice is None:
        return Markup()
    names = {"trm_max": "TRM-Max", "trm_avg": "TRM-Avg", "ln_trm": "LN-TRM"}
    lines = [
        Series(names[rule], [p.threshold for p in points], [100 * p.acceptance for p in points])
        for rule, points in advice.advice.sweeps.items()
    ]
    chart = line_chart(
        lines,
        title="What each threshold keeps",
        x_label="threshold",
        y_label="sequences kept, %",
        log_x=True,
        y_range=(0, 100),
    )
    return figure(chart)


def _errors(advice: SampleAdvice) -> Markup:
    if advice.advice is None:
        return Markup()
    points = [p for p in advice.advice.sweeps["trm_max"] if p.error is not None]
    if len(points) < 2:
        return absent("The error that each threshold leaves: it takes the exact KL at every context (kl_exact).")
    lines = [Series("estimate", [p.threshold for p in points], [p.error for p in points])]
    if certified := [e for e in advice.certified_errors if np.isfinite(e.upper)]:
        lines.append(Series("certified, 95 %", [e.threshold for e in certified], [e.upper for e in certified]))
    best = advice.advice.recommendations["trm_max"].point.threshold
    chart = line_chart(
        lines,
        title="The error that each threshold leaves",
        x_label="TRM-Max threshold, exact KL",
        y_label="error, of the reward range",
        log_x=True,
        log_y=True,
        references=[Reference(1, "vacuous above 1"), Reference(best, "proposed", "x")],
    )
    return figure(chart, "At most so much can the surrogate's promise and the true reward differ. Lower is better.")


def _bin_mean(binned: Binned, place: int) -> Estimate:
    return binned.estimate(lambda means: means[..., place])


def _band(name: str, x: Sequence[Number], means: Sequence[Estimate | None], scale: Number = 1) -> Series:
    def column(pick: Callable[[Estimate], float]) -> list[float | None]:
        values = [None if mean is None else scale * pick(mean) for mean in means]
        return [v if v is not None and np.isfinite(v) else None for v in values]

    return Series(name, x, column(lambda m: m.value), column(lambda m: m.low), column(lambda m: m.high))


def _ends(mean: Estimate) -> tuple[float, float] | None:
    return (mean.low, mean.high) if np.isfinite(mean.low) and np.isfinite(mean.high) else None
