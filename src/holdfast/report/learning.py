"""What a run learned: reward first, judged against its standard error; accuracy only where rewards are 0 or 1."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from holdfast.report.charts.bars import heat_map
from holdfast.report.charts.plots import Series, line_chart
from holdfast.report.charts.scales import Number, number
from holdfast.report.metrics import Metrics, is_number
from holdfast.report.page import Markup, absent, columns, figure, section

ENOUGH = 5
"""Problems, or steps, from which a standard error is taken."""
SURE = 2.0
"""Standard errors that a change must exceed before it is called one."""
_MOST_COLUMNS = 24
_EXACT = 1e-6


@dataclass(frozen=True)
class Progress:
    """A mean reward at the start and at the end, and the standard error of the difference, where it is known."""

    name: str
    start: float
    end: float
    error: float | None

    @property
    def change(self) -> float:
        """By how much it rose."""
        return self.end - self.start

    @property
    def clear(self) -> bool | None:
        """Whether the change is more than `SURE` standard errors; None where the error is not known."""
        return None if self.error is None else abs(self.change) > SURE * self.error


def clearly_lower(lower: Number, responses: Number, higher: Number, others: Number) -> bool:
    """Whether one share of so many responses is below another one's by more than `SURE` standard errors.

    After Agresti and Caffo (2000): p = (share·n + 1)/(n + 2) of each, error (Σ p(1 − p)/(n + 2))^(1/2), so that a share
    of 0 among few is not taken for certain. Responses count as independent.
    """
    shares = [(share * n + 1) / (n + 2) for share, n in ((lower, responses), (higher, others))]
    variance = sum(p * (1 - p) / (n + 2) for p, n in zip(shares, (responses, others), strict=True))
    return shares[1] - shares[0] > SURE * math.sqrt(variance)


def zero_or_one(metrics: Metrics) -> bool:
    """Whether every reward of the run was 0 or 1, as far as it says: mean rewards are then accuracies.

    Accuracy is recorded only for such rewards; runs that recorded the share of rewards of at least 1 in its place are
    known by a mean reward that differs from it.
    """
    pairs = [
        (row[reward], row.get(accuracy))
        for row in metrics.rows
        for reward, accuracy in (("reward_mean", "accuracy"), ("eval_reward", "eval_accuracy"))
        if is_number(row.get(reward))
    ]
    return bool(pairs) and all(is_number(a) and abs(r - a) <= _EXACT for r, a in pairs)


def held_out(metrics: Metrics, kind: str = "") -> tuple[list[int], list[float]]:
    """Steps and mean rewards on held-out problems (`kind` "greedy_": decoded greedily).

    Older runs recorded accuracies alone, which are the mean rewards where rewards are 0 or 1.
    """
    found = metrics.series(f"eval_{kind}reward")
    return found if found[0] or not zero_or_one(metrics) else metrics.series(f"eval_{kind}accuracy")


def progress(metrics: Metrics) -> Progress | None:
    """How the reward changed: on held-out problems, else on those trained on; with a known error before without."""
    known = [found for found in (_on_held_out(metrics), _on_training(metrics)) if found is not None]
    return next((found for found in known if found.error is not None), known[0] if known else None)


def _on_held_out(metrics: Metrics) -> Progress | None:
    """The first evaluation against the last.

    Error: that of the mean of the differences, problem by problem, where both have the same problems; else
    (se_first² + se_last²)^(1/2).
    """
    steps, values = held_out(metrics)
    if len(values) < 2:
        return None
    error = None
    rows = {row["step"]: row for row in metrics.rows}
    first, last = rows[steps[0]], rows[steps[-1]]
    pairs = paired_rewards(first.get("eval_rewards"), last.get("eval_rewards"))
    if pairs is not None and len(pairs) >= ENOUGH:
        error = statistics.stdev(b - a for a, b in pairs) / math.sqrt(len(pairs))
    elif pairs is None and all(is_number(row.get("eval_reward_se")) for row in (first, last)):
        error = math.hypot(first["eval_reward_se"], last["eval_reward_se"])
    return Progress("Mean reward on held-out problems", values[0], values[-1], error)


def paired_rewards(first: object, last: object) -> list[tuple[float, float]] | None:
    """Two evaluations' rewards problem by problem; None where they are not of as many problems."""
    if not isinstance(first, list) or not isinstance(last, list) or len(first) != len(last):
        return None
    if not all(map(is_number, first)) or not all(map(is_number, last)):
        return None
    return list(zip(first, last, strict=True))


