"""Shards on a Ray cluster that already runs: a task each, a lost one done once more, and the sum of all."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from holdfast.audit.judge.auditor import Auditor
from holdfast.audit.shards.shard import Shard, audit_shard, dump, load
from holdfast.errors import ConfigError, DataError, HoldfastError

Progress = Callable[[int, int], None]


def connect() -> Any:
    """Ray's module, connected to the cluster of RAY_ADDRESS or of this machine.

    Raises:
        ConfigError: Ray is not installed, or no cluster is there: it is never started here.
    """
    try:
        import ray
    except ImportError:
        raise ConfigError(
            "--ray needs the package ray in this environment, and it is not installed: pip install ray, in the version "
            "of the cluster; on one machine --workers N does without"
        ) from None
    if not ray.is_initialized():
        try:
            ray.init(address="auto", logging_level=logging.ERROR, log_to_driver=False)
        except (ConnectionError, RuntimeError) as error:
            raise ConfigError(
                f"--ray found no cluster that runs ({str(error).partition(chr(10))[0]}): start one with `ray start "
                "--head`, or set RAY_ADDRESS to one that exists; on one machine --workers N does without"
            ) from None
    return ray


def processors(ray: Any) -> int:
    """CPUs of the cluster."""
    return max(1, int(ray.cluster_resources().get("CPU", 1)))


def audit_on_cluster(ray: Any, shards: Sequence[Shard], whole: Auditor, progress: Progress) -> None:
    """Audit each shard in a task of one CPU and add them to `whole` as they come; `progress` is told after each.

    Every node must see the files by the same paths and have this version of Holdfast.

    Raises:
        DataError: a shard whose worker was lost twice, by name; what a worker itself raises.
    """
    task = ray.remote(num_cpus=1, max_retries=1)(_state_of)
    running = {task.remote(shard): shard for shard in shards}
    while running:
        (ready,), _ = ray.wait([*running], num_returns=1)
        shard = running.pop(ready)
        try:
            state = ray.get(ready)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, HoldfastError):
                raise error.cause from None
            raise DataError(f"{shard} broke on the cluster: {error.cause}") from error
        except ray.exceptions.RayError as error:
            told = str(error).partition("\n")[0]
            raise DataError(f"the worker of {shard} was lost, and so was the one that did it again: {told}") from error
        whole.merge(load(state))
        progress(whole.reading.bytes_read, whole.facts.tokens)


def _state_of(shard: Shard) -> bytes:
    return dump(audit_shard(shard))
