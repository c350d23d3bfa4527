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
from holdfast.audit.judge.attribution.whose import Whose
from holdfast.audit.judge.auditor import Audit, Auditor
from holdfast.audit.judge.finding import SEVERITIES, Severity, at_least
from holdfast.audit.read.codec import Tokenizer
from holdfast.audit.read.loaders import formats_table
from holdfast.audit.read.loaders.generic.texts import note_texts
from holdfast.audit.read.loaders.generic.unknown import text_dump
from holdfast.audit.read.loaders.loader import SourceFile
from holdfast.audit.read.raw.compressed import head_of
from holdfast.audit.read.raw.names import own_columns
from holdfast.audit.read.reading import Reading
from holdfast.audit.read.scalars.runs import ScalarLog, read_scalars
from holdfast.audit.read.source import HEAD, detect, find_files, read_files
from holdfast.audit.shards.cluster import audit_on_cluster, connect, processors
from holdfast.audit.shards.processes import audit_in_processes
from holdfast.audit.shards.shard import Tell, cut
from holdfast.audit.show.jsonout import audit_dict
from holdfast.audit.show.outputs import write_reports
from holdfast.audit.show.terminal import line, print_audit
from holdfast.errors import ConfigError, DataError
from holdfast.train.settings.memory import keep_freed_memory

if TYPE_CHECKING:
    from holdfast.audit.read.rescore import Scorer

WROTE = (("nemo_rl", "NeMo-RL"), ("prime_rl", "prime-rl"), ("slime", "slime"), ("miles", "miles"), ("pickles", "SkyRL"))
"""Beginning of a loader's name, and the framework that writes what it reads."""
_KEPT = 1 << 28
"""Bytes that stay with the process between chunks: a quarter of an audit's time went into getting pages again."""


def run(argv: Sequence[str]) -> int:
    """Audit a file or folder; say it in the terminal, as a page and as JSON."""
    options = parser().parse_args(argv)
    if options.formats:
        print(formats_table())
        return 0
    console = Console(quiet=options.quiet)
    if options.demo:
        from holdfast.audit.simulate.demo import run_demo

        return run_demo(options.out or Path("audit-demo"), console)
    if options.path is None:
        raise ConfigError("audit what? give a file or folder of logged rollouts, or --demo to see what the audit finds")
    if options.model and (options.workers > 1 or options.ray):
        raise ConfigError("--model scores in one process: leave out --workers and --ray, or --model")
    keep_freed_memory(_KEPT)
    audit = audit_path(
        options.path,
        Reading(
            allow_pickle=options.allow_pickle, columns=own_columns(options.map), codec=tokenizer_of(options.tokenizer)
        ),
        scorers=_scorers(options.model),
        console=Console(stderr=True, quiet=options.quiet),
        workers=options.workers,
        ray=options.ray,
    )
    advice = advise_on(audit)
    written = None
    if options.out or not options.json:
        name = options.path.resolve().name
        folder = options.out or Path(f"audit-{name.removesuffix('.parquet')}")
        written = write_reports(folder, audit, advice, title=f"Audit of {name}")
    if options.json:
        print(json.dumps(audit_dict(audit, advice), ensure_ascii=True, allow_nan=False))
    else:
        print_audit(console, audit, advice.missing)
        for path in written or ():
            console.print(line(f"wrote {path}"), soft_wrap=True)
    return exit_code(audit, options.fail_on, allow_unjudged=options.allow_unjudged)


