"""The sections of a run's page, each made from what was measured; what was not is said, never invented."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from holdfast.report.charts.bars import bar_chart, heat_map, parts_chart
from holdfast.report.charts.frame import Reference
from holdfast.report.charts.plots import Series, histogram, line_chart, scatter_chart
from holdfast.report.charts.scales import Number, number
from holdfast.report.metrics import Metrics, binned, is_number
from holdfast.report.page import Markup, absent, columns, figure, folded, join, paragraph, section, table
from holdfast.report.survey import MOST_POINTS, Survey, thin_points
from holdfast.report.tokens import token_key, token_view
from holdfast.report.words import acceptance_by_length, is_bound, last_bounds, masked_by_length, responses_by_length

_MOST_BOUNDS = 6
_PARTS = {"generate": "generating", "old_logprobs": "old logprobs", "update": "updating", "evaluate": "evaluating"}


def drift(metrics: Metrics, seen: Survey) -> Markup:
    """Drift over steps, against position, per token and per sequence."""
    blocks = [_drift_over_steps(metrics), _drift_by_position(metrics)]
    if seen.ratios:
        blocks.append(
            figure(
                histogram(
                    seen.ratios, title="Every token's drift", x_label="|log ratio|", bins=32, log_x=True, log_y=True
                ),
                f"{len(seen.ratios):,} tokens of {sum(map(len, seen.points.values())):,} sequences; "
                "both axes logarithmic.",
            )
        )
    if seen.points:
        blocks.append(_sequence_scatter(seen))
    if not seen.ratios:
        blocks.append(absent("No rollouts with logprobs of both engine and trainer were found."))
    return section(
        "Drift",
        columns(*blocks),
        lead="How far the policy that sampled the tokens is from the one being trained, in nats.",
    )


def _drift_over_steps(metrics: Metrics) -> Markup:
    pairs = {"kl_exact_mean": "exact KL, mean", "kl_exact_max": "exact KL, max"}
    if not metrics.has(*pairs):
        pairs = {"rollout_k3_mean": "k3 estimate, mean", "rollout_k2_max": "k2 estimate, max"}
    pairs |= {"abs_log_ratio_mean": "|log ratio|, mean", "abs_log_ratio_max": "|log ratio|, max"}
    lines = _lines(metrics, pairs)
    if not lines:
        return absent("Drift over steps was not measured.")
    return figure(
        line_chart(lines, title="Drift over steps", x_label="step", y_label="nats per token", log_y=True),
        _means_and_maxima(lines, "The mean is over a step's tokens.", "The maximum is that of its worst token."),
    )


def _drift_by_position(metrics: Metrics, bins: int = 16) -> Markup:
    gathered: dict[str, list[tuple[float, float]]] = {"kl_exact_mean": [], "kl_exact_max": [], "abs_log_mean": []}
    end = 0.0
    for _, record in metrics.mappings("drift_by_position"):
        edges = record.get("edges")
        if not isinstance(edges, list) or not all(is_number(e) for e in edges):
            continue
        end = max(end, *map(float, edges))
        for key, points in gathered.items():
            values = record.get(key)
            if isinstance(values, list) and len(values) + 1 == len(edges):
                middles = [(a + b) / 2 for a, b in pairwise(edges)]
                points += [(m, float(v)) for m, v in zip(middles, values, strict=True) if is_number(v)]
    if end <= 0 or not any(gathered.values()):
        return absent("Drift against position was not measured.")
    names = {
        "kl_exact_mean": "exact KL, mean",
        "kl_exact_max": "exact KL, max",
        "abs_log_mean": "|log ratio|, mean",
    }
    lines = []
    for key, points in gathered.items():
        groups = binned(points, bins, end)
        take = max if key == "kl_exact_max" else _mean
        places = [(k + 0.5) * end / bins for k in range(bins)]
        if points:
            lines.append(Series(names[key], places, [take(g) if g else None for g in groups]))
    return figure(
        line_chart(
            lines, title="Drift against position", x_label="token position", y_label="nats per token", log_y=True
        ),
        _means_and_maxima(lines, "Means are averaged over the steps.", "The maximum is the run's."),
    )


def _means_and_maxima(lines: Sequence[Series], means: str, maxima: str) -> str:
    """What to say of the lines that are there."""
    found = {line.name.rpartition(", ")[2] for line in lines}
    return " ".join(text for kind, text in (("mean", means), ("max", maxima)) if kind in found)


def _sequence_scatter(seen: Survey) -> Markup:
    order = [word for word in ("accepted", "rejected", "partly masked", "no verdict") if word in seen.points]
    share = MOST_POINTS // len(order)
    clouds = [(word, thin_points(seen.points[word], share)) for word in order]
    chart = scatter_chart(
        [Series(word, [float(x) for x, _ in points], [y for _, y in points]) for word, points in clouds],
        title="Sequences",
        x_label="response length, tokens",
        y_label="worst |log ratio|",
        log_y=True,
    )
    said, drawn = "One dot a sequence: its length and its worst token.", sum(len(points) for _, points in clouds)
    everything = sum(map(len, seen.points.values()))
    if drawn < everything:
        said += f" {drawn:,} of {everything:,} are drawn, those that drifted most among them."
    return figure(chart, said)


def trust(metrics: Metrics) -> Markup:
    """What the trust region masked, over steps and against length."""
    named = {"masked_sequences": "sequences masked", "masked_tokens": "tokens masked", "clip_share": "tokens clipped"}
    lines = _lines(metrics, named, scale=100)
    over_steps = (
        figure(
            line_chart(lines, title="Masked over steps", x_label="step", y_label="share, %", y_range=(0, 10)),
            "What the objective kept out of the gradient.",
        )
        if lines
        else absent("What was masked was not recorded.")
    )
    return section("Trust region", columns(over_steps, _acceptance(metrics)), _acceptance_map(metrics))


def _acceptance(metrics: Metrics) -> Markup:
    accepted = acceptance_by_length(metrics)
    if accepted is None:
        return absent("Acceptance against length was not measured.")
    named = zip(_quarters(metrics), accepted, strict=True)
    shown = [(name, 100 * share) for name, share in named if share is not None]
    chart = bar_chart(
        [name for name, _ in shown],
        [share for _, share in shown],
        title="Acceptance against length",
        x_label="sequences accepted, %",
        x_range=(0, 100),
    )
    counts = responses_by_length(metrics)
    if counts is None:
        said = "Mean over steps for each quarter of response length."
    else:
        held = f"{', '.join(f'{count:,}' for count in counts[:3])} and {counts[3]:,}"
        said = f"For each quarter of response length at its step; they held {held} responses."
    if len(shown) < len(accepted):
        said += " Quarters that never held a response are left out."
    return figure(chart, said)


def _acceptance_map(metrics: Metrics, most: int = 40) -> Markup:
    rows = masked_by_length(metrics)
    known = [v for _, values in rows for v in values if v is not None]
    if len(rows) < 6 or not known or max(known) == min(known):
        return Markup()
    count = min(most, len(rows))
    stretches = [rows[k * len(rows) // count : (k + 1) * len(rows) // count] for k in range(count)]
    masked = [[[v for _, values in stretch if (v := values[q]) is not None] for stretch in stretches] for q in range(4)]
    cells = [[100 * (1 - _mean(shares)) if shares else None for shares in line] for line in masked]
    return figure(
        heat_map(
            cells,
            rows=_quarters(metrics),
            columns=[str(stretch[0][0]) for stretch in stretches],
            title="Acceptance over steps",
            x_label="step",
            y_label="sequences accepted, %",
        ),
        "" if count == len(rows) else "Every column is the mean of the steps from its own to the next one's.",
        full=True,
    )


def _quarters(metrics: Metrics) -> list[str]:
    plain = ["shortest quarter", "second", "third", "longest quarter"]
    edges = [values for _, values in metrics.lists("length_quartiles") if len(values) == 3]
    middle = [[v for v in column if v is not None] for column in zip(*edges, strict=True)]
    if len(middle) != 3 or not all(middle):
        return plain
    a, b, c = (number(round(_mean(column))) for column in middle)
    if len({a, b, c}) < 3:
        return plain
    return [f"up to {a} tokens", f"{a} to {b}", f"{b} to {c}", f"over {c} tokens"]


def bounds(metrics: Metrics) -> Markup:
    """The error bounds of the run: which is tightest, which say nothing."""
    heading, lead = (
        "Error bounds",
        (
            "What the drift can cost at most: the error of the surrogate as a share of the range of the rewards. "
            "A bound above 1 is vacuous: it says nothing. "
            "Expectations are taken over the sequences that the step sampled."
        ),
    )
    last = last_bounds(metrics)
    if not last:
        return section(heading, absent("No error bound was computed in this run."), lead=lead)
    records = metrics.mappings("bounds")
    rows, marks = [], {}
    for i, (name, value) in enumerate(last):
        history = [float(record[name]) for _, record in records if is_bound(record.get(name))] or [value]
        reading = ("tightest, " if i == 0 else "") + ("vacuous" if value > 1 else "below 1")
        rows.append((name, reading, number(value), number(min(history)), number(max(history))))
        marks[i] = "best" if i == 0 else "dim" if value > 1 else ""
    shown = [name for name, _ in last[:_MOST_BOUNDS]]
    lines = []
    for name in shown:
        found = [(step, float(record[name])) for step, record in records if is_bound(record.get(name))]
        lines.append(Series(name, [s for s, _ in found], [v for _, v in found]))
    chart = line_chart(
        [line for line in lines if line.x],
        title="Bounds over steps",
        x_label="step",
        y_label="bound on the error",
        log_y=True,
        references=[Reference(1, "vacuous above 1")],
    )
    more = f"The {len(shown)} tightest of {len(last)}." if len(last) > len(shown) else ""
    listing = table(
        ("bound", "reading", "last step", "lowest", "highest"),
        rows,
        label="Error bounds",
        numeric=(2, 3, 4),
        marks=marks,
    )
    drawing = figure(chart, more, full=True) if any(line.x for line in lines) else Markup()
    everything = folded(f"All {len(last)} bounds" if len(last) > 1 else "The bound", listing)
    return section(heading, paragraph(_bounds_in_words(last)), drawing, everything, lead=lead)


def _bounds_in_words(last: Sequence[tuple[str, float]]) -> str:
    """The tightest bound and how many of the others say anything."""
    name, value = last[0]
    below = sum(v <= 1 for _, v in last)
    if value > 1:
        return f"At the last step that has bounds none is below 1; the tightest is {name}, {number(value)}."
    others = f"; {below} of {len(last)} are below 1" if len(last) > 1 else ""
    return f"At the last step that has bounds the tightest is {name}, {number(value)}{others}."


def time(metrics: Metrics) -> Markup:
    """Where the time went."""
    totals: dict[str, float] = {}
    for _, split in metrics.mappings("time_split"):
        for name, seconds in split.items():
            if is_number(seconds) and seconds >= 0:
                totals[name] = totals.get(name, 0.0) + float(seconds)
    if not sum(totals.values()):
        return section("Time", absent("The split of time was not measured."))
    order = sorted(totals, key=lambda name: (name == "other", -totals[name]))
    split = parts_chart(
        [_PARTS.get(name, name) for name in order],
        [totals[name] for name in order],
        title="Where the time went",
        unit="s",
    )
    speed = _lines(metrics, {"tokens_per_cpu_second": "tokens per CPU-second"})
    pace = (
        figure(line_chart(speed, title="Speed", x_label="step", y_label="tokens per CPU-second", y_range=(0, 0)))
        if speed
        else absent("Tokens per CPU-second were not measured.")
    )
    return section("Time", columns(figure(split, "Summed over the steps."), pace))


def rollouts(seen: Survey, everything: object = "") -> Markup:
    """A few sequences with their tokens coloured by log ratio, then the browser over `everything` that was logged."""
    examples = seen.examples()
    trouble = [f"{name} could not be read." for name in seen.unreadable]
    if seen.cut_files:
        trouble.append(f"Of {seen.cut_files} files only the first sequences were read, for their length.")
    if seen.skipped_files:
        trouble.append(f"Chosen from {seen.files} of {seen.files + seen.skipped_files} files of rollouts.")
    if not examples:
        return section("Rollouts", absent(" ".join(["No rollouts were logged.", *trouble])))
    kinds = ", ".join(f"{count:,} {word}" for word, count in seen.verdicts.items())
    views = [token_view(example.rollout, heading=example.heading) for example in examples]
    return section(
        "Rollouts",
        token_key(),
        *views,
        absent(" ".join(trouble)) if trouble else "",
        everything,
        lead=join(
            (
                f"Of {seen.sequences:,} {'logged sequences' if seen.whole else 'sequences that were read'}: {kinds}. "
                "Hover over a token, or use the arrow keys.",
            )
        ),
    )


def _lines(metrics: Metrics, named: dict[str, str], scale: Number = 1) -> list[Series]:
    found = [(name, metrics.series(key)) for key, name in named.items() if metrics.has(key)]
    return [Series(name, steps, [scale * v for v in values]) for name, (steps, values) in found]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
