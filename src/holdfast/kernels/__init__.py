"""The language-model head: hidden states to per-token statistics without an [N, V] tensor."""

from holdfast.kernels.chunked import Chunked
from holdfast.kernels.dispatch import Choice, choose, lm_head_stats
from holdfast.kernels.head import Head, HeadStats, VocabShard, logit_form
from holdfast.kernels.separable import lm_head_loss
from holdfast.kernels.tiles import Tiling

__all__ = [
    "Choice",
    "Chunked",
    "Head",
    "HeadStats",
    "Tiling",
    "VocabShard",
    "choose",
    "lm_head_loss",
    "lm_head_stats",
    "logit_form",
]
