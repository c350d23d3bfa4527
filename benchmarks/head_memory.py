"""What each contestant of the LM-head benchmarks will hold, from the sizes alone: who cannot fit is not started."""

from __future__ import annotations

import torch

FLOOR_ROWS = 4096
"""Rows that the floors multiply at a time."""
TRL_CHUNK = 32768


def needed_bytes(name: str, rows: int, width: int, vocabulary: int, itemsize: int) -> float:
    """Bytes beyond the inputs at the peak, gradients included.

    naive: 22 bytes a logit in 16 bits (float32 log-probabilities, p, p·log p, their gradients and the logits'), 32 in
    float32. One pass: 4096 rows of float32 logits and float32 gradients. TRL, Liger and verl: two tiles of 4096 rows
    and float32 gradients. CCE on a GPU and our two passes: gradients, dL/dhidden in float32 and 0.6 GB of workspace.
    """
    gradients = (rows + vocabulary) * width * itemsize
    wide_gradients = (rows + vocabulary) * width * 4
    if name.endswith(("GEMM", "GEMMs")):
        return min(rows, FLOOR_ROWS) * vocabulary * itemsize + gradients
    if name.startswith("naive"):
        return rows * vocabulary * (22 if itemsize == 2 else 32) + gradients
    if name.startswith(("separable", "one pass")):
        return gradients + wide_gradients + min(rows, 4096) * vocabulary * 4
    if name.startswith(("TRL", "Liger", "verl")):
        return gradients + wide_gradients + 2 * min(rows, 4096) * min(vocabulary, TRL_CHUNK) * 4
    return gradients + rows * width * 4 + 0.6e9


def free_bytes(device: str) -> float:
    """Bytes that are free on the device once torch has given its cache back; unlimited on a CPU, which may swap."""
    if device == "cpu":
        return float("inf")
    torch.cuda.empty_cache()
    return float(torch.cuda.mem_get_info()[0])
