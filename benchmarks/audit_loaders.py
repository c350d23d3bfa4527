"""How fast each loader reads, in response tokens per CPU second, and how much memory a large file takes.

    python benchmarks/audit_loaders.py                      # every format, about 2 million tokens each
    python benchmarks/audit_loaders.py --memory 2000        # a NeMo-RL file of 2000 MB: peak resident size

Tokens are those of responses; prompts (a fifth of each sequence here) are read as well and not counted.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import dumps
from holdfast.audit.read.reading import Reading
from holdfast.audit.read.source import find_files
from holdfast.types import Rollout

LENGTH, PROMPT, COUNT = 1000, 250, 64


def main() -> None:
    """Time every format, or watch the memory over one large file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--millions", type=float, default=2, help="response tokens per format")
    parser.add_argument(
        "--memory", type=int, metavar="MB", help="read a file of this size and give the peak resident size"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if options.memory:
            memory(Path(folder), options.memory * 1_000_000)
            return
        print(f"{'format':<16} {'bytes/token':>12} {'M tokens/s':>11} {'MB/s':>7}")
        for write in dumps.WRITERS:
            place = Path(folder) / write.__name__
            place.mkdir()
            speed(write, place, options.millions)


def rollouts(count: int) -> list[Rollout]:
    """Single-turn rollouts of LENGTH tokens with log-probabilities of 17 digits, as JSON writers print float32."""
    rng = random.Random(0)
    (pattern, *_) = dumps.sample_rollouts(count=1, turns=(1, 1))
    made = []
    for number in range(count):
        engine = tuple(float(-rng.expovariate(2)) for _ in range(LENGTH))
        fields = {
            "prompt_ids": tuple(rng.randrange(150_000) for _ in range(PROMPT)),
            "response_ids": tuple(rng.randrange(150_000) for _ in range(LENGTH)),
            "rollout_logprobs": engine,
            "trainer_logprobs": tuple(x + rng.gauss(0, 0.01) for x in engine),
            "entropy": tuple(rng.random() for _ in range(LENGTH)),
            "sequence_id": number,
        }
        constant = ("response_mask", "advantages", "turn_ids", "trust_mask", "weight_versions")
        made.append(Rollout(**{**vars(pattern), **fields, **{n: getattr(pattern, n)[:1] * LENGTH for n in constant}}))
    return made


def speed(write, folder: Path, millions: float) -> None:
    """Read the files of one format over and over until there were so many tokens; the fastest pass counts."""
    write(folder, rollouts(COUNT))
    files = find_files(folder)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    tokens, passes = 0, []
    while tokens < millions * 1e6:
        started = time.process_time()
        each = sum(chunk.token_count for file in files for chunk in file.loader.read(file.path, Reading()))
        passes.append(time.process_time() - started)
        tokens += each
    seconds = min(passes)
    print(
        f"{write.__name__:<16} {size / each:12.1f} {each / seconds / 1e6:11.2f} {size / seconds / 1e6:7.0f}",
        flush=True,
    )


def memory(folder: Path, size: int) -> None:
    """Read one file of that many bytes, a line at a time."""
    path = dumps.nemo_rl(folder, rollouts(COUNT))
    lines = path.read_bytes()
    with path.open("wb") as file:
        for _ in range(size // len(lines) + 1):
            file.write(lines)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    started, tokens = time.perf_counter(), 0
    (source,) = find_files(folder)
    for chunk in source.loader.read(path, Reading()):
        tokens += chunk.token_count
    seconds = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    result = {"file_mb": round(path.stat().st_size / 1e6), "tokens": tokens, "seconds": round(seconds, 1)}
    print(json.dumps({**result, "resident_mb_before": round(before), "resident_mb_peak": round(after)}))


if __name__ == "__main__":
    main()
