"""Which number of a run spoke before its reward fell, over all runs of several studies.

A signal speaks at the first step at which it lies outside all values that it took in the runs of the same study and
cell that did not collapse, on the other seeds: a run is never judged by a range that its own seed helped to set. The
same is asked of thresholds that papers publish. The reward has fallen at the first step at which its mean over
`WINDOW` training steps is below the study's share of the start, taken as held out before the first step.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from holdfast.audit.judge.checks.drift.heavy_tails import EFFECTIVE, HEAVY, LIMITS
from holdfast.audit.judge.checks.drift.signed_skew import STALE_LIMIT
from holdfast.errors import DataError
from holdfast.report.metrics import Metrics, is_number, read_metrics, step_of
from holdfast.study.definition import Study
from holdfast.study.plan import Planned
from holdfast.study.results import number_of, rounded, state_of
from holdfast.study.rollout_signals import KEYS, rollout_signals
from holdfast.train.keep.files import write_text

NAME = "diagnosis"
"""Of the results and the page, beside those of the studies."""
WINDOW = 4
FEWEST_HEALTHY = 6
"""Runs of other seeds from which a range is taken."""
Run = Mapping[str, Any]


@dataclass(frozen=True)
class Signal:
    """One number of metrics.jsonl and the side on which it warns; `published` is a threshold from a paper."""

    key: str
    title: str
    low: bool = False
    published: float | None = None
    source: str = ""

    def beyond(self, value: float, limit: float) -> bool:
        """Whether a value is outside."""
        return value < limit if self.low else value > limit

    def extreme(self, values: Sequence[float]) -> float:
        """The value nearest to, or furthest beyond, a limit."""
        return min(values) if self.low else max(values)


_AUDIT = "the audit's limit"
SIGNALS = (
    Signal("rollout_k3_mean", "k3, mean of the step", published=0.001, source="TRM-Avg, arXiv 2512.23075"),
    Signal("kl_exact_mean", "exact KL, mean of the step"),
    Signal("kl_exact_max", "exact KL, largest of the step"),
    Signal("rollout_k2_max", "k2, largest of the step", published=0.05, source="TRM-Max, arXiv 2512.23075"),
    Signal("abs_log_ratio_mean", "abs. log-ratio, mean of the step"),
    Signal("masked_sequences", "share of sequences masked", published=0.3, source="TRM's aim, arXiv 2512.23075"),
    Signal("entropy", "entropy", low=True),
    Signal("grad_norm", "gradient norm"),
    Signal("signed_skew", "skew of the weights by the sign of the advantage", published=STALE_LIMIT, source=_AUDIT),
    Signal("pareto_k", "Pareto's k of the token weights", published=HEAVY, source="PSIS, JMLR 25 (2024)"),
    Signal("beyond_20", "share of tokens beyond a factor of 20", published=LIMITS["beyond 20"], source=_AUDIT),
    Signal(
        "confident_disagreement",
        "share of confident disagreements",
        published=LIMITS["confident disagreement"],
        source=_AUDIT,
    ),
    Signal("effective_share", "effective share of the tokens", low=True, published=EFFECTIVE, source=_AUDIT),
)


def diagnosed_runs(study: Study, name: str, planned: Sequence[Planned], out: Path) -> list[dict[str, Any]]:
    """What is needed of every finished run: extremes of one that held, the whole course of one that collapsed."""
    found = []
    for run in planned:
        folder = run.place(out)
        if run.purpose != "reporting" or study.metric.collapse is None or state_of(folder)[0] != "finished":
            continue
        metrics = read_metrics(folder / "metrics.jsonl")
        start, end = metrics.first(study.metric.key), number_of(metrics, study.metric)
        if start is None or end is None:
            continue
        collapsed = end < study.metric.collapse * start
        row = {"study": name, "configuration": run.configuration, "cell": dict(run.cell), "seed": run.seed}
        row |= {"collapsed": collapsed, "fell": fall(metrics, study.metric.collapse * start) if collapsed else None}
        logged = rollout_signals(folder)
        rows = [{**line, **logged.get(step_of(line), {})} for line in metrics.rows if step_of(line) >= 1]
        found.append(row | {"signals": {s.key: _course(rows, s, collapsed) for s in SIGNALS}})
    return found


def fall(metrics: Metrics, below: float) -> int | None:
    """The first step at which the mean training reward of the last `WINDOW` steps is below; None: it never was."""
    steps, rewards = metrics.series("reward_mean")
    for end in range(WINDOW, len(steps) + 1):
        if statistics.fmean(rewards[end - WINDOW : end]) < below:
            return steps[end - 1]
    return None


def _course(rows: Sequence[Mapping[str, Any]], signal: Signal, whole: bool) -> list[float | None] | None:
    """Values from step 1 on; the extreme one alone unless `whole`; None where the run has no such number.

    A run without a mask rejects nothing: its acceptance is no signal.
    """
    found = [row.get(signal.key) for row in rows]
    values = [rounded(value) if is_number(value) else None for value in found]
    known = [value for value in values if value is not None]
    if not known or (signal.key == "masked_sequences" and not any(known)):
        return None
    return values if whole else [signal.extreme(known)]


def spoke_at(run: Run, signal: Signal, limit: float | None) -> int | None:
    """The first step at which a signal is beyond a limit."""
    course = run["signals"].get(signal.key) or []
    if limit is None:
        return None
    steps = enumerate(course, 1)
    return next((step for step, value in steps if value is not None and signal.beyond(value, limit)), None)


def limit_for(runs: Sequence[Run], run: Run, signal: Signal) -> float | None:
    """The most extreme value of the runs that held, in the run's study and cell, on other seeds."""
    values = [
        course[0]
        for other in runs
        if not other["collapsed"] and other["seed"] != run["seed"]
        if (other["study"], other["cell"]) == (run["study"], run["cell"])
        if (course := other["signals"].get(signal.key))
    ]
    return signal.extreme(values) if len(values) >= FEWEST_HEALTHY else None


