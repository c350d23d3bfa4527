"""Checks every jaxtyping shape at run time, keeps torch single-threaded and the hub out of reach."""

import os
import random
import zlib

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from jaxtyping import config, install_import_hook

install_import_hook("holdfast", "beartype.beartype")

import beartype._check.code.codemain as beartype_code  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(1)

# Checks look at one random item of a list: in a thread of its own that would move the generator hypothesis guards.
beartype_code.getrandbits = random.Random(0).getrandbits

_CHECKED = set()


@pytest.fixture
def fake_gpu(monkeypatch):
    """Make torch see GPUs that are not there: (count, bfloat16, capability) -> the numbers given to set_device."""

    def see(count=1, *, bfloat16=True, capability=(9, 0)):
        chosen = []
        facts = {
            "is_available": lambda: count > 0,
            "device_count": lambda: count,
            "is_bf16_supported": lambda including_emulation=True: bfloat16 or including_emulation,
            "get_device_name": lambda device=None: "Testcard",
            "get_device_capability": lambda device=None: capability,
            "set_device": chosen.append,
        }
        for name, value in facts.items():
            monkeypatch.setattr(torch.cuda, name, value)
        return chosen

    return see


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """Check shapes in the first case of each test and in a quarter of the others: checks take twice the test's time."""
    kind = (item.path, getattr(item, "originalname", item.name))
    config.update("jaxtyping_disable", kind in _CHECKED and zlib.crc32(item.nodeid.encode()) % 4 != 0)
    _CHECKED.add(kind)
    return (yield)
