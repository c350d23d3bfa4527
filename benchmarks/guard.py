"""What a guard costs a step, how often it cries wolf, and how soon it sees what is wrong.

python benchmarks/guard.py                      # simulated courses, step by step, as a live run logs them
python benchmarks/guard.py --rollouts           # seconds of a look at the rollouts of a step as well
python benchmarks/guard.py --run runs/NAME      # the share of the steps of a run of ours that had [guard] on = true
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np

from holdfast.audit.course import Course
from holdfast.audit.read.scalars.names import TABLES
from holdfast.audit.simulate import clean_run
from holdfast.audit.simulate.courses import COURSE_FAULTS, healthy_course
from holdfast.guard.guard import Guard, Look
from holdfast.guard.settings import GuardSettings
from holdfast.rollout.store import write_rollouts

NAMES = {ours: theirs[0] for ours, theirs in TABLES["verl"].items()}


def main() -> None:
    """Print the figures of docs/guard.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--healthy", type=int, default=100)
    parser.add_argument("--faulty", type=int, default=10)
    parser.add_argument("--rollouts", action="store_true")
    parser.add_argument("--run", type=Path)
    options = parser.parse_args()
    if options.run:
        share_of_steps(options.run)
    elif options.rollouts:
        cost_of_rollouts()
    else:
        wolf(options.healthy)
        delays(options.faulty)


def live(course: Course, **settings: int) -> list[Look]:
    """The looks of a guard that sees a course step by step."""
    steps = sorted(course.steps)
    values = {n: dict(zip(s.steps.tolist(), s.values.tolist(), strict=True)) for n, s in course.series.items()}
    with tempfile.TemporaryDirectory() as folder:
        guard = Guard(GuardSettings.of(settings), Path(folder), "verl")
        guard._write = lambda audit, step: Path(folder)  # pages are written once, and timed by the audit's benchmark
        looks = []
        for step in steps:
            guard.numbers(step, {NAMES[n]: v[step] for n, v in values.items() if n in NAMES and step in v})
            looks.append(guard.look(step))
    return looks


def wolf(count: int) -> None:
    """Healthy courses in which there was an alarm at any look, and milliseconds a step."""
    cried, seconds, steps = Counter(), 0.0, 0
    worst = Counter()
    for seed in range(count):
        looks = live(healthy_course(seed))
        cried.update({finding.name for look in looks for finding in look.alarms})
        worst[max((int(look.values.get("guard/worst", 0)) for look in looks), default=0)] += 1
        seconds += max(look.values.get("guard/seconds", 0.0) for look in looks)
        steps += len(looks)
    print(f"{count} healthy courses, {steps} steps: alarms {dict(cried)}; worst by course {dict(worst)}", flush=True)
    print(f"{1e3 * seconds / steps:.2f} ms a step", flush=True)


def delays(count: int) -> None:
    """Share of faulty courses with an alarm of the right name, and steps from the fault to it."""
    for fault in COURSE_FAULTS:
        strength, waits = fault.strengths[-1], []
        for seed in range(count):
            course = fault.plant(healthy_course(1000 + seed), strength, np.random.default_rng(seed))
            middle = sorted(course.steps)[len(course.steps) // 2]
            looks = live(course)
            first = next((k.step for k in looks if any(f.name == fault.check for f in k.alarms)), None)
            waits += [] if first is None else [first - middle]
        median = f"{np.median(waits):.0f} steps after the middle" if waits else "never"
        print(f"{fault.check} at {strength:g}: {len(waits)} of {count}, {median}", flush=True)


def cost_of_rollouts(sequences: int = 128, length: int = 500, steps: int = 30) -> None:
    """Seconds of a guard that reads the rollouts of each step, looking every 5 steps."""
    with tempfile.TemporaryDirectory() as folder:
        guard = Guard(GuardSettings(), Path(folder) / "out", "Holdfast", rollouts=Path(folder) / "rollouts")
        (Path(folder) / "rollouts").mkdir()
        made = [clean_run(seed, steps=1, prompts=sequences // 8, group_size=8, mean_length=length) for seed in range(3)]
        tokens = 0
        for step in range(1, steps + 1):
            rollouts = made[step % 3]
            tokens += sum(len(r.response_ids) for r in rollouts)
            write_rollouts(Path(folder) / "rollouts" / f"step_{step:04d}.parquet", rollouts)
            guard.numbers(step, {"reward_mean": 0.5})
            start = time.process_time()
            look = guard.look(step)
            if look.values:
                print(f"step {step}: {time.process_time() - start:.2f} s CPU", flush=True)
        print(f"{tokens / steps:.0f} tokens a step: {guard._seconds / steps:.3f} s a step")


def share_of_steps(run: Path) -> None:
    """The guard's share of the time of a run's steps."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    records = [record for record in records if record["step"] > 0]
    seconds = sum(record["seconds"] for record in records)
    spent = max(record.get("guard/seconds", 0.0) for record in records)
    print(f"{len(records)} steps, {seconds:.1f} s; the guard {spent:.2f} s: {spent / seconds:.2%}")


if __name__ == "__main__":
    main()
