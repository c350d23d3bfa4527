"""The loaders, in the order in which they are asked; a new source is one file and one entry here."""

from collections.abc import Mapping, Sequence

from holdfast.audit.read.loaders import (
    miles,
    miles_columns,
    nemo_rl,
    open_instruct,
    own,
    pickles,
    prime_rl_stream,
    prime_rl_tokens,
    slime,
    traces,
)
from holdfast.audit.read.loaders.answers import servers
from holdfast.audit.read.loaders.generic.sources import generic_loader
from holdfast.audit.read.loaders.loader import Loader

LOADERS: tuple[Loader, ...] = (
    miles_columns.LOADER,
    own.LOADER,
    nemo_rl.LOADER,
    prime_rl_tokens.LOADER,
    prime_rl_stream.LOADER,
    traces.LOADER,
    miles.LOADER,
    slime.LOADER,
    open_instruct.LOADER,
    servers.SGLANG,
    servers.GYM,
    servers.LOADER,
    pickles.LOADER,
    generic_loader({}),
)


def loaders_for(columns: Mapping[str, str]) -> Sequence[Loader]:
    """The loaders; with token ids among a user's own columns, the one that reads these is asked first."""
    if {"response_ids", "token_ids"} & set(columns):
        return (generic_loader(columns), *LOADERS)
    return LOADERS


def formats_table() -> str:
    """What `holdfast audit --formats` prints: a paragraph per source, its files and what they tell."""
    ordered = sorted(LOADERS, key=lambda known: known.name != "holdfast")
    return "\n\n".join(f"{known.title}\n  files  {known.files}\n  gives  {known.gives}" for known in ordered)


__all__ = ["LOADERS", "Loader", "formats_table", "loaders_for"]