@dataclass(frozen=True)
class Heard:
    """How a signal did over all runs: leads are in steps, the fall minus the first step at which it spoke."""

    leads: list[int]
    late: int
    silent: int
    false_alarms: int
    healthy: int

    @property
    def collapsed(self) -> int:
        """Collapsed runs that it was judged on."""
        return len(self.leads) + self.late + self.silent


def hear(runs: Sequence[Run], signal: Signal, published: bool) -> Heard:
    """Judge a signal by ranges of other seeds, or by its published threshold."""
    leads: list[int] = []
    late = silent = false_alarms = healthy = 0
    for run in runs:
        limit = signal.published if published else limit_for(runs, run, signal)
        if not run["signals"].get(signal.key) or limit is None or (run["collapsed"] and run["fell"] is None):
            continue
        spoke = spoke_at(run, signal, limit)
        if not run["collapsed"]:
            healthy += 1
            false_alarms += spoke is not None
        elif spoke is None:
            silent += 1
        elif spoke < run["fell"]:
            leads.append(run["fell"] - spoke)
        else:
            late += 1
    return Heard(leads, late, silent, false_alarms, healthy)


def diagnosis_page(runs: Sequence[Run]) -> str:
    """The page for the docs, from the runs alone."""
    collapsed = [run for run in runs if run["collapsed"]]
    seen = [run for run in collapsed if run["fell"] is not None]
    studies = sorted({run["study"] for run in runs})
    links = ", ".join(f"[{name}]({name}.md)" for name in studies)
    blocks = [
        "# Which number speaks before a collapse?",
        f"{len(runs)} finished runs of the studies {links}: {len(collapsed)} had collapsed by the rule of their study, "
        f"{len(runs) - len(collapsed)} had not. In {len(seen)} of the collapsed ones the training reward fell below "
        "the same share of the start as well; these are judged. A setting that stands in several studies counts in "
        "each. Written by `holdfast study --diagnose` from [diagnosis.json](diagnosis.json).",
        "**The rule.** A signal speaks at the first step at which it lies outside every value that it took in the runs "
        "of the same study and cell that did not collapse, those of its own seed left out (at least "
        f"{FEWEST_HEALTHY} runs, else it is not judged). The reward has fallen when its mean over {WINDOW} training "
        "steps is below the study's share of the start; that mean trails by up to "
        f"{WINDOW - 1} steps, which flatters every lead alike. False alarms are runs that did not collapse and spoke.",
        "## Ranges of the runs that held",
        _table(runs, published=False),
        "## Published thresholds",
        _table(runs, published=True),
        _not_judged(runs),
        "## The runs that collapsed",
        _collapsed_table(runs, collapsed),
    ]
    return "\n\n".join(blocks) + "\n"


