"""The machine that a run computes on: which device, what it can do, and what of it lies idle."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from holdfast.errors import ConfigError
from holdfast.train.settings.config import ModelConfig, RunConfig

GPU_THREADS = 8


@dataclass(frozen=True)
class Machine:
    """What the device of a run can do: whether it is a GPU, and whether it multiplies in bfloat16.

    `threads` are those of the CPU beside it by default: all that has the size of the responses stays there.
    """

    gpu: bool
    bfloat16: bool
    threads: int = 1

    @staticmethod
    def here(settings: ModelConfig) -> Machine:
        """The one that `device_of` takes; a GPU that is asked for and missing counts as there."""
        gpu = settings.device == "cuda" or (settings.device == "auto" and torch.cuda.is_available())
        return Machine(gpu, not gpu or has_bfloat16(), min(GPU_THREADS, os.cpu_count() or 1) if gpu else 1)


def has_bfloat16() -> bool:
    """Whether the GPU has bfloat16 products of its own; emulated ones are slower than float32."""
    return not torch.cuda.is_available() or torch.cuda.is_bf16_supported(including_emulation=False)


def device_of(settings: ModelConfig) -> torch.device:
    """Where the trainer computes; "auto" takes a GPU if there is one.

    Raises:
        ConfigError: a GPU is asked for and there is none.
    """
    if settings.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f'model.device = "cuda": {_no_gpu()}; nearest valid value: "auto"')
    return torch.device(settings.device)


def engine_device(config: RunConfig) -> torch.device:
    """Where an engine of ours in a process of its own computes: `async.device`, by default beside the trainer.

    Raises:
        ConfigError: there is no such device.
    """
    wanted = config.asynchronous.device
    if wanted == "auto":
        return device_of(config.model)
    device = torch.device(wanted)
    cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.type == "cuda" and (device.index or 0) >= cards:
        seen = f"torch sees {cards} GPU{'s' if cards > 1 else ''}, cuda:0 to cuda:{cards - 1}" if cards else _no_gpu()
        raise ConfigError(f'async.device = "{wanted}": {seen}; nearest valid value: "auto"')
    return device


def check_device(config: RunConfig) -> None:
    """Whether the device is there and can compute in the dtypes that are asked of it.

    Raises:
        ConfigError: it is not, or cannot; the message names the setting to change.
    """
    device = device_of(config.model)
    if config.asynchronous.staleness:
        engine_device(config)
    if device.type != "cuda":
        return
    card, capability = torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device)
    if not has_bfloat16():
        model, engine = config.model, config.engine
        asked = [
            ("model.autocast = true", model.autocast, "false"),
            ('model.dtype = "bfloat16"', model.dtype == "bfloat16", '"float32"'),
            ('engine.precision = "bfloat16"', engine.precision == "bfloat16" and engine.kind != "server", '"float32"'),
        ]
        for setting, wanted, nearest in asked:
            if wanted:
                raise ConfigError(
                    f"{setting}: the {card} has no bfloat16, which cards have from Ampere (A100, RTX 30) on; nearest "
                    f"valid value: {nearest}"
                )
    quantization = config.engine.options.get("quantization")
    if config.engine.kind == "vllm" and quantization == "fp8" and capability < (8, 9):
        raise ConfigError(
            f'engine.options.quantization = "fp8": the {card} (compute capability {capability[0]}.{capability[1]}) has '
            "no fp8 products, which cards have from 8.9 on (Ada, Hopper); leave it out"
        )


def check_attention(settings: ModelConfig) -> None:
    """Whether the attention that is asked for can run here.

    Raises:
        ConfigError: it needs a GPU, a package, or products in bfloat16.
    """
    name = settings.attention
    if name in ("auto", "sdpa", "eager"):
        return
    if device_of(settings).type != "cuda":
        raise ConfigError(f'model.attention = "{name}" needs a GPU to train on; nearest valid value: "sdpa"')
    if name == "flex_attention":
        return
    from transformers.utils.import_utils import is_flash_attn_2_available, is_flash_attn_3_available

    there = {"flash_attention_2": is_flash_attn_2_available, "flash_attention_3": is_flash_attn_3_available}
    if not there[name]():
        package = {"flash_attention_2": "flash-attn", "flash_attention_3": "flash-attn-3"}[name]
        raise ConfigError(
            f'model.attention = "{name}" needs the package {package}, which is not installed for this Python and '
            'torch; nearest valid value: "sdpa"'
        )
    if not settings.autocast and settings.dtype != "bfloat16":
        raise ConfigError(f'model.attention = "{name}" computes in 16 bits: set model.autocast = true, or take "sdpa"')


def refuse_several_processes(file: str = "run.toml") -> None:
    """Our trainer is one process: several would each train the whole run and write into one folder.

    Raises:
        ConfigError: it was started as several (torchrun, accelerate); the message has the command to use instead.
    """
    world = os.environ.get("WORLD_SIZE", "1")
    if world.isdecimal() and int(world) > 1:
        raise ConfigError(
            f"WORLD_SIZE = {world}: our trainer is one process on one device, and {world} of them would each train "
            "the whole run and write into one folder. For several GPUs:\n"
            f"  holdfast launch {file} --backend verl --run-dir runs/several\n"
            f"  accelerate launch --num_processes {world} -m holdfast launch {file} --backend trl --run-dir "
            "runs/several\n"
            "For one, start it without torchrun or accelerate (or unset WORLD_SIZE)"
        )


def claim_local_gpu() -> None:
    """Make the GPU of this process, by LOCAL_RANK, the current one; nothing without several processes or GPUs.

    It must happen before anything is put on "cuda": the first card is everybody's default.

    Raises:
        ConfigError: there are fewer GPUs than processes on this node.
    """
    rank = os.environ.get("LOCAL_RANK")
    if rank is None or not torch.cuda.is_available():
        return
    cards = torch.cuda.device_count()
    if int(rank) >= cards:
        raise ConfigError(
            f"LOCAL_RANK = {rank}, but torch sees {cards} GPU{'s' if cards > 1 else ''} on this node: start at most "
            f"{cards} processes here (--num_processes {cards}), or make more cards visible with CUDA_VISIBLE_DEVICES"
        )
    torch.cuda.set_device(int(rank))


def device_notes(config: RunConfig) -> Iterator[str]:
    """What a person should know of the device before the first step."""
    if device_of(config.model).type != "cuda":
        return
    cards = torch.cuda.device_count()
    elsewhere = config.asynchronous.staleness and engine_device(config).index
    used = 2 if elsewhere else 1
    if cards > used:
        yield (
            f"{cards} GPUs are visible and this run uses {used}: several are used by holdfast launch --backend verl or "
            "trl; CUDA_VISIBLE_DEVICES chooses which one this run takes"
        )
    plain = config.model.dtype == "float32" and not config.model.autocast
    if plain and has_bfloat16() and torch.get_float32_matmul_precision() == "highest":
        yield (
            "products in float32 without TF32 leave the GPU's tensor cores idle: model.autocast = true multiplies in "
            "bfloat16 over float32 weights, several times as fast"
        )


def _no_gpu() -> str:
    built = "" if torch.version.cuda or getattr(torch.version, "hip", None) else ", for it was built for CPUs only"
    return f"torch sees no GPU here{built}"
