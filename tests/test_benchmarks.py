"""What the benchmarks decide without a GPU: who fits in memory, and the page of findings."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from gpu.page import page
from head_memory import needed_bytes

A = (32768, 4096, 151936, 2)
H100, H200 = 80e9, 139 * 2**30


def test_naive_logits_do_not_fit_an_h100():
    # 22 bytes for each of 32768 x 151936 logits, and gradients of (32768 + 151936) x 4096 in 2 bytes.
    assert needed_bytes("naive torch", *A) == 109_530_054_656 + 1_513_095_168
    assert H100 < needed_bytes("naive torch", *A) < H200


@pytest.mark.parametrize("name", ["three GEMMs", "one GEMM", "forward", "two-pass", "separable", "TRL chunked_logprob"])
def test_everything_else_fits_an_h100(name):
    assert needed_bytes(name, *A) < 10e9


def test_page():
    rows = [
        {"part": "machine", "t": 0.1, "device": "H200"},
        {"part": "head", "t": 2.0, "shape": "A", "name": "4 GEMMs", "ms": 206.512345, "ratio": 1.0},
        {"part": "head", "t": 3.0, "shape": "A", "name": "naive torch", "not_run": "needs about 111 GB"},
        {"part": "presets", "t": 4.0, "count": 43, "bad": []},
    ]
    text = page(rows)
    assert text.startswith("# Holdfast on H200\n")
    assert "| A | 4 GEMMs | 206.5 | 1 |" in text
    assert "| A | naive torch | needs about 111 GB |" in text
    assert "| 43 | none |" in text
    assert "## Updates\n\nNot run.\n" in text
