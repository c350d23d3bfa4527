"""Checkpoints: a Hugging Face model folder, the optimiser, the engine's snapshots and the random state.

Everything else that a run draws comes from its seed and the step number, so that a resumed run repeats the
uninterrupted one bit for bit.
"""

from __future__ import annotations

import json
import pickle
import re
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from holdfast.errors import DataError
from holdfast.rollout.models import whole_model
from holdfast.train.keep.files import remove_beginning, remove_folder, replace_folder, write_text
from holdfast.train.keep.intact import damage, seal


def save_checkpoint(
    root: Path, step: int, keep: int, *, model: Any, tokenizer: Any, state: dict[str, Any], best: int | None = None
) -> Path:
    """Write `root/step_XXXX` in one move and delete all but the newest `keep` and that of step `best`.

    Raises:
        DataError: it cannot be written; what was there before stays.
    """
    target = root / _name(step)
    temporary = root / f".{target.name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        save_model(temporary / "model", model, tokenizer)
        torch.save(_interned(state | {"step": step, "torch_rng": torch.get_rng_state()}), temporary / "state.pt")
        seal(temporary)
        replace_folder(temporary, target)
    except (OSError, RuntimeError, SafetensorError) as error:  # a full disk is all of these
        shutil.rmtree(temporary, ignore_errors=True)
        told = str(error).partition("\n")[0]
        raise DataError(
            f"checkpoint {target} could not be written ({told}); earlier ones are untouched: make room, then resume"
        ) from error
    for old in _all(root)[:-keep]:
        if _step(old) != best:
            remove_folder(old)
    return target


def _interned(state: Any) -> Any:
    """The same with one object for equal keys: pickle writes each object once, and a resumed run has other objects."""
    if type(state) is dict:
        return {sys.intern(key) if type(key) is str else key: _interned(value) for key, value in state.items()}
    return [_interned(value) for value in state] if type(state) is list else state


def tidy(root: Path) -> None:
    """Remove what a kill left of checkpoints and of the best one's name that were being written or deleted."""
    for path in root.glob(".step_*"):
        if path.suffix in (".tmp", ".old") and _PATTERN.fullmatch(path.stem.removeprefix(".")):
            shutil.rmtree(path, ignore_errors=True)
    remove_beginning(root / _BEST)


def best_checkpoint(root: Path, records: Sequence[Mapping[str, Any]], saving: int | None = None) -> int | None:
    """The step with the highest held-out reward (the first of equals) whose checkpoint is there or is `saving` now."""
    there = {_step(path) for path in _all(root)} | {saving}
    judged = [r for r in records if "eval_reward" in r and r["step"] > 0 and r["step"] in there]
    return max(judged, key=lambda record: record["eval_reward"])["step"] if judged else None


def mark_best(root: Path, records: Sequence[Mapping[str, Any]], step: int) -> None:
    """Say in `root/best.json` which checkpoint it is."""
    reward = next(record["eval_reward"] for record in records if record["step"] == step)
    marked = {"step": step, "eval_reward": reward, "model": f"{_name(step)}/model"}
    write_text(root / _BEST, json.dumps(marked, indent=2) + "\n")


def saved_model(root: Path, step: int) -> Path:
    """The Hugging Face folder of a checkpoint."""
    return root / _name(step) / "model"


def latest_checkpoint(root: Path) -> Path | None:
    """The newest checkpoint, damaged or not."""
    found = _all(root)
    return found[-1] if found else None


def newest_intact(root: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that is what was written, and what there is to say of newer ones.

    Those are moved aside to `step_XXXX.damaged`, so that the steps after the intact one can be kept under their names.

    Raises:
        DataError: every checkpoint is damaged, or one may not be read.
    """
    damaged = []
    for checkpoint in reversed(_all(root)):
        trouble = damage(checkpoint)
        if trouble is None:
            return checkpoint, [_set_aside(path, why, checkpoint) for path, why in damaged]
        damaged.append((checkpoint, trouble))
    if damaged:
        checkpoint, trouble = damaged[0]
        raise DataError(f"checkpoint {checkpoint} is damaged ({trouble}); {_way_out(checkpoint)}")
    return None, []


def _set_aside(checkpoint: Path, why: str, instead: Path) -> str:
    number, aside = 1, checkpoint.with_name(f"{checkpoint.name}.damaged")
    while aside.exists():
        number += 1
        aside = checkpoint.with_name(f"{checkpoint.name}.damaged-{number}")
    checkpoint.rename(aside)
    return f"checkpoint {checkpoint.name} is damaged ({why}) and now called {aside.name}; resuming from {instead.name}"


def load_state(checkpoint: Path) -> dict[str, Any]:
    """The state beside the model folder, on the CPU wherever it was written; no code is run.

    Raises:
        DataError: the file is missing, cannot be read, or is damaged.
    """
    try:
        state = torch.load(checkpoint / "state.pt", weights_only=True, map_location="cpu")
    except FileNotFoundError:
        raise DataError(f"checkpoint {checkpoint} has no state.pt; {_way_out(checkpoint)}") from None
    except PermissionError as error:
        raise DataError(f"{checkpoint / 'state.pt'} cannot be read: {error}; mend that, then resume") from None
    except (
        OSError,
        RuntimeError,
        ValueError,
        EOFError,
        pickle.UnpicklingError,
    ) as error:  # torch calls it all of these
        told = str(error).partition("\n")[0]
        raise DataError(f"{checkpoint / 'state.pt'} is damaged ({told}); {_way_out(checkpoint)}") from None
    torch.set_rng_state(state["torch_rng"])
    return state


def load_weights(model: Any, folder: Path) -> None:
    """Put a model folder's weights into an existing model, in place.

    Raises:
        DataError: the weights are missing, not finite, or belong to another model.
    """
    try:
        with no_progress_bar():
            saved = whole_model(type(model), folder, model.dtype, "the folder", local_files_only=True)
        model.load_state_dict(saved.state_dict())
    except (OSError, RuntimeError, ValueError) as error:
        raise DataError(f"the weights in {folder} cannot be loaded into this model: {error}") from None


def save_model(folder: Path, model: Any, tokenizer: Any) -> None:
    """A folder that any Hugging Face program loads."""
    with no_progress_bar():
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@contextmanager
def no_progress_bar() -> Iterator[None]:
    """Keep transformers from drawing a bar per file in the middle of our display."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _way_out(checkpoint: Path) -> str:
    """What is left where a checkpoint's state is lost."""
    before = [p for p in _all(checkpoint.parent) if _step(p) < _step(checkpoint) and damage(p) is None]
    if before:
        return f"move {checkpoint} elsewhere to resume from {before[-1].name}"
    if (checkpoint / "model").is_dir():
        return (
            f"there is no earlier checkpoint, but weights of it are in {checkpoint / 'model'}: keep them, and try a "
            "new run from them with model.source"
        )
    return "there is no earlier checkpoint: start a new run"


_BEST = "best.json"
_PATTERN = re.compile(r"step_\d{4,}")
"""Other names, such as those of copies, belong to somebody else."""


def _all(root: Path) -> list[Path]:
    found = [path for path in root.glob("step_*") if _PATTERN.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=_step)


def _step(path: Path) -> int:
    return int(path.name.split("_")[1])


def _name(step: int) -> str:
    return f"step_{step:04d}"
