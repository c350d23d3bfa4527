"""The loaders, in the order in which they are asked; a new source is one file and one entry here."""

from holdfast.audit.loaders import own
from holdfast.audit.loaders.loader import Loader

LOADERS: tuple[Loader, ...] = (own.LOADER,)
