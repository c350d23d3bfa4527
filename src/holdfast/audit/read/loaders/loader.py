"""What a loader is: one file per source, an entry of the list in `loaders/__init__.py`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from holdfast.audit.read.columns import Chunk
from holdfast.audit.read.reading import Reading


@dataclass(frozen=True)
class Loader:
    """Reads one kind of file.

    `files` says what they are called where the framework writes them, `gives` what is known of each token.
    `matches(path, head)` decides from the name and the first 64 KiB; `read(path, reading)` streams chunks in bounded
    memory, calls `reading.reject` for each record it leaves out and `reading.advance` with the bytes it has done. It
    raises DataError only where nothing at all of the file can be used.
    """

    name: str
    title: str
    files: str
    gives: str
    matches: Callable[[Path, bytes], bool]
    read: Callable[[Path, Reading], Iterator[Chunk]]


@dataclass(frozen=True)
class SourceFile:
    """A file and who reads it."""

    path: Path
    loader: Loader
    size: int


ROLLOUT_ONLY = (
    "this log has the engine's log-probabilities only: drift cannot be measured. `--model DIR` scores its tokens with "
    "the trainer's weights of that step, as a Hugging Face folder"
)
