"""The loaders, in the order in which they are asked; a new source is one file and one entry here."""

from holdfast.audit.loaders import nemo_rl, open_instruct, own, prime_rl_tokens, responses, traces
from holdfast.audit.loaders.loader import Loader

LOADERS: tuple[Loader, ...] = (
    own.LOADER,
    nemo_rl.LOADER,
    prime_rl_tokens.LOADER,
    traces.LOADER,
    open_instruct.LOADER,
    responses.LOADER,
)
