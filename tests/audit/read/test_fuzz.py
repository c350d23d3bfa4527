"""Mutated records through every loader: nothing is raised but DataError, every record is kept or counted, none lost.

python tests/audit/read/test_fuzz.py 100000     # so many mutated records instead of the few of the test suite
"""

from __future__ import annotations

import json
import pickle
import random
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))

import dumps
from holdfast.audit.measure.view import View
from holdfast.audit.read.loaders import LOADERS, Loader, nemo_rl, open_instruct, prime_rl_tokens, slime
from holdfast.audit.read.loaders import miles as miles_loader
from holdfast.audit.read.loaders import traces as traces_loader
from holdfast.audit.read.loaders.answers import servers
from holdfast.audit.read.loaders.generic.sources import generic_loader
from holdfast.audit.read.reading import Reading
from holdfast.errors import DataError
from mutations import mutated_bytes

RECORDS = 2000


def padded(folder: Path, rollouts: Any) -> Path:
    """A batch of padded tensors under verl's names."""
    columns = {"prompts": "prompt_ids", "responses": "response_ids", "response_mask": "response_mask"}
    columns |= {"rollout_log_probs": "rollout_logprobs", "old_log_probs": "trainer_logprobs"}
    batch: dict[str, Any] = {}
    for theirs, ours in columns.items():
        rows = [torch.tensor(getattr(r, ours)) for r in rollouts]
        batch[theirs] = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    torch.save(batch | {"uid": ["a"] * len(rollouts), "reward": torch.ones(len(rollouts))}, folder / "batch.pt")
    return folder / "batch.pt"


LINES = (
    (nemo_rl.LOADER, dumps.nemo_rl),
    (prime_rl_tokens.LOADER, dumps.prime_rl_tokens),
    (traces_loader.LOADER, dumps.traces),
    (open_instruct.LOADER, dumps.open_instruct),
    (servers.LOADER, dumps.chat),
    (servers.SGLANG, dumps.sglang),
    (servers.GYM, dumps.nemo_gym),
    (servers.LOADER, dumps.responses_api),
    (generic_loader({}), dumps.generic),
)
TENSORS = (
    (slime.LOADER, dumps.slime_rollout),
    (slime.LOADER, dumps.slime_train),
    (miles_loader.LOADER, dumps.miles_train),
    (generic_loader({}), padded),
)
NAN, INFINITY = float("nan"), float("inf")
STRANGE: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, -(2**63), 10**400, 0.5, -0.0, 1e39, -1e308),
    *(NAN, INFINITY, -INFINITY, "", "1", "<script>", "\ud800", "\x00", [], [[]], [None], {}, {"": None}),
    *([1.5], ["a"], [2**40], [True], [{}], {"a": 1}, {"content": []}, {"id": 3}, {"work": []}),
)


def mutated_value(value: Any, rng: random.Random, depth: int = 0) -> Any:
    """The same structure with one place in it changed: another value, a key dropped, a list cut or lengthened."""
    if isinstance(value, dict) and value and (rng.random() < 0.9 or depth == 0):
        key = rng.choice(sorted(value))
        if rng.random() < 0.1:
            return {k: v for k, v in value.items() if k != key}
        return {**value, key: mutated_value(value[key], rng, depth + 1)}
    if isinstance(value, (list, tuple)) and value and rng.random() < 0.8:
        at = rng.randrange(len(value))
        action = rng.randrange(4)
        if action == 0:
            return [*value[:at]]
        if action == 1:
            return [*value, value[at]]
        return [*value[:at], mutated_value(value[at], rng, depth + 1), *value[at + 1 :]]
    if isinstance(value, torch.Tensor) and _usual(value) and rng.random() < 0.5:
        return rng.choice(
            (
                value[:-1],
                value[None],
                value.double(),
                value.bool(),
                value.to(torch.bfloat16),
                value.long(),
                value.to_sparse(),
                value.new_zeros(1).expand(1 << 40),
                -value.float(),
            )
        )
    return rng.choice(STRANGE)


def _usual(value: torch.Tensor) -> bool:
    """Not changed already into one that has no slices, or room for none."""
    return value.layout == torch.strided and value.numel() < 1 << 20


def drain(loader: Loader, path: Path, reading: Reading) -> int:
    """Read a file as the audit does, and everything the audit asks of a chunk; how many rollouts it gave."""
    count = 0
    try:
        for chunk in loader.read(path, reading):
            view = View(chunk)
            assert len(view.fold) == len(view.step) == len(chunk)
            assert len(view.log_ratio) == len(view.position) == chunk.token_count
            for name, column in chunk.tokens.items():
                assert len(column) == chunk.token_count, name
            for index in range(len(chunk)):
                rollout = chunk.rollout(index)
                assert len(rollout.response_ids) == chunk.offsets[index + 1] - chunk.offsets[index]
            count += len(chunk)
    except DataError as error:
        reading.reject(path, 0, "unreadable file", str(error))
    return count


