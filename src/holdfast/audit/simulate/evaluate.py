"""How often each check finds what was planted, and how often it cries wolf: writes the tables of docs/audit_checks.md.

python -m holdfast.audit.simulate.evaluate --out docs/audit_checks.md       # 200 healthy runs, 10 of each fault
python -m holdfast.audit.simulate.evaluate --healthy 20 --faulty 2 --only shifted_by_one
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from holdfast.audit.judge.auditor import Auditor
from holdfast.audit.judge.checks import CHECKS, Check
from holdfast.audit.judge.finding import at_least
from holdfast.audit.read.columns import Chunk, as_rollouts, pack
from holdfast.audit.read.reading import Reading
from holdfast.audit.simulate import FAULTS
from holdfast.audit.simulate.letters import Letters
from holdfast.audit.simulate.run import ESTIMATORS, Plan, clean_chunks, plan_of
from holdfast.types import Rollout

SIZES = ((64, 50, 0.3), (256, 100, 0.3), (512, 200, 0.25), (1000, 300, 0.1), (5000, 500, 0.05))
"""Healthy runs: sequences, mean length, share of the runs."""
FAULTY = (512, 100)
"""Faulty runs: sequences and mean length."""
PLAIN: dict[str, Any] = {
    "steps": 8,
    "temperature": 1.0,
    "top_p": 1.0,
    "sharpen": 0.0,
    "solved": None,
    "anonymous": False,
    "estimator": "grpo",
    "tail": 0.0,
    "uneven": False,
    "group_size": 8,
}
"""What all of them have in common, but for what a fault needs."""

PAGE = """# What the audit looks for, and how far its checks can be believed

This page is written by `python -m holdfast.audit.simulate.evaluate --out docs/audit_checks.md`.

Every run here is simulated from two policies that are known exactly (`holdfast.audit.simulate`): tables of logits
over 64 tokens in 256 contexts, most of them nearly certain of the next token and some open. The engine's logits are
the trainer's plus noise, its tokens are really sampled, the trainer learns from step to step, and the trainer's
log-probabilities are computed, not imitated. So a wrong temperature, support or shift looks as it does in a real
log. What the simulation cannot show: the drift of a real engine under load, and log-probabilities of a real
vocabulary's tail. Strengths at which little is found are listed too: they are where a check ends.

## False alarms