def audit_path(
    path: Path,
    reading: Reading,
    *,
    scorers: Sequence[Scorer] = (),
    console: Console | None = None,
    workers: int = 1,
    ray: bool = False,
) -> Audit:
    """Read everything under a path, with a progress bar where `console` is a terminal.

    With `scorers`, log-probabilities of the trainer that the log lacks come from the last one's model, and so do bounds
    of divergences where the log has the engine's likeliest tokens; with several it is told which wrote each step. The
    files are dealt to `workers` processes, or with
    `ray` to as many tasks of the cluster (1: as many as it has CPUs). Raises DataError where no usable rollout is
    found.
    """
    auditor = Auditor(reading)
    scorer = scorers[-1] if scorers else None
    reading.likeliest = scorer is not None
    auditor.whose = Whose([one.name for one in scorers]) if len(scorers) > 1 else None
    try:
        files = find_files(path, note=reading.note, columns=reading.columns, texts=reading.codec is not None)
    except DataError:
        if path.exists() and (numbers := read_scalars(path, reading, without=_text_dumps(path))) is not None:
            take_scalars(numbers, auditor)
            return auditor.result()
        raise
    auditor.framework = framework_of_loaders({file.loader.name for file in files})
    bar = _Bar(console, sum(file.size for file in files))
    try:
        if (workers > 1 and len(files) > 1) or ray:
            _in_shards(path, files, auditor, bar.tell, workers, ray)
        else:
            places = {file.path: place for place, file in enumerate(files)}
            for file, chunk in read_files(files, reading):
                if auditor.whose is not None and "rollout_logprobs" in chunk.present:
                    auditor.whose.update([one.score(chunk) for one in scorers])
                for part in scorer.fill([chunk], reading) if scorer else (chunk,):
                    auditor.feed(part, str(file.path), places[file.path])
                bar.tell(reading.bytes_read, auditor.facts.tokens)
    finally:
        bar.stop()
    note_texts(reading)
    if path.is_dir():
        _take_numbers_beside(path, files, auditor)
    audit = auditor.result()
    if audit.facts.sequences == 0:
        reasons = ", ".join(f"{n:,} × {kind}" for kind, n in reading.rejected.most_common())
        first = "".join(f"\n  {bad.path}, record {bad.record}: {bad.reason}" for bad in reading.examples[:3])
        raise DataError(f"{path}: no usable rollout ({reasons or 'no records'}){first}")
    return audit


def _in_shards(path: Path, files: Sequence[SourceFile], whole: Auditor, tell: Tell, workers: int, ray: bool) -> None:
    """Deal the files to workers and add up what they found."""
    cluster = connect() if ray else None
    if cluster is not None and workers == 1:
        workers = processors(cluster)
    shards = cut(str(path), files, workers, whole.reading)
    whole.log = shards[0].log
    if cluster is not None:
        audit_on_cluster(cluster, shards, whole, tell)
    else:
        audit_in_processes(shards, whole, tell)


class _Bar:
    """A progress bar that begins with the first thing told: before, processes may fork."""

    def __init__(self, console: Console | None, total: int) -> None:
        columns = (TextColumn("reading"), BarColumn(), DownloadColumn(), TextColumn("{task.fields[rate]}"))
        hidden = console is None or not console.is_terminal
        self.progress = Progress(*columns, TimeRemainingColumn(), console=console, transient=True, disable=hidden)
        self.total, self.task = total, None

    def tell(self, done: int, tokens: int) -> None:
        """Show that so many bytes and tokens are done."""
        if self.task is None:
            self.progress.start()
            self.task = self.progress.add_task("", total=self.total, rate="")
        seconds = self.progress.tasks[0].elapsed or 0.0
        rate = f"{tokens / seconds / 1e6:.1f} M tokens/s" if seconds > 0 else ""
        self.progress.update(self.task, completed=done, rate=rate)

    def stop(self) -> None:
        """Take it off the screen."""
        self.progress.stop()


def framework_of_loaders(names: set[str]) -> str | None:
    """The framework that wrote all files of a log, by the loaders that read them; None where they tell of several."""
    found = {next((whose for start, whose in WROTE if name.startswith(start)), None) for name in names}
    return found.pop() if len(found) == 1 else None


def take_scalars(numbers: ScalarLog, auditor: Auditor) -> None:
    """Give an auditor a log of numbers by step as all that there is."""
    auditor.scalars = numbers
    auditor.files = {str(file): place for place, file in enumerate(numbers.files)}
    auditor.facts.steps |= numbers.course.steps
    auditor.facts.columns |= set(numbers.course.series)


