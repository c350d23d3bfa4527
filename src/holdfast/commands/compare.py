"""`holdfast compare a.toml b.toml --seeds 5`: objectives side by side, with their spread over seeds."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from holdfast.errors import ConfigError
from holdfast.train.compare import Ranking, collect, plan_entries, run_entries, table_rows, write_results
from holdfast.train.settings.configfile import leading_files, load_config
from holdfast.train.settings.device import refuse_several_processes
from holdfast.train.show.loudness import add_loudness


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    made = argparse.ArgumentParser(
        prog="holdfast compare",
        usage="holdfast compare CONFIG [CONFIG ...] [--objectives A,B] [--seeds N] [--rank-by NUMBER] "
        "[--section.key VALUE ...]",
        description="Train several objectives on the same task and seeds; one table and one figure with spread.",
        epilog="Overrides apply to every configuration: --steps 40 --optimizer.learning_rate 1e-4. "
        "An interrupted comparison continues when the same command is given again.",
        allow_abbrev=False,
    )
    made.add_argument("--seeds", type=int, default=3, help="seeds per objective (default 3)")
    made.add_argument("--objectives", default="", help="presets to try on one configuration: ppo,trm,gspo")
    made.add_argument(
        "--rank-by",
        default="reward",
        metavar="NUMBER",
        help="reward (on held-out problems, sampled; default), greedy_reward, accuracy, greedy_accuracy, "
        "training_reward, or any number of metrics.jsonl",
    )
    made.add_argument("--lowest", action="store_true", help="the lowest is the best")
    made.add_argument("--out", type=Path, help="folder (default: runs/compare-NAME)")
    made.add_argument("--jobs", type=int, default=1, help="runs at the same time, each in its own process")
    add_loudness(made)
    return made


def run(argv: list[str]) -> int:
    """Run every objective with every seed; 0 when all finished, 1 when some failed."""
    files, rest = leading_files(argv)
    known, overrides = parser().parse_known_args(rest)
    if not files:
        raise ConfigError("compare what? give TOML files of runs: holdfast compare a.toml b.toml --seeds 5")
    if known.seeds < 1 or known.jobs < 1:
        raise ConfigError(f"--seeds {known.seeds} --jobs {known.jobs}: both must be at least 1")
    refuse_several_processes(str(files[0]))
    named = [(str(path), load_config(path, overrides)) for path in files]
    presets = [name.strip() for name in known.objectives.split(",") if name.strip()]
    out = known.out or Path("runs") / f"compare-{files[0].stem}"
    entries = [replace(entry, level=known.log_level) for entry in plan_entries(named, presets, known.seeds, out)]
    console = Console(quiet=known.log_level != "info")
    try:
        failures = run_entries(
            entries, known.jobs, lambda text: console.print(text, markup=False, highlight=False, soft_wrap=True)
        )
    except KeyboardInterrupt:
        print(f"\nholdfast compare: interrupted; the same command continues in {out}", file=sys.stderr)
        return 130
    results = collect(entries, Ranking.by(known.rank_by, known.lowest))
    if not results["runs"]:
        raise ConfigError("no run finished:\n" + "\n".join(failures))
    write_results(out, results)
    from holdfast.report.compare import write_compare_report

    report = write_compare_report(out)
    console.print(results_table(results))
    console.print(f"results: {out / 'results.json'}\nreport: {report}", markup=False, highlight=False, soft_wrap=True)
    for failure in failures:
        print(failure, file=sys.stderr)
    return 1 if failures else 0


def results_table(results: dict) -> Table:
    """One row per objective, the best mean first."""
    table = Table(title=f"{results['task']}: {results['ranked_by']['title']}", title_justify="left", box=None)
    table.add_column("objective")
    for name in ("start", "final", "sd", "every seed", "entropy", "seconds"):
        table.add_column(name, justify="right")
    for row in table_rows(results):
        table.add_row(*row)
    return table