def _not_judged(runs: Sequence[Run]) -> str:
    without = [run for run in runs if not any(run["signals"].get(key) for key in KEYS)]
    names = ", ".join(sorted({run["study"] for run in without}))
    titles = ", ".join(signal.title for signal in SIGNALS if signal.key in KEYS)
    said = f"From the rollouts, which the other numbers do not need: {titles}."
    return f"{said} {len(without)} runs did not keep theirs ({names}): not judged there." if without else said


def _table(runs: Sequence[Run], published: bool) -> str:
    head = ["signal", *(["threshold", "source"] if published else [])]
    head += ["spoke before the fall", "median lead, steps", "with it or later", "never", "false alarms"]
    lines = [head, ["-"] * len(head)]
    for signal in SIGNALS:
        if published and signal.published is None:
            continue
        heard = hear(runs, signal, published)
        lead = f"{statistics.median(heard.leads):g} ({min(heard.leads)} to {max(heard.leads)})" if heard.leads else "–"
        lines.append(
            [
                signal.title,
                *([f"{signal.published:g}", signal.source] if published else []),
                f"{len(heard.leads)} of {heard.collapsed}",
                lead,
                str(heard.late),
                str(heard.silent),
                f"{heard.false_alarms} of {heard.healthy}",
            ]
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def read_diagnosis(path: Path) -> list[dict[str, Any]]:
    """The runs of a written diagnosis.

    Raises:
        DataError: the file is missing, or is no diagnosis.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))["diagnosed"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is no diagnosis ({error}); `holdfast study --diagnose` writes it") from error


def write_diagnosis(folder: Path, runs: Sequence[Run]) -> list[Path]:
    """diagnosis.json, one run a line, and its page."""
    path = folder / f"{NAME}.json"
    lines = ",\n".join(json.dumps(run, allow_nan=False, ensure_ascii=False) for run in runs)
    write_text(path, f'{{"diagnosed": [\n{lines}\n]}}\n')
    page = path.with_suffix(".md")
    write_text(page, diagnosis_page(read_diagnosis(path)))
    return [path, page]


def _collapsed_table(runs: Sequence[Run], collapsed: Sequence[Run]) -> str:
    lines = [["study", "run", "seed", "reward fell at step", "spoke first, and when"], ["-"] * 5]
    for run in collapsed:
        where = ", ".join([run["configuration"], *(f"{k} {v}" for k, v in run["cell"].items())])
        fell = "not seen in training" if run["fell"] is None else str(run["fell"])
        lines.append([run["study"], where, str(run["seed"]), fell, _first_words(runs, run)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _first_words(runs: Sequence[Run], run: Run) -> str:
    asked = [(spoke_at(run, signal, limit_for(runs, run, signal)), signal.title) for signal in SIGNALS]
    spoke = [(step, title) for step, title in asked if step is not None]
    if not spoke:
        return "none"
    first = min(step for step, _ in spoke)
    return f"{first}: {'; '.join(title for step, title in spoke if step == first)}"
