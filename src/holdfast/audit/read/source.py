"""From a path to chunks: finds the files of a run, asks the loaders who can read each, and streams them in order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import pyarrow as pa

from holdfast.audit.read.columns import Chunk
from holdfast.audit.read.loaders import LOADERS, loaders_for
from holdfast.audit.read.loaders.generic.texts import texts_loader
from holdfast.audit.read.loaders.generic.unknown import lacking, text_dump
from holdfast.audit.read.loaders.loader import Loader, SourceFile
from holdfast.audit.read.overlap import note_mixture, without_repeats
from holdfast.audit.read.prefetch import prefetch
from holdfast.audit.read.raw.compressed import head_of
from holdfast.audit.read.reading import Reading, natural
from holdfast.errors import DataError

HEAD = 1 << 16
_EXPLAINED = 50
"""Files of a folder without anything readable that are asked for what they are."""


def find_files(
    path: Path,
    loaders: Sequence[Loader] = LOADERS,
    note: Callable[[str], None] = lambda text: None,
    columns: Mapping[str, str] = MappingProxyType({}),
    *,
    texts: bool = False,
) -> list[SourceFile]:
    """The readable files of a file or folder, step after step, without those that repeat others; `note` is told.

    `columns` are a user's own names, ours to theirs; with `texts`, dumps of texts are taken where nothing else is.
    Raises DataError where there is nothing, and where nothing is of a known format: it then says what was looked for.
    """
    if not path.exists():
        raise DataError(f"{path} does not exist: give a file or a folder of logged rollouts")
    candidates = [path] if path.is_file() else sorted(filter(_ordinary, path.rglob("*")), key=natural)
    if not candidates:
        raise DataError(f"{path} is an empty folder; formats that can be read: holdfast audit --formats")
    readable = []
    for file in candidates:
        if (trouble := _unreadable(file)) is not None:
            note(f"{file} could not be read and was left out: {trouble}")
        else:
            readable.append(file)
    found = _detected(readable, (*loaders_for(columns), *loaders) if columns else loaders)
    if not found and texts:
        found = _detected(readable, [texts_loader(columns)])
    if not found:
        for file in candidates[:_EXPLAINED]:
            if said := text_dump(file, head_of(file, HEAD)):
                raise DataError(f"{file}: {said}")
        lacks = lacking(candidates[0], head_of(candidates[0], HEAD), columns) if len(candidates) == 1 else None
        lacks = f" It lacks {lacks}." if lacks else ""
        looked = "; ".join(f"{loader.title}: {loader.files}" for loader in loaders)
        raise DataError(f"{path}: none of {len(candidates)} files is of a known format.{lacks} Looked for {looked}")
    if path.is_dir():
        found = without_repeats(found, note)
        note_mixture(found, note)
    return found


def _detected(files: Sequence[Path], loaders: Sequence[Loader]) -> list[SourceFile]:
    pairs = ((file, detect(file, loaders)) for file in files)
    return [SourceFile(file, loader, file.stat().st_size) for file, loader in pairs if loader is not None]


def detect(path: Path, loaders: Sequence[Loader] = LOADERS) -> Loader | None:
    """The first loader that recognises a file; None for none, and for an empty or unreadable file."""
    head = head_of(path, HEAD)
    return next((loader for loader in loaders if head and _matches(loader, path, head)), None)


def _matches(loader: Loader, path: Path, head: bytes) -> bool:
    try:
        return loader.matches(path, head)
    except Exception:  # a file that breaks what looks at it is not of its format
        return False


def _unreadable(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            file.read(1)
    except OSError as error:
        return error.strerror
    return None


def read_files(files: Sequence[SourceFile], reading: Reading) -> Iterator[tuple[SourceFile, Chunk]]:
    """All chunks of all files, read ahead; a file that cannot be used is counted and named, and the others go on."""
    return prefetch(_read(files, reading))


def _read(files: Sequence[SourceFile], reading: Reading) -> Iterator[tuple[SourceFile, Chunk]]:
    for file in files:
        try:
            for chunk in file.loader.read(file.path, reading):
                yield file, chunk
        except DataError as error:
            reading.reject(file.path, 0, "unreadable file", str(error))
        except Exception as error:  # strangers' files make any reader fail in any way, and the others go on
            told = str(error).strip().partition("\n")[0][:200]
            reading.reject(file.path, 0, "unreadable file", f"{file.path}: {type(error).__name__}: {told}")
    # Arrow keeps what its readers have freed, about 200 MB beside a large log; what comes after reading needs it.
    pa.default_memory_pool().release_unused()


def _ordinary(path: Path) -> bool:
    return path.is_file() and not any(part.startswith(".") for part in path.parts[-2:])
