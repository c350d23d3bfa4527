"""Files of torch.save without running code from them, and what they hold as arrays and plain values."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np

from holdfast.audit.read.raw.compressed import unpacked
from holdfast.audit.read.raw.fields import Unusable
from holdfast.audit.read.reading import Reading
from holdfast.errors import DataError

ZIP = b"PK\x03\x04"
LARGEST_EXPANDED = 1 << 24
"""Entries that a tensor may have without storing each; one number can be expanded to any shape."""


def load(path: Path, reading: Reading) -> dict[str, Any]:
    """The dictionary that a file holds; tensors stay on disk until they are used.

    Only tensors and plain values are read; with `reading.allow_pickle`, anything is, and may run code. Raises
    DataError for a file that is damaged, holds something else, or needs what was not allowed.
    """
    import torch

    source = unpacked(path)
    try:
        value = torch.load(source, map_location="cpu", weights_only=True, mmap=True if source is path else None)
    except pickle.UnpicklingError as error:
        if not reading.allow_pickle:
            raise DataError(
                f"{path} holds more than tensors and plain values ({_first_line(error)}). Reading that can run code "
                "hidden in the file: if you trust whoever wrote it, use --allow-pickle"
            ) from None
        try:
            value = torch.load(unpacked(path), map_location="cpu", weights_only=False)
        except Exception as broken:  # whatever the file's own code raises
            raise DataError(f"{path} could not be unpickled: {type(broken).__name__}: {broken}") from broken
    except Exception as error:  # a damaged pickle makes the reader raise anything
        raise DataError(f"{path} is not a complete file of torch.save: {_first_line(error)}") from error
    if not isinstance(value, dict):
        raise DataError(f"{path} holds a {type(value).__name__}, not a dictionary of rollouts")
    return value


def plain(value: Any) -> Any:
    """Tensors as arrays (float32 for what numpy lacks), and lists and dictionaries of them likewise."""
    import torch

    if isinstance(value, torch.Tensor):
        if value.layout != torch.strided or value.is_quantized or value.is_meta or value.is_complex():
            raise Unusable("wrong type", f"a tensor that is {value.layout} of {value.dtype}, allowed are dense numbers")
        stored = value.untyped_storage().nbytes() // value.element_size()
        if value.numel() > max(stored, LARGEST_EXPANDED):
            raise Unusable("wrong type", f"a tensor of shape {tuple(value.shape)} with {stored} stored numbers")
        value = value.detach()
        return (value.float() if value.dtype in (torch.bfloat16, torch.float16) else value).cpu().numpy()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, tuple):
        return list(value)
    return value


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return text[0][:200] if text else type(error).__name__
