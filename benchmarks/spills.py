"""Registers, spills and shared memory of the LM head's Triton programs, by the ptxas that Triton ships; needs no GPU.

    python benchmarks/spills.py [--arch 80 90] [--width 4096] [--dtype bf16]

Prints a Markdown table: each program with the blocks that a device of this architecture gets. Spills are ptxas's
"bytes spill stores", counted over the program's text, not over its loops.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

from holdfast.kernels import triton_kernels as programs
from holdfast.kernels.blocks import Blocks, sizes_for
from holdfast.kernels.triton import FIELDS

SHARED = {80: 166_912, 86: 101_376, 89: 101_376, 90: 232_448, 100: 232_448, 120: 101_376}
"""Bytes of shared memory that one program may have, by architecture (CUDA programming guide, compute capabilities)."""
PROCESSORS = 132
BYTES = {"bf16": 2, "fp16": 2, "fp32": 4}


class Job(NamedTuple):
    """One program to compile."""

    name: str
    program: Any
    blocks: Blocks
    constants: dict[str, Any]


def jobs(arch: int, dtype: str, width: int) -> Iterator[Job]:
    """Every program of the head with the sizes that this architecture gets."""
    sizes = sizes_for(SHARED[arch], BYTES[dtype])
    base = {"HAS_BIAS": False, "HAS_CAP": False, "HAS_TEMPERATURE": False, "WIDTH": width}
    for kind, (name, blocks) in enumerate(
        [("sums", sizes.sums), ("sums, rollout head", sizes.rollout), ("sums, rollout logits", sizes.logits)]
    ):
        for squares in (False, True):
            flags = {"R_HAS_BIAS": False, "R_HAS_CAP": False, "FIELDS": FIELDS, "R_WIDTH": width, "R_KIND": kind}
            flags |= {"SQUARES": squares, "HALVED": blocks.columns == 2 * sizes.rollout.columns}
            flags["TILES"] = 16 * sizes.rollout.columns // blocks.columns
            yield Job(name + (" with Σp²" if squares else ""), programs.sums_kernel, blocks, base | flags)
    yield Job("dL/dlogits", programs.dlogits_kernel, sizes.gradient, base | {"HAS_SLOPE": True})


def build(job: Job, arch: int, dtype: str) -> tuple[int, int, int]:
    """(registers, bytes spilled, bytes of shared memory)."""
    blocks, numbers = job.blocks, f"*{dtype}"
    sizes = {"ROWS": blocks.rows, "COLUMNS": blocks.columns, "DEPTH": blocks.depth, "BAND": blocks.band(PROCESSORS)}
    constants = job.constants | sizes
    kinds = dict.fromkeys(("temperatures", "reference", "level", "slope", "token"), "*fp32") | {"targets": "*i64"}
    kinds |= dict.fromkeys(("hidden", "weight", "bias", "r_hidden", "r_weight", "r_bias", "r_logits"), numbers)
    kinds |= dict.fromkeys(("scale", "softcap", "r_scale", "r_softcap"), "fp32")
    kinds["out"] = numbers if job.program is programs.dlogits_kernel else "*fp32"
    kinds |= dict.fromkeys(constants, "constexpr")
    signature = {argument: kinds.get(argument, "i32") for argument in job.program.arg_names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, kind in enumerate(signature.values()) if kind[0] == "*"}
    options = {"num_warps": blocks.warps, "num_stages": blocks.stages}
    source = ASTSource(job.program, signature, constants, aligned)
    built = compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    said = assemble(built.asm["ptx"], arch)
    spilled, registers = re.search(r"(\d+) bytes spill stores", said), re.search(r"Used (\d+) registers", said)
    if spilled is None or registers is None:
        raise SystemExit(f"ptxas said nothing of registers and spills: {said}")
    return int(registers[1]), int(spilled[1]), built.metadata.shared


def assemble(ptx: str, arch: int) -> str:
    """What ptxas says of a program."""
    tool = (
        Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / ("ptxas-blackwell" if arch >= 100 else "ptxas")
    )
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        target = f"-arch=sm_{arch}{'a' if arch >= 90 else ''}"
        command = [str(tool), target, "-v", file.name, "-o", "/dev/null"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stderr


def main() -> None:
    """One table for all architectures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", type=int, nargs="+", default=[90, 80], choices=sorted(SHARED))
    parser.add_argument("--width", type=int, default=4096, help="d, the width of the hidden states")
    parser.add_argument("--dtype", default="bf16", choices=sorted(BYTES))
    arguments = parser.parse_args()
    print(f"Triton {triton.__version__}, {arguments.dtype}, d = {arguments.width}\n")
    print("| architecture | program | block, stages | registers | bytes spilled | shared memory, KB |\n|-|-|-|-|-|-|")
    for arch in arguments.arch:
        for job in jobs(arch, arguments.dtype, arguments.width):
            registers, spilled, shared = build(job, arch, arguments.dtype)
            b = job.blocks
            assert shared <= b.shared_bytes(BYTES[arguments.dtype]), "the arithmetic of the sizes is too low"
            size = f"{b.rows} x {b.columns} x {b.depth}, {b.stages}"
            print(f"| sm_{arch} | {job.name} | {size} | {registers} | {spilled} | {shared / 1000:.0f} |", flush=True)


if __name__ == "__main__":
    main()
