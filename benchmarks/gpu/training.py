"""Parts 3 and 5: `holdfast train`, a resume, and what an update costs, on random weights of Qwen3-0.6B's shape."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from gpu.common import Check

from holdfast.cli import dispatch
from holdfast.rollout.models import character_tokenizer

ALPHABET = "0123456789+-*/=() abcdefghijklmnopqrstuvwxyz.,?:\n"


def training(check: Check) -> None:
    """Two steps with an evaluation and checkpoints, then a third one after a resume."""
    run, settings = check.folder / "run", _settings(check, prompts=4, group=4, tokens=128 if check.cuda else 12)
    settings = f"steps = 2\n{settings}\n[evaluation]\nproblems = 8\ngreedy = false\n[checkpoint]\nevery = 1\n"
    first = _started(check, "train", settings, run)
    if first == 0:
        _command(check, "train", ["train", "--run-dir", str(run), "--resume", "--steps", "3"])
    for record in _records(run):
        kept = {name: record.get(name) for name in ("step", "time_split", "abs_log_ratio_mean")}
        check.note("train", **kept)


def update(check: Check) -> None:
    """Trained tokens a second of the update alone, without padding and with it, and the peak of the whole run."""
    sizes = {"prompts": 16, "group": 8, "tokens": 1024} if check.cuda else {"prompts": 2, "group": 2, "tokens": 12}
    for unpadded in (True, False):
        run, tokens = check.folder / f"update_{'unpadded' if unpadded else 'padded'}", 32768 if check.cuda else 64
        settings = _settings(check, **sizes, unpadded=unpadded, micro_batch_tokens=tokens)
        _started(check, "update", f"steps = 3\n{settings}\n[evaluation]\nproblems = 1\n", run, unpadded=unpadded)
        steps = [record for record in _records(run) if record.get("time_split")]
        if not steps:
            check.note("update", unpadded=unpadded, failed="no step was finished")
            continue
        best = min(steps, key=lambda record: record["time_split"]["update"] / record["tokens"])
        speed = best["tokens"] / best["time_split"]["update"]
        check.note("update", unpadded=unpadded, tokens=best["tokens"], tokens_per_second=speed)


def _settings(
    check: Check, *, prompts: int, group: int, tokens: int, unpadded: bool = True, micro_batch_tokens: int = 0
) -> str:
    batch = f"micro_batch_tokens = {micro_batch_tokens}\n" if micro_batch_tokens else ""
    return (
        f'threads = 4\n[task]\nname = "ledger"\n[model]\nsource = "{_model(check)}"\ndevice = "{check.device}"\n'
        f"autocast = {str(check.cuda).lower()}\ngradient_checkpointing = true\nunpadded = {str(unpadded).lower()}\n"
        f'[engine]\nprecision = "bfloat16"\nexact_kl = false\ntop_logprobs = 20\n[sampling]\nmax_tokens = {tokens}\n'
        f'[batch]\nprompts = {prompts}\ngroup_size = {group}\n{batch}[objective]\npreset = "trm+ppo"'
    )


def _started(check: Check, part: str, settings: str, run: Path, **tags: Any) -> int:
    shutil.rmtree(run, ignore_errors=True)
    config = check.folder / f"{run.name}.toml"
    config.write_text(settings, encoding="utf-8")
    return _command(check, part, ["train", str(config), "--run-dir", str(run)], **tags)


def _command(check: Check, part: str, arguments: list[str], **tags: Any) -> int:
    check.clear()
    start = time.monotonic()
    code = dispatch(arguments)
    name = "resume" if "--resume" in arguments else "start"
    check.note(part, command=name, exit_code=code, seconds=time.monotonic() - start, peak_gb=check.peak() / 1e9, **tags)
    return code


def _records(run: Path) -> list[dict[str, Any]]:
    path = run / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def _model(check: Check) -> Path:
    """The shape of Qwen3-0.6B with random weights, small on a CPU, and a tokenizer of characters."""
    folder = check.folder / "model"
    if (folder / "config.json").exists():
        return folder
    from transformers import Qwen3Config, Qwen3ForCausalLM

    tokenizer = character_tokenizer(ALPHABET)
    names = (
        "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads head_dim"
    )
    sizes = (151936, 1024, 3072, 28, 16, 8, 128) if check.cuda else (600, 64, 128, 2, 4, 2, 16)
    ids = {f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id") for kind in ("eos", "pad", "bos")}
    torch.manual_seed(0)
    shape: dict[str, Any] = dict(zip(names.split(), sizes, strict=True)) | ids
    Qwen3ForCausalLM(Qwen3Config(**shape, tie_word_embeddings=True)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
