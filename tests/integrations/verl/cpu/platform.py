"""A verl platform without an accelerator: Ray's logical "GPU" is one CPU process, collectives run over gloo."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
import verl.utils.distributed as distributed
from verl.plugin.platform.platform_base import PlatformBase
from verl.plugin.platform.platform_manager import PlatformRegistry


def _nothing(*args: Any, **options: Any) -> None:
    """What an accelerator would do."""


def _zero(*args: Any, **options: Any) -> int:
    return 0


DEVICE = SimpleNamespace(
    **{name: getattr(torch.cpu, name) for name in dir(torch.cpu) if not name.startswith("__")}
    | dict.fromkeys(("empty_cache", "ipc_collect", "reset_peak_memory_stats", "synchronize", "set_device"), _nothing)
    | dict.fromkeys(("manual_seed", "manual_seed_all", "set_rng_state"), _nothing)
    | dict.fromkeys(("max_memory_allocated", "max_memory_reserved", "memory_allocated", "memory_reserved"), _zero)
    | {
        "mem_get_info": lambda *args: (1 << 34, 1 << 34),
        "is_available": lambda: True,
        "current_device": lambda: 0,
        "device_count": lambda: 1,
        "get_rng_state": lambda *args: torch.get_rng_state(),
        "get_device_name": lambda *args: "cpu",
    }
)


@PlatformRegistry.register(platform="cpu")
class CpuPlatform(PlatformBase):
    """Chosen by VERL_PLATFORM=cpu only, never detected."""

    device_name = property(lambda self: "cpu")
    vendor_name = property(lambda self: "cpu")
    device_module = property(lambda self: DEVICE)

    def is_available(self) -> bool:
        return True

    def is_platform_available(self, use_smi_check: bool = False) -> bool:
        return False

    def current_device(self) -> torch.device:
        return torch.device("cpu")

    def device_count(self) -> int:
        return 1

    def communication_backend_name(self) -> str:
        return "gloo"

    def visible_devices_envvar(self) -> str:
        return "CUDA_VISIBLE_DEVICES"

    def ray_resource_name(self) -> str:
        return "GPU"

    def ray_resource_options(self, count: int) -> dict[str, int]:
        return {"num_gpus": count}

    def ray_noset_envvars(self) -> list[str]:
        return []

    def is_ipc_supported(self) -> bool:
        return False

    def get_device_capability(self, index: int = 0) -> tuple[None, None]:
        return (None, None)

    @contextmanager
    def nvtx_range(self, message: str) -> Iterator[None]:
        yield

    set_device = synchronize = manual_seed = manual_seed_all = set_allocator_settings = empty_cache = _nothing
    get_collective_module = profiler_start = profiler_stop = cudart = _nothing


def _over_gloo(timeout_second: float | None = None, backend: str | None = None) -> None:
    """verl names the backend "cpu:gloo,cpu:gloo" here, which torch refuses."""
    _initialize(timeout_second=timeout_second, backend=backend or "gloo")


if os.environ.get("VERL_PLATFORM") == "cpu":
    _initialize = distributed.initialize_global_process_group_ray
    distributed.initialize_global_process_group_ray = _over_gloo
