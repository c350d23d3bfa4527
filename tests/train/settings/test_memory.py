"""Freed memory in a process of its own, for it cannot be undone: page faults are counted, which no clock disturbs."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import resource
import torch
from holdfast.train.settings.memory import keep_freed_memory

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def step():
    torch.zeros(6_000_000).add_(1.0), [torch.zeros(2_000_000) for _ in range(8)]

kept = keep_freed_memory()
for _ in range(3):
    step()
before = faults()
for _ in range(10):
    step()
print(kept, faults() - before)
"""
PAGES = 10 * (6_000_000 + 16_000_000) * 4 // 4096  # 214,843


def run(**environment):
    names = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")
    inherited = {name: value for name, value in os.environ.items() if name not in names}
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, env=inherited | environment, capture_output=True, text=True, check=True)
    kept, faults = done.stdout.split()
    return kept == "True", int(faults)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's")
def test_a_step_gets_the_pages_of_the_step_before():
    kept, faults = run()
    # A busy kernel may take some pages away and give them back.
    assert kept and faults < PAGES / 10


@pytest.mark.parametrize(
    "environment",
    [
        {"MALLOC_MMAP_THRESHOLD_": "65536"},
        {"MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_MMAP_THRESHOLD_": "65536"},
        {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=65536"},
    ],
)
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's")
@pytest.mark.slow
def test_what_the_environment_says_stays_in_force(environment):
    kept, faults = run(**environment)
    assert not kept and faults > PAGES / 2