def _take_numbers_beside(path: Path, files: Sequence[SourceFile], auditor: Auditor) -> None:
    """Let numbers by step that lie in the folder of a log of tokens be judged with it; why not is noted."""
    reading, quiet = auditor.reading, Reading(columns=auditor.reading.columns)
    taken = {file.path for file in files} | _text_dumps(path)
    taken.update(p for p in path.rglob("*") if p.is_file() and p not in taken and detect(p) is not None)
    try:
        numbers = read_scalars(path, quiet, without=taken)
    except DataError as error:
        reading.note(f"numbers by step beside the tokens were left out: {error}")
        return
    if numbers is None:
        return
    auditor.scalars = numbers
    for text in quiet.notes:
        reading.note(text)
    names = ", ".join(file.name for file in numbers.files[:3]) + (", …" if len(numbers.files) > 3 else "")
    reading.note(f"numbers by step are judged with the tokens: {names}")


def _text_dumps(path: Path) -> set[Path]:
    """Files that hold rollouts as text: their rows have rewards and steps, and are no numbers by step."""
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    return {p for p in files if text_dump(p, head_of(p, HEAD)) is not None}


def exit_code(audit: Audit, fail_on: Severity | str, *, allow_unjudged: bool = False) -> int:
    """1 where a finding reaches this severity, else 3 where the run could not be judged (`never`: always 0)."""
    if fail_on not in SEVERITIES:
        return 0
    if any(at_least(finding.severity, fail_on) for finding in audit.findings):
        return 1
    return 3 if audit.unjudged and not allow_unjudged else 0


def _scorers(folders: Sequence[Path]) -> list[Scorer]:
    if not folders:
        return []
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise ConfigError("--model names one folder twice: give each checkpoint once, in the order of training")
    from holdfast.audit.read.rescore import Scorer

    return [Scorer.load(folder) for folder in folders]


def tokenizer_of(folder: Path | None) -> Tokenizer | None:
    """The tokenizer of a folder, once it is known that there is one; raises ConfigError where there is none."""
    if folder is None:
        return None
    found = Tokenizer(folder)
    _ = found.size
    return found


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of workers: give 1 or more")
    return int(text)


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
        "--quiet", "-q", action="store_true", help="print errors only, and what --json asks for: the exit code tells"
    )
    made.add_argument(
        "--fail-on", choices=(*SEVERITIES, "never"), default="warning", help="exit with 1 at this severity (warning)"
    )
    made.add_argument(
        "--allow-unjudged",
        action="store_true",
        help="exit with 0, not 3, where too little is logged to judge",
    )
    made.add_argument(
        "--model",
        type=Path,
        action="append",
        default=[],
        help="Hugging Face folder that scores tokens the log has no trainer for; several, in the order of training, "
        "tell whose weights wrote each step",
    )
    made.add_argument(
        "--tokenizer",
        type=Path,
        help="Hugging Face folder: checks for text that was tokenised again, reads dumps of texts (verl, TRL), and "
        "gives the token viewer its texts",
    )
    made.add_argument(
        "--map",
        action="append",
        default=[],
        metavar="OURS=THEIRS",
        help="a column of your own, e.g. rollout_logprobs=lp or reward=meta.score; may be given again",
    )
    made.add_argument("--workers", type=_count, default=1, metavar="N", help="deal the files to so many processes (1)")
    made.add_argument(
        "--ray", action="store_true", help="deal them to a Ray cluster that runs already, to all its CPUs or --workers"
    )
    made.add_argument("--allow-pickle", action="store_true", help="read pickles, which can run any code")
    made.add_argument("--formats", action="store_true", help="list what can be read, and what each format tells")
    made.add_argument("--demo", action="store_true", help="make small runs with one fault each, and audit them")
    return made
