"""`holdfast convert SRC DST.parquet`: any log that the audit reads, as Holdfast's own parquet; exit code 2 for none."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from holdfast.audit.read.columns import Chunk, as_rollouts
from holdfast.audit.read.loaders.loader import SourceFile
from holdfast.audit.read.raw.names import own_columns
from holdfast.audit.read.reading import Reading
from holdfast.audit.read.source import find_files, read_files
from holdfast.errors import ConfigError, DataError, visible
from holdfast.rollout.store import write_rollouts
from holdfast.types import Rollout

SHOWN = 5
"""Records left out that are named one by one."""


def run(argv: Sequence[str]) -> int:
    """Convert a file or folder."""
    options = parser().parse_args(argv)
    console = Console(stderr=True)
    reading = Reading(allow_pickle=options.allow_pickle, columns=own_columns(options.map))
    rollouts, tokens = convert(options.source, options.target, reading, force=options.force, console=console)
    megabytes = options.target.stat().st_size / 1e6
    print(f"{visible(str(options.target))}: {rollouts:,} rollouts, {tokens:,} response tokens, {megabytes:,.1f} MB")
    for line in left_out(reading):
        console.print(visible(line), highlight=False, markup=False, soft_wrap=True)
    return 0


def convert(
    source: Path, target: Path, reading: Reading, *, force: bool = False, console: Console | None = None
) -> tuple[int, int]:
    """Write every usable rollout under a path to one parquet file; returns how many rollouts and response tokens.

    Streams; the file appears under its name only when it is complete. Raises ConfigError for a target that must not be
    written, DataError where there is no usable rollout.
    """
    if target.suffix != ".parquet":
        raise ConfigError(f"{target}: the converted file is parquet, call it {target.with_suffix('.parquet').name}")
    if target.exists() and not force:
        raise ConfigError(f"{target} exists already: choose another name, or replace it with --force")
    if not target.parent.is_dir():
        raise ConfigError(f"{target.parent} is no folder: create it first")
    found = find_files(source, note=reading.note, columns=reading.columns)
    files = [file for file in found if file.path.resolve() != target.resolve()]
    counts = {"rollouts": 0, "tokens": 0}
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".converting-") as folder:
        written = Path(folder) / target.name
        with _Bar(console, sum(file.size for file in files)) as show:
            reading.on_progress = show
            write_rollouts(written, _counted(read_files(files, reading), counts))
        if counts["rollouts"] == 0:
            reasons = ", ".join(f"{n} × {kind}" for kind, n in reading.rejected.most_common())
            raise DataError(f"{source}: no usable rollout ({reasons or 'no records'})\n" + "\n".join(left_out(reading)))
        written.replace(target)
    return counts["rollouts"], counts["tokens"]


def left_out(reading: Reading) -> Iterator[str]:
    """What a reader should know of the input: records left out, by reason and the first ones by name, and notes."""
    if reading.rejected:
        kinds = ", ".join(f"{n:,} × {kind}" for kind, n in reading.rejected.most_common())
        yield f"left out {reading.rejected.total():,} records: {kinds}"
        for bad in reading.examples[:SHOWN]:
            yield f"  {bad.path}: {bad.reason}"
        if reading.rejected.total() > SHOWN:
            yield f"  and {reading.rejected.total() - SHOWN:,} more"
    for note in reading.notes:
        yield f"note: {note}"


def _counted(chunks: Iterable[tuple[SourceFile, Chunk]], counts: dict[str, int]) -> Iterator[Rollout]:
    for _, chunk in chunks:
        counts["rollouts"] += len(chunk)
        counts["tokens"] += chunk.token_count
        yield from as_rollouts(chunk)


class _Bar:
    """A bar over the bytes of the input, or nothing where nobody looks at it."""

    def __init__(self, console: Console | None, total: int) -> None:
        columns = (TextColumn("converting"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
        hidden = console is None or not console.is_terminal
        self.bar = Progress(*columns, console=console, transient=True, disable=hidden)
        self.task = self.bar.add_task("", total=total)

    def __enter__(self) -> Callable[[int], None]:
        self.bar.start()
        return lambda done: self.bar.update(self.task, completed=done)

    def __exit__(self, *_: object) -> None:
        self.bar.stop()


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="holdfast convert", description=__doc__)
    made.add_argument("source", type=Path, help="a file or folder of logged rollouts (holdfast audit --formats)")
    made.add_argument("target", type=Path, help="the parquet file to write")
    made.add_argument("--force", action="store_true", help="replace the target if it exists")
    made.add_argument("--map", action="append", default=[], metavar="OURS=THEIRS", help="a column of your own")
    made.add_argument("--allow-pickle", action="store_true", help="read pickles, which can run any code")
    return made
