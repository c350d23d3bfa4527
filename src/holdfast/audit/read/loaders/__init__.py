"""The loaders, in the order in which they are asked; a new source is one file and one entry here."""

from holdfast.audit.read.loaders import (
    miles,
    miles_columns,
    nemo_rl,
    open_instruct,
    own,
    pickles,
    prime_rl_tokens,
    responses,
    slime,
    traces,
)
from holdfast.audit.read.loaders.loader import Loader

LOADERS: tuple[Loader, ...] = (
    miles_columns.LOADER,
    own.LOADER,
    nemo_rl.LOADER,
    prime_rl_tokens.LOADER,
    traces.LOADER,
    miles.LOADER,
    slime.LOADER,
    open_instruct.LOADER,
    responses.LOADER,
    pickles.LOADER,
)


def formats_table() -> str:
    """What `holdfast audit --formats` prints: a paragraph per source, its files and what they tell."""
    ordered = sorted(LOADERS, key=lambda known: known.name != "holdfast")
    return "\n\n".join(f"{known.title}\n  files  {known.files}\n  gives  {known.gives}" for known in ordered)


__all__ = ["LOADERS", "Loader", "formats_table"]
