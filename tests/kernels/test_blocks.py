"""Sizes of the GPU programs from the shared memory of the device, with the arithmetic written out."""

import pytest

from holdfast.kernels.blocks import PIECE, Blocks, sizes_for

A100, CONSUMER, H100, TURING = 166_912, 101_376, 232_448, 65_536
"""Bytes that one program may have: sm_80; sm_86, sm_89 and sm_120; sm_90; sm_75."""


@pytest.mark.parametrize(
    ("limit", "itemsize", "sums", "gradient"),
    [
        (H100, 2, (128, 256, 64, 4), (256, 128, 64, 3)),  # 4·384·64·2 = 196,608 and 3·384·64·2 = 147,456 bytes
        (A100, 2, (128, 128, 64, 3), (256, 128, 64, 3)),  # 3·256·64·2 = 98,304
        (CONSUMER, 2, (128, 128, 64, 3), (128, 128, 64, 3)),
        (H100, 4, (128, 128, 64, 3), (128, 128, 64, 3)),  # 3·256·64·4 = 196,608
        (A100, 4, (128, 128, 32, 3), (128, 128, 32, 3)),  # 3·256·32·4 = 98,304
        (CONSUMER, 4, (128, 128, 32, 3), (128, 128, 32, 3)),  # 131,072 with the depth of 64 and two of three stages
        (TURING, 2, (128, 128, 32, 3), (128, 128, 32, 3)),  # 49,152
        (TURING, 4, (128, 128, 32, 2), (128, 128, 32, 2)),  # 65,536
        (49_152, 4, (128, 128, 32, 2), (128, 128, 32, 2)),  # does not fit: the launch says so, and torch takes over
    ],
)
def test_the_largest_that_fit(limit, itemsize, sums, gradient):
    sizes = sizes_for(limit, itemsize)
    for blocks, expected in ((sizes.sums, sums), (sizes.gradient, gradient)):
        assert (blocks.rows, blocks.columns, blocks.depth, blocks.stages) == expected
    everything = (sizes.sums, sizes.rollout, sizes.logits, sizes.gradient)
    assert limit == 49_152 or all(b.shared_bytes(itemsize) <= limit for b in everything)


@pytest.mark.parametrize("limit", [A100, CONSUMER, H100, TURING])
@pytest.mark.parametrize("itemsize", [2, 4])
def test_sums_are_made_in_pieces_of_one_size(limit, itemsize):
    sizes = sizes_for(limit, itemsize)
    assert sizes.rollout.columns == sizes.logits.columns == PIECE
    assert sizes.sums.columns in (PIECE, 2 * PIECE)


def test_shared_bytes_and_bands():
    assert Blocks(128, 256, 64, 8, 4).shared_bytes(2) == 196_608  # what Triton 3.6 reports for sm_90
    # 132 at a time, 128 x 128: 12 x 11 programs; 128 x 256: 16.5 x 8, equal bytes of rows and columns.
    assert Blocks(128, 128, 64, 8, 3).band(132) == 11
    assert Blocks(128, 256, 64, 8, 4).band(132) == 8
    assert Blocks(256, 128, 64, 8, 3).band(132) == 16
    assert Blocks(128, 256, 64, 8, 4).band(1) == 1