{healthy} random healthy runs (sequences × tokens: {sizes}): dense or with
expert flips on 0.5 to 5 % of the tokens, logit noise of 0.003 to 0.06, rollouts 0 to 2 updates old, temperature
0.7, 1 or 1.2, with and without top-p on both sides, one or three turns, one, 4 or 8 answers to a prompt, environments
of equal or different lengths, normal noise or heavy-tailed (Student's t with 3 or 5 degrees of freedom). Advantages
are made in nine ways: GRPO with and without the standard deviation, leave-one-out, whitened by the batch, normalised
by the batch, with a KL in the reward, without groups of equal rewards, and in groups that lost members before or after
advantages were made. One in six logs neither prompts nor groups.
One in six of them solves its task: over eight steps its logits grow by a half to three times themselves, so that little
entropy is left, and 98 % of its last responses are right. An alarm is a warning or worse, also one that a data error
would withhold. None in 200 means: below 1.5 % with 95 % confidence. A cell with fewer
runs was measured on some of them only, mostly small ones.

| check | the question it answers | false alarms |
|-|-|-|
{questions}

## Detection

Each fault planted in {faulty} random healthy runs of {sequences} sequences of about {length} tokens. *s* is the
strength; the share of the runs in which the fault's own check gave a warning or worse is in bold. What came after the
page was last written is "not measured".

| check | what was planted | found |
|-|-|-|
{rows}

How each check decides, with its limits, is in its docstring: `src/holdfast/audit/judge/checks/`.
"""


def healthy_plan(seed: int, sequences: int, length: int, **fixed: Any) -> Plan:
    """A random healthy run: dense or mixture of experts, quiet or noisy engine, 0 to 2 updates old, 1 or 3 turns."""
    rng = np.random.default_rng([11, seed])
    drawn: dict[str, Any] = {
        "steps": int(rng.choice([4, 8])),
        "group_size": 8,
        "mean_length": length,
        "age": int(rng.integers(3)),
        "turns": int(rng.choice([1, 1, 3])),
        "noise": float(np.exp(rng.uniform(np.log(0.003), np.log(0.06)))),
        "flips": float(rng.choice([0, 0, 0.005, 0.02, 0.05])),
        "flip_noise": float(rng.uniform(0.3, 0.8)),
        "update": float(rng.uniform(0, 0.06)),
        "temperature": float(rng.choice([1, 1, 0.7, 1.2])),
        "top_p": float(rng.choice([1, 1, 0.95])),
        "anonymous": bool(rng.random() < 1 / 6),
    }
    if "solved" not in fixed and rng.random() < 1 / 6:
        # Fresh rollouts: growing this fast, a policy soon leaves older ones behind, which drift checks then say.
        drawn.update(steps=8, age=0, sharpen=float(rng.uniform(0.5, 3)), solved=0.98)
    later = np.random.default_rng([12, seed])
    drawn.update(
        estimator=str(later.choice(ESTIMATORS)),
        tail=float(later.choice([0, 0, 3, 5])),
        uneven=bool(later.random() < 1 / 3),
        group_size=int(later.choice([8, 8, 4, 1])),
    )
    drawn.update(fixed)
    drawn.setdefault("prompts", max(1, round(sequences / drawn["steps"] / drawn["group_size"])))
    return plan_of(seed, **drawn)


def alarms(chunks: Iterable[Chunk], checks: Sequence[Callable[[], Check]] = CHECKS) -> set[str]:
    """Names of the checks, those of the course among them, that give a warning or worse, withheld ones included."""
    auditor = Auditor(Reading(codec=Letters()), checks=[check() for check in checks])
    for chunk in chunks:
        auditor.feed(chunk)
    audit = auditor.result()
    return {f.name for f in (*audit.findings, *audit.withheld) if at_least(f.severity, "warning")}


def false_alarms(seed: int, runs: int) -> set[str]:
    """Alarms on healthy run number `seed` of `runs`; the share of each size is that of SIZES."""
    ends = np.cumsum([share for _, _, share in SIZES]) * runs
    sequences, length, _ = SIZES[int(np.searchsorted(ends - 1e-9, seed, side="right"))]
    return alarms(clean_chunks(healthy_plan(seed, sequences, length)))


def detected(seed: int, names: Sequence[str], strongest: bool = False) -> set[tuple[str, float]]:
    """(fault, strength) that the fault's own check finds in faulty run number `seed`; one run carries one fault."""
    healthy: dict[str, list[Rollout]] = {}
    found = set()
    for fault in map(FAULTS.__getitem__, names):
        plan = healthy_plan(1000 + seed, *FAULTY, **{**PLAIN, **fault.run})
        if repr(plan) not in healthy:
            healthy[repr(plan)] = [rollout for chunk in clean_chunks(plan) for rollout in as_rollouts(chunk)]
        check = [check for check in CHECKS if check.name == fault.check]
        for strength in fault.strengths[-1:] if strongest else fault.strengths:
            rollouts = fault.apply(healthy[repr(plan)], strength, np.random.default_rng(seed))
            if fault.check in alarms(pack(rollouts), check):
                found.add((fault.name, strength))
    return found


def page(wolf: Counter[str], healthy: int, found: Mapping[tuple[str, float], int], faulty: int) -> str:
    """The document."""
    questions = "\n".join(f"| `{c.name}` | {c.asks} | {wolf[c.name]} of {healthy} |" for c in CHECKS)
    rows = []
    for fault in FAULTS.values():
        spec = re.search(r"{strength:([^}]*)}", fault.describe)
        cells = [
            f"{format(s, spec[1] if spec else 'g')}: **{found[fault.name, s] / faulty:.0%}**"
            for s in fault.strengths
            if (fault.name, s) in found
        ]
        if cells:
            planted = re.sub(r"{strength[^}]*}", "*s*", fault.describe)
            rows.append(f"| `{fault.check}` | {planted} | {' · '.join(cells)} |")
    return PAGE.format(
        questions=questions,
        rows="\n".join(rows),
        healthy=healthy,
        faulty=faulty,
        sequences=FAULTY[0],
        length=FAULTY[1],
        sizes=", ".join(f"{n} × {t} in {share:.0%}" for n, t, share in SIZES),
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Run everything, and print or write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--healthy", type=int, default=200)
    parser.add_argument("--faulty", type=int, default=10)
    parser.add_argument("--only", nargs="*", help="faults of these checks only")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(argv)
    with ProcessPoolExecutor(options.workers) as pool:
        wolf: Counter[str] = Counter()
        for names in pool.map(partial(false_alarms, runs=options.healthy), range(options.healthy)):
            wolf.update(names)
        faults = [f for f in FAULTS.values() if not options.only or f.check in options.only]
        found = Counter({(f.name, s): 0 for f in faults for s in f.strengths})
        for hits in pool.map(partial(detected, names=[f.name for f in faults]), range(options.faulty)):
            found.update(hits)
    text = page(wolf, options.healthy, found, options.faulty)
    if options.out:
        options.out.write_text(text, encoding="utf-8")
    else:
        print(text)


if __name__ == "__main__":
    main()
