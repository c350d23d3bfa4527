"""The first thing to run on a GPU: what is right, what is fast, in order of value, within a budget of seconds.

    timeout 520 python benchmarks/gpu_check.py --budget 460 --page docs/gpu.md
    DEVICE=cpu python benchmarks/gpu_check.py          # a dry run with small sizes

Parts: kernels (bfloat16, float16, float32 against float64), presets (equal to the CPU's, no synchronisation), train
(`holdfast train` and a resume, random weights of Qwen3-0.6B's shape), head (its speed beside its GEMMs and peers) and
update (tokens a second, peak memory). Each is guarded: what it raises is a finding, and it ends with the budget. Every
finding is a line of JSON, printed and appended to $OUT/results.jsonl (default: gpu_check_out) as it comes. The page is
written for a GPU only. The exit code is 1 where a part failed.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
from importlib.metadata import version
from pathlib import Path

import torch
from gpu.common import Check
from gpu.head import head
from gpu.kernels import kernels
from gpu.page import page
from gpu.presets import presets
from gpu.training import training, update

PARTS = {"kernels": kernels, "presets": presets, "train": training, "head": head, "update": update}


def machine(check: Check) -> None:
    """What the figures belong to."""
    names = ("triton", "transformers", "trl", "liger_kernel")
    versions = {name: version(name.replace("_", "-")) for name in names if importlib.util.find_spec(name)}
    device = torch.cuda.get_device_name() if check.cuda else "CPU (dry run)"
    memory = torch.cuda.get_device_properties(0).total_memory / 1e9 if check.cuda else 0.0
    check.note("machine", device=device, memory_gb=memory, torch=str(torch.__version__), versions=versions)


def is_failure(row: dict[str, object]) -> bool:
    """Whether a finding is one that someone has to look at."""
    return bool("failed" in row or row.get("bad") or row.get("exit_code") or row.get("row_alone_equal") is False)


def main() -> None:
    """Parts in order, then the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=float, default=460.0, help="seconds for all parts")
    parser.add_argument("--only", default=",".join(PARTS), help="parts, separated by commas")
    parser.add_argument("--page", type=Path, help="Markdown page to write, on a GPU")
    arguments = parser.parse_args()
    parts = arguments.only.split(",")
    if unknown := [part for part in parts if part not in PARTS]:
        parser.error(f"unknown parts {', '.join(unknown)}: allowed are {', '.join(PARTS)}")
    device = os.environ.get("DEVICE", "cuda")
    if device == "cuda" and not torch.cuda.is_available():
        parser.error("no GPU is visible to torch; DEVICE=cpu makes a dry run with small sizes")
    folder = Path(os.environ.get("OUT", "gpu_check_out")).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.jsonl").unlink(missing_ok=True)
    check = Check(device, arguments.budget, folder)
    check.guarded("machine", machine)
    for part in parts:
        check.guarded(part, PARTS[part])
    if arguments.page is not None and check.cuda:
        arguments.page.write_text(page(check.rows), encoding="utf-8")
    (folder / "page.md").write_text(page(check.rows), encoding="utf-8")
    raise SystemExit(1 if any(is_failure(row) for row in check.rows) else 0)


if __name__ == "__main__":
    main()
