"""Records as tensorboard 2.21.0 and wandb 0.31.0 write them, byte for byte; their readers must give the values back."""

import math
import struct

import pytest

from holdfast.audit.read.reading import Reading
from holdfast.audit.read.scalars.records import event_rows, is_events, wandb_rows

EVENTS = """
1800000000000000a37f4b22090000000065cdcd411a0d627261696e2e4576656e743a32f4eb195e
220000000000000078113dfd090000000065cdcd4110012a150a130a0c747261696e2f72657761726415cdcccc3d2ec0679f
36000000000000004f578cef090000000065cdcd4110022a290a270a0c747261696e2f726577617264420a080112002a04cdcccc3d4a0b0a090a07
7363616c6172733b2527ab
3a000000000000001295eae2090000000065cdcd4110032a2d0a2b0a0c747261696e2f726577617264420e0802120032089a9999999999b93f4a0b
0a090a077363616c61727341bf23a6
"""
"""A version; train/reward .1 as simple_value, as a float tensor, as a double tensor with its plug-in's metadata."""
RUN = """
3a572642e1be00
dc03b0017a0001080812760a1812085f72756e74696d6582010b342e3434373230323931320a0b12055f73746570820101310a14120c747261696e
2f726577617264820103302e310a0c12046c6f73738201034e614e0a25120a5f74696d657374616d70820116312e37393538313539353936383731
363936652b303912020801
bb9a6dfb7f0001080d127b0a25120a5f74696d657374616d70820116312e37393538313539353936393032323038652b30390a1f12085f72756e74
696d65820112342e343531363935333931393939393939350a0b12055f73746570820101320a14120c747261696e2f726577617264820103302e32
0a0a1201611201628201013312020802
"""
"""The header of a run and its history of two steps: reward .1 and a loss of NaN; reward .2 and {"a": {"b": 3}}."""


def test_tensorboard(tmp_path):
    path = tmp_path / "events.out.tfevents.1"
    path.write_bytes(bytes.fromhex(EVENTS))
    assert is_events(path.read_bytes())
    reading = Reading()
    single = struct.unpack("<f", struct.pack("<f", 0.1))[0]
    assert [(row["step"], row["train/reward"]) for row in event_rows(path, reading)] == [
        (1.0, single),
        (2.0, single),
        (3.0, 0.1),
    ]
    assert not reading.rejected


def test_wandb(tmp_path):
    path = tmp_path / "run-a.wandb"
    path.write_bytes(bytes.fromhex(RUN))
    reading = Reading()
    first, second = wandb_rows(path, reading)
    assert (first["_step"], first["train/reward"]) == (1.0, 0.1)
    assert math.isnan(first["loss"])
    assert (second["_step"], second["train/reward"], second["a/b"]) == (2.0, 0.2, 3.0)
    assert not reading.rejected


@pytest.mark.parametrize("place", [-1, -40, 60])
def test_a_flipped_bit_of_a_real_run_is_found(tmp_path, place):
    data = bytearray(bytes.fromhex(RUN))
    data[place] ^= 1
    path = tmp_path / "run-a.wandb"
    path.write_bytes(bytes(data))
    reading = Reading()
    assert len(list(wandb_rows(path, reading))) < 2
    assert sum(reading.rejected.values()) == 1