def _on_training(metrics: Metrics) -> Progress | None:
    """The first tenth of the steps (five of them at least) against the last; the error is from their spread."""
    values = metrics.series("reward_mean")[1]
    if len(values) < 2:
        return None
    size = min(max(ENOUGH, len(values) // 10), len(values) // 2)
    first, last = values[:size], values[-size:]
    error = None
    if size >= ENOUGH:
        error = math.hypot(*(statistics.stdev(part) / math.sqrt(size) for part in (first, last)))
    return Progress("Mean reward of the training rollouts", statistics.fmean(first), statistics.fmean(last), error)


def learning(metrics: Metrics) -> Markup:
    """Rewards and their distribution, accuracy where there is one, and entropy, over steps."""
    blocks = [_rewards(metrics), _training_distribution(metrics), _held_out_distribution(metrics)]
    if zero_or_one(metrics):
        blocks.append(_accuracy(metrics))
    entropy = metrics.series("entropy")
    if entropy[0]:
        chart = line_chart(
            [Series("entropy", *entropy)], title="Entropy", x_label="step", y_label="nats per token", y_range=(0, 0)
        )
        blocks.append(figure(chart, "How open the policy still is; near zero it has nothing left to explore."))
    else:
        blocks.append(absent("Entropy was not measured."))
    return section("Learning", columns(*blocks))


def _rewards(metrics: Metrics) -> Markup:
    lines, said = [], []
    steps, values = held_out(metrics)
    if steps:
        errors = dict(zip(*metrics.series("eval_reward_se"), strict=True))
        spread = {}
        if all(step in errors for step in steps):
            around = [(v, SURE * errors[step]) for step, v in zip(steps, values, strict=True)]
            spread = {"low": [v - e for v, e in around], "high": [v + e for v, e in around]}
        lines.append(Series("held-out, sampled", steps, values, **spread))
        said.append("Held-out rewards are of the trainer's own policy.")
        said += ["The band is two standard errors wide on either side."] if spread else []
    greedy = held_out(metrics, "greedy_")
    if greedy[0]:
        lines.append(Series("held-out, greedy", *greedy))
        said.append("Greedy takes the likeliest token each time.")
    training = metrics.series("reward_mean")
    if training[0]:
        lines.append(Series("training, sampled", *training))
        said.append("Training rewards are of the rollouts that the engine sampled.")
    if not lines:
        return absent("Rewards were not measured.")
    return figure(line_chart(lines, title="Reward", x_label="step", y_label="mean reward"), " ".join(said))


def _training_distribution(metrics: Metrics) -> Markup:
    rows = [
        (step, [v for v in values if v is not None])
        for step, values in metrics.lists("reward_quartiles")
        if len(values) == 5 and None not in values
    ]
    if not rows:
        return absent("The distribution of the training rewards was not recorded.")
    steps = [step for step, _ in rows]
    low, first, middle, third, high = zip(*(values for _, values in rows), strict=True)
    lines = [
        Series("median", steps, middle, low=first, high=third),
        Series("lowest", steps, low),
        Series("highest", steps, high),
    ]
    chart = line_chart(lines, title="Training rewards of a step", x_label="step", y_label="reward")
    return figure(chart, "At least half of a step's rewards lie in the band around the median.")


def _held_out_distribution(metrics: Metrics) -> Markup:
    rows = [
        (step, [v for v in values if v is not None])
        for step, values in metrics.lists("eval_rewards")
        if values and None not in values
    ]
    if not rows:
        return absent("The distribution of the held-out rewards was not recorded.")
    said = "How many of the held-out problems got which reward, sampled."
    if len(rows) > _MOST_COLUMNS:
        said += f" {_MOST_COLUMNS} of {len(rows)} evaluations, the first and the last among them."
        rows = [rows[round(k * (len(rows) - 1) / (_MOST_COLUMNS - 1))] for k in range(_MOST_COLUMNS)]
    names, shares = _shares([values for _, values in rows])
    chart = heat_map(
        shares,
        rows=names,
        columns=[str(step) for step, _ in rows],
        title="Held-out rewards",
        x_label="step",
        y_label="share of the problems, %",
    )
    return figure(chart, said)


def _shares(samples: Sequence[Sequence[float]], most: int = 6) -> tuple[list[str], list[list[float]]]:
    """Percent of each sample in each row, highest reward on top: a row per value, or `most` bins of equal width."""
    different = sorted({v for values in samples for v in values}, reverse=True)
    if len(different) <= most:
        counted = [[100 * sum(v == wanted for v in values) / len(values) for values in samples] for wanted in different]
        return [number(v) for v in different], counted
    high, low = different[0], different[-1]
    width = (high - low) / most
    bins = [[min(most - 1, int((high - v) / width)) for v in values] for values in samples]
    names = [f"{number(high - (k + 1) * width)} to {number(high - k * width)}" for k in range(most)]
    return names, [[100 * sum(b == k for b in chosen) / len(chosen) for chosen in bins] for k in range(most)]


def _accuracy(metrics: Metrics) -> Markup:
    named = {
        "held-out, sampled": held_out(metrics),
        "held-out, greedy": held_out(metrics, "greedy_"),
        "training, sampled": metrics.series("reward_mean"),
    }
    lines = [Series(name, steps, [100 * v for v in values]) for name, (steps, values) in named.items() if steps]
    chart = line_chart(lines, title="Accuracy", x_label="step", y_label="accuracy, %", y_range=(0, 100))
    return figure(chart, "Rewards are 0 or 1, so the mean reward is the share of right answers.")
