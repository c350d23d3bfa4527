"""A shard of a log: some of its files, how they are read, and the partial audit of them as bytes."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from holdfast import __version__
from holdfast.audit.judge.auditor import Auditor
from holdfast.audit.read.codec import Codec
from holdfast.audit.read.loaders import LOADERS, loaders_for
from holdfast.audit.read.loaders.generic.texts import texts_loader
from holdfast.audit.read.loaders.loader import SourceFile
from holdfast.audit.read.reading import Reading
from holdfast.audit.read.source import detect, read_files
from holdfast.errors import DataError

Tell = Callable[[int, int], None]
"""Is told now and then how many bytes and tokens are done."""


@dataclass(frozen=True)
class Shard:
    """Files of one log with their places in it; `number` of `count` shards, from 1. Options are those of `Reading`."""

    log: str
    number: int
    count: int
    files: tuple[tuple[int, str, int], ...]
    """Place, path and size of each."""
    allow_pickle: bool = False
    columns: Mapping[str, str] = field(default_factory=dict)
    codec: Codec | None = None
    texts: bool = False
    """Whether these are dumps of texts."""

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(size for _, _, size in self.files)

    def __str__(self) -> str:
        names = [Path(path).name for _, path, _ in self.files]
        named = names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}, {len(names)} files"
        return f"shard {self.number} of {self.count} ({named})"


def cut(log: str, files: Sequence[SourceFile], count: int, reading: Reading) -> list[Shard]:
    """At most `count` shards of about equal size: the largest file first, each to the shard that has least."""
    dealt: list[list[int]] = [[] for _ in range(min(count, len(files)))]
    sizes = [0] * len(dealt)
    for place in sorted(range(len(files)), key=lambda place: -files[place].size):
        least = sizes.index(min(sizes))
        dealt[least].append(place)
        sizes[least] += files[place].size
    mark = hashlib.sha256(repr([(str(f.path), f.size) for f in files]).encode()).hexdigest()[:8]
    return [
        Shard(
            log=f"{log} ({len(files)} files, {mark})",
            number=number,
            count=len(dealt),
            files=tuple((place, str(files[place].path), files[place].size) for place in sorted(places)),
            allow_pickle=reading.allow_pickle,
            columns=dict(reading.columns),
            codec=reading.codec,
            texts=any(file.loader.name == "texts" for file in files),
        )
        for number, places in enumerate(dealt, 1)
    ]


def audit_shard(shard: Shard, tell: Tell = lambda done, tokens: None) -> Auditor:
    """The partial audit of a shard.

    Raises:
        DataError: a file that is not there, or no longer of a known format (it has changed since the log was listed).
    """
    reading = Reading(allow_pickle=shard.allow_pickle, columns=shard.columns, codec=shard.codec)
    loaders = (*loaders_for(shard.columns), *LOADERS) if shard.columns else LOADERS
    if shard.texts:
        loaders = [texts_loader(shard.columns)]
    files, places = [], {}
    for place, name, size in shard.files:
        loader = detect(Path(name), loaders)
        if loader is None:
            there = "has changed since the log was listed" if Path(name).exists() else "is not there for this worker"
            raise DataError(f"{shard}: {name} {there}; all workers must see the same files")
        files.append(SourceFile(Path(name), loader, size))
        places[name] = place
    auditor = Auditor(reading, log=shard.log)
    for file, chunk in read_files(files, reading):
        auditor.feed(chunk, str(file.path), places[str(file.path)])
        tell(reading.bytes_read, auditor.facts.tokens)
    return auditor


def dump(auditor: Auditor) -> bytes:
    """A partial audit as bytes, for `load` of the same version."""
    return json.dumps({"holdfast": __version__, "log": auditor.log}).encode() + b"\n" + pickle.dumps(auditor, 5)


def load(state: bytes) -> Auditor:
    """The partial audit that `dump` wrote. Like every pickle, bytes of strangers can run any code.

    Raises:
        DataError: bytes of another version, by its name, or of something else.
    """
    head, _, body = state.partition(b"\n")
    try:
        version = json.loads(head)["holdfast"]
    except (ValueError, KeyError, TypeError):
        raise DataError("this is no partial audit: it must be what `dump` wrote") from None
    if version != __version__:
        raise DataError(f"a partial audit of Holdfast {version} and this is {__version__}: audit all with one version")
    return pickle.loads(body)
