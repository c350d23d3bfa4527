"""pass@k: how often at least one of k responses to a problem is right, estimated from n ≥ k of them."""

from __future__ import annotations

from collections.abc import Sequence
from math import comb
from statistics import fmean


def pass_at_k(samples: int, right: int, k: int) -> float:
    """1 − C(n − c, k) / C(n, k) for n `samples` of which c are `right`: without bias for 1 − (1 − p)^k.

    Chen et al. 2021, Evaluating Large Language Models Trained on Code (arXiv 2107.03374), equation 1; computed with
    whole numbers, so exact before the division.

    Raises:
        ValueError: not 0 ≤ c ≤ n, or not 1 ≤ k ≤ n.
    """
    if not 0 <= right <= samples:
        raise ValueError(f"right = {right}: must be between 0 and samples = {samples}")
    if not 1 <= k <= samples:
        raise ValueError(f"k = {k}: must be between 1 and samples = {samples}; draw at least k samples")
    return 1.0 - comb(samples - right, k) / comb(samples, k)


def mean_pass_at_k(right: Sequence[int], samples: int, k: int) -> float:
    """The mean of `pass_at_k` over problems with this many right responses each."""
    return fmean(pass_at_k(samples, count, k) for count in right)


def powers_of_two(samples: int) -> list[int]:
    """The k > 1 to report: 2, 4, 8, ... and `samples` itself.

    >>> powers_of_two(1), powers_of_two(2), powers_of_two(6)
    ([], [2], [2, 4, 6])
    """
    return sorted({2**e for e in range(1, samples.bit_length()) if 2**e <= samples} | ({samples} - {1}))