def fuzz_lines(loader: Loader, write: Any, records: int, seed: int, folder: Path) -> Counter[str]:
    """Good and mutated lines alternate; every good one must come back, and every other be kept or counted."""
    rng = random.Random(seed)
    path = write(folder, dumps.sample_rollouts(seed, count=8, largest=6))
    lines = path.read_bytes().splitlines()
    found: Counter[str] = Counter()
    while records > 0:
        batch = min(records, 500)
        bad = []
        for _ in range(batch):
            line = rng.choice(lines)
            if rng.random() < 0.5:
                bad.append(mutated_bytes(line, rng))
            else:
                bad.append(json.dumps(mutated_value(json.loads(line), rng)).encode())
        path.write_bytes(b"".join(line + b"\n" + lines[i % 8] + b"\n" for i, line in enumerate(bad)))
        reading = Reading()
        kept = drain(loader, path, reading)
        assert kept >= batch, f"{batch - kept} good records were lost"
        assert kept + reading.rejected.total() >= 2 * batch - sum(not line.strip() for line in bad) - _silent(bad)
        assert reading.bytes_read == path.stat().st_size
        found += reading.rejected
        found["kept"] += kept - batch
        records -= batch
    return found


def _silent(lines: list[bytes]) -> int:
    """Records that rightly give no rollout: a trace of another agent, or without any sampled token."""
    return sum(b'"traces"' in line or b'"nodes"' in line or b'"agent"' in line for line in lines)


def fuzz_tensors(loader: Loader, write: Any, records: int, seed: int, folder: Path) -> Counter[str]:
    """Mutated samples inside well-formed files, and well-formed samples inside mutated files."""
    rng = random.Random(seed)
    (folder / "d").mkdir()
    path = write(folder / "d", dumps.sample_rollouts(seed, count=8, largest=6))
    original, raw = torch.load(path, weights_only=True), path.read_bytes()
    found: Counter[str] = Counter()
    while records > 0:
        reading = Reading()
        kind = rng.random()
        if kind < 0.1:
            path.write_bytes(mutated_bytes(raw, rng))
        else:
            torch.save(mutated_value(original, rng) if kind < 0.2 else _mutated_inside(original, rng), path)
        kept = drain(loader, path, reading)
        found += reading.rejected
        found["kept"] += kept
        records -= 8
    return found


def _mutated_inside(payload: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """Eight changes: each in one sample of a list of samples, or in one column of a rank's data."""
    payload = dict(payload)
    for _ in range(8):
        if "samples" not in payload and "rollout_data" not in payload:
            payload = mutated_value(payload, rng)
        elif "samples" in payload:
            samples = list(payload["samples"])
            at = rng.randrange(len(samples))
            samples[at] = mutated_value(samples[at], rng)
            payload["samples"] = [sample for sample in samples if isinstance(sample, dict)]
        else:
            name = rng.choice(sorted(payload["rollout_data"]))
            payload["rollout_data"] = {
                **payload["rollout_data"],
                name: _mutated_column(payload["rollout_data"][name], rng),
            }
    return payload


def _mutated_column(column: Any, rng: random.Random) -> Any:
    if not isinstance(column, list) or not column or rng.random() < 0.1:
        return mutated_value(column, rng, 1)
    at = rng.randrange(len(column))
    return [*column[:at], mutated_value(column[at], rng, 1), *column[at + 1 :]]


@pytest.mark.parametrize(("loader", "write"), LINES, ids=lambda x: getattr(x, "__name__", ""))
def test_mutated_lines(tmp_path, loader, write):
    found = fuzz_lines(loader, write, RECORDS // len(LINES), 0, tmp_path)
    assert found["kept"] > 0
    assert len(found) > 3


@pytest.mark.parametrize(("loader", "write"), TENSORS, ids=lambda x: getattr(x, "__name__", ""))
def test_mutated_torch_files(tmp_path, loader, write):
    found = fuzz_tensors(loader, write, 400, 0, tmp_path)
    assert found["kept"] > 0
    assert len(found) > 3


def test_every_loader_survives_every_file(tmp_path):
    """A loader that is given another's file, or a random one, says so."""
    paths = [write(tmp_path, dumps.sample_rollouts(count=2)) for write in dumps.WRITERS]
    paths += [tmp_path / name for name in ("empty.bin", "random.bin", "pickle.pkl")]
    paths[-3].write_bytes(b"")
    paths[-2].write_bytes(random.Random(0).randbytes(4096))
    paths[-1].write_bytes(pickle.dumps({"a": 1}))
    for loader in LOADERS:
        for path in paths:
            loader.matches(path, path.read_bytes()[:65536])
            drain(loader, path, Reading(allow_pickle=True))


def main() -> None:
    """Fuzz with the number of records given, shared among the loaders; print what became of them."""
    records = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    total = 0
    for kind, cases in ((fuzz_lines, LINES), (fuzz_tensors, TENSORS)):
        share = records * 9 // 10 // len(LINES) if kind is fuzz_lines else records // 10 // len(TENSORS)
        for loader, write in cases:
            with tempfile.TemporaryDirectory() as folder:
                found = kind(loader, write, share, 1, Path(folder))
            total += share
            print(
                f"{loader.name} ({write.__name__}): {share:,} mutated records; {dict(found.most_common())}", flush=True
            )
    print(f"{total:,} mutated records, nothing raised, no good record lost")


if __name__ == "__main__":
    main()
