"""Checks every jaxtyping shape at run time, keeps torch single-threaded and the hub out of reach."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from jaxtyping import install_import_hook

install_import_hook("holdfast", "beartype.beartype")

import torch  # noqa: E402

torch.set_num_threads(1)
