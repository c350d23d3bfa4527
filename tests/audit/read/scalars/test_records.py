"""Binary logs of numbers: values come back, and damage ends the reading where it is and is said."""

import pytest

from holdfast.audit.read.reading import Reading
from holdfast.audit.read.scalars.records import event_rows, is_events, masked_crc, wandb_rows

ROWS = [(step, {"reward": step / 8, "train/loss": -0.5}) for step in range(1, 6)]


def test_crc_is_castagnolis():
    """RFC 3720, B.4: 32 bytes of zeros have CRC-32C 0x8a9136aa; masked: rotated right by 15, plus 0xa282ead8."""
    crc = 0x8A9136AA
    assert masked_crc(bytes(32)) == ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def test_events_come_back(tmp_path, write_events):
    path = write_events(tmp_path / "events.out.tfevents.1", ROWS)
    assert is_events(path.read_bytes()[:64])
    reading = Reading()
    rows = list(event_rows(path, reading))
    assert [(row["step"], row["reward"]) for row in rows if "reward" in row] == [(s, s / 8) for s, _ in ROWS]
    assert reading.bytes_read == path.stat().st_size
    assert not reading.rejected


@pytest.mark.parametrize("cut", [1, 5, 13, 40])
def test_an_event_file_cut_off_is_read_up_to_the_cut(tmp_path, write_events, cut):
    path = write_events(tmp_path / "events.out.tfevents.1", ROWS)
    path.write_bytes(path.read_bytes()[:-cut])
    reading = Reading()
    assert len(list(event_rows(path, reading))) == 9
    assert reading.rejected == {"cut off in mid-record": 1}
    assert "read up to there" in reading.examples[0].reason


def test_a_flipped_bit_is_found(tmp_path, write_events):
    path = write_events(tmp_path / "events.out.tfevents.1", ROWS)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(bytes(data))
    reading = Reading()
    assert len(list(event_rows(path, reading))) < 10
    assert set(reading.rejected) <= {"wrong checksum", "cut off in mid-record"}
    assert reading.rejected


def test_wandb_comes_back_over_blocks(tmp_path, write_wandb):
    """A record of 40,000 bytes does not fit a block of 32,768."""
    rows = [(s, {"reward": s / 8, "text": "x" * 40_000}) for s in range(20)]
    path = write_wandb(tmp_path / "run-a.wandb", rows)
    reading = Reading()
    assert [(row["_step"], row["reward"]) for row in wandb_rows(path, reading)] == [(s, s / 8) for s in range(20)]
    assert not reading.rejected


def test_a_wandb_file_cut_off_is_read_up_to_the_cut(tmp_path, write_wandb):
    path = write_wandb(tmp_path / "run-a.wandb", ROWS)
    path.write_bytes(path.read_bytes()[:-3])
    reading = Reading()
    assert len(list(wandb_rows(path, reading))) == 4
    assert reading.rejected == {"cut off in mid-record": 1}
