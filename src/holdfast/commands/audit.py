"""`holdfast audit PATH`: rollouts or metrics in, a verdict out; exit 0 clean, 1 findings, 2 unusable, 3 not judged."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from holdfast.audit.judge.advice import advise_on
from holdfast.audit.judge.auditor import Audit, Auditor
from holdfast.audit.judge.finding import SEVERITIES, Severity, at_least
from holdfast.audit.read.loaders import formats_table
from holdfast.audit.read.raw.names import own_columns
from holdfast.audit.read.reading import Reading
from holdfast.audit.read.scalars.runs import ScalarLog, read_scalars
from holdfast.audit.read.source import find_files, read_files
from holdfast.audit.show.jsonout import audit_dict
from holdfast.audit.show.outputs import write_reports
from holdfast.audit.show.terminal import line, print_audit
from holdfast.errors import ConfigError, DataError

if TYPE_CHECKING:
    from holdfast.audit.read.rescore import Scorer

WROTE = (("nemo_rl", "NeMo-RL"), ("prime_rl", "prime-rl"), ("slime", "slime"), ("miles", "miles"), ("pickles", "SkyRL"))
"""Beginning of a loader's name, and the framework that writes what it reads."""


def run(argv: Sequence[str]) -> int:
    """Audit a file or folder; say it in the terminal, as a page and as JSON."""
    options = parser().parse_args(argv)
    if options.formats:
        print(formats_table())
        return 0
    console = Console()
    if options.demo:
        from holdfast.audit.simulate.demo import run_demo

        return run_demo(options.out or Path("audit-demo"), console)
    if options.path is None:
        raise ConfigError("audit what? give a file or folder of logged rollouts, or --demo to see what the audit finds")
    reading = Reading(allow_pickle=options.allow_pickle, columns=own_columns(options.map))
    audit = audit_path(options.path, reading, scorer=_scorer(options.model), console=Console(stderr=True))
    advice = advise_on(audit)
    written = None
    if options.out or not options.json:
        name = options.path.resolve().name
        folder = options.out or Path(f"audit-{name.removesuffix('.parquet')}")
        written = write_reports(folder, audit, advice, title=f"Audit of {name}", tokenizer=options.tokenizer)
    if options.json:
        print(json.dumps(audit_dict(audit, advice), ensure_ascii=True, allow_nan=False))
    else:
        print_audit(console, audit, advice.missing)
        for path in written or ():
            console.print(line(f"wrote {path}"), soft_wrap=True)
    return exit_code(audit, options.fail_on, allow_unjudged=options.allow_unjudged)


def audit_path(path: Path, reading: Reading, *, scorer: Scorer | None = None, console: Console | None = None) -> Audit:
    """Read everything under a path, with a progress bar where `console` is a terminal.

    With a `scorer`, log-probabilities of the trainer that the log lacks come from its model, and so do bounds of
    divergences where the log has the engine's likeliest tokens. Raises DataError where no
    usable rollout is found.
    """
    auditor = Auditor(reading)
    reading.likeliest = scorer is not None
    try:
        files = find_files(path, note=reading.note, columns=reading.columns)
    except DataError:
        if path.exists() and (numbers := read_scalars(path, reading)) is not None:
            return audit_scalars(numbers, auditor)
        raise
    auditor.framework = framework_of_loaders({file.loader.name for file in files})
    columns = (TextColumn("reading"), BarColumn(), DownloadColumn(), TextColumn("{task.fields[rate]}"))
    hidden = console is None or not console.is_terminal
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True, disable=hidden) as progress:
        task = progress.add_task("", total=sum(file.size for file in files), rate="")
        for file, chunk in read_files(files, reading):
            for part in scorer.fill([chunk], reading) if scorer else (chunk,):
                auditor.feed(part, str(file.path))
            seconds = progress.tasks[0].elapsed or 0.0
            rate = f"{auditor.facts.tokens / seconds / 1e6:.1f} M tokens/s" if seconds > 0 else ""
            progress.update(task, completed=reading.bytes_read, rate=rate)
    audit = auditor.result()
    if audit.facts.sequences == 0:
        reasons = ", ".join(f"{n:,} × {kind}" for kind, n in reading.rejected.most_common())
        first = "".join(f"\n  {bad.path}, record {bad.record}: {bad.reason}" for bad in reading.examples[:3])
        raise DataError(f"{path}: no usable rollout ({reasons or 'no records'}){first}")
    return audit


def framework_of_loaders(names: set[str]) -> str | None:
    """The framework that wrote all files of a log, by the loaders that read them; None where they tell of several."""
    found = {next((whose for start, whose in WROTE if name.startswith(start)), None) for name in names}
    return found.pop() if len(found) == 1 else None


def audit_scalars(numbers: ScalarLog, auditor: Auditor) -> Audit:
    """The audit of a log of numbers by step; they are all that it holds."""
    auditor.scalars = numbers
    auditor.sources = [str(file) for file in numbers.files]
    auditor.facts.steps |= numbers.course.steps
    auditor.facts.columns |= set(numbers.course.series)
    return auditor.result()


def exit_code(audit: Audit, fail_on: Severity | str, *, allow_unjudged: bool = False) -> int:
    """1 where a finding reaches this severity, else 3 where the run could not be judged (`never`: always 0)."""
    if fail_on not in SEVERITIES:
        return 0
    if any(at_least(finding.severity, fail_on) for finding in audit.findings):
        return 1
    return 3 if audit.unjudged and not allow_unjudged else 0


def _scorer(folder: Path | None) -> Scorer | None:
    if folder is None:
        return None
    from holdfast.audit.read.rescore import Scorer

    return Scorer.load(folder)


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    made = argparse.ArgumentParser(
        prog="holdfast audit",
        description="Read logged rollouts of any framework and say where they drifted, why, what it costs and what to "
        "set. Exit code 0 clean, 1 findings at or above --fail-on, 2 unusable input, 3 not judged.",
        allow_abbrev=False,
    )
    made.add_argument("path", type=Path, nargs="?", help="a file or folder of logged rollouts")
    made.add_argument("--out", type=Path, help="folder for report.html and report.json (default: audit-NAME)")
    made.add_argument("--json", action="store_true", help="print report.json instead; writes no files without --out")
    made.add_argument(
        "--fail-on", choices=(*SEVERITIES, "never"), default="warning", help="exit with 1 at this severity (warning)"
    )
    made.add_argument(
        "--allow-unjudged",
        action="store_true",
        help="exit with 0, not 3, where too little is logged to judge",
    )
    made.add_argument("--model", type=Path, help="Hugging Face folder that scores tokens the log has no trainer for")
    made.add_argument("--tokenizer", type=Path, help="Hugging Face folder that gives the token viewer its texts")
    made.add_argument(
        "--map",
        action="append",
        default=[],
        metavar="OURS=THEIRS",
        help="a column of your own, e.g. rollout_logprobs=lp or reward=meta.score; may be given again",
    )
    made.add_argument("--allow-pickle", action="store_true", help="read pickles, which can run any code")
    made.add_argument("--formats", action="store_true", help="list what can be read, and what each format tells")
    made.add_argument("--demo", action="store_true", help="make small runs with one fault each, and audit them")
    return made
