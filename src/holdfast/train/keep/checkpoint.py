"""Checkpoints: a Hugging Face model folder, the optimiser, the engine's snapshots and the random state.

Everything else that a run draws comes from its seed and the step number, so that a resumed run repeats the
uninterrupted one bit for bit.
"""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from holdfast.errors import DataError
from holdfast.rollout.models import whole_model
from holdfast.train.keep.folder import replace_folder, write_text


def save_checkpoint(
    root: Path, step: int, keep: int, *, model: Any, tokenizer: Any, state: dict[str, Any], best: int | None = None
) -> Path:
    """Write `root/step_XXXX` in one move and delete all but the newest `keep` and that of step `best`."""
    target = root / _name(step)
    temporary = root / f".{target.name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    save_model(temporary / "model", model, tokenizer)
    torch.save(state | {"step": step, "torch_rng": torch.get_rng_state()}, temporary / "state.pt")
    replace_folder(temporary, target)
    for old in _all(root)[:-keep]:
        if _step(old) != best:
            shutil.rmtree(old)
    return target


def best_checkpoint(root: Path, records: Sequence[Mapping[str, Any]], saving: int | None = None) -> int | None:
    """The step with the highest held-out reward (the first of equals) whose checkpoint is there or is `saving` now."""
    there = {_step(path) for path in _all(root)} | {saving}
    judged = [r for r in records if "eval_reward" in r and r["step"] > 0 and r["step"] in there]
    return max(judged, key=lambda record: record["eval_reward"])["step"] if judged else None


def mark_best(root: Path, records: Sequence[Mapping[str, Any]], step: int) -> None:
    """Say in `root/best.json` which checkpoint it is."""
    reward = next(record["eval_reward"] for record in records if record["step"] == step)
    marked = {"step": step, "eval_reward": reward, "model": f"{_name(step)}/model"}
    write_text(root / "best.json", json.dumps(marked, indent=2) + "\n")


def saved_model(root: Path, step: int) -> Path:
    """The Hugging Face folder of a checkpoint."""
    return root / _name(step) / "model"


def latest_checkpoint(root: Path) -> Path | None:
    """The newest complete checkpoint."""
    found = _all(root)
    return found[-1] if found else None


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
    before = [path for path in _all(checkpoint.parent) if _step(path) < _step(checkpoint)]
    if before:
        return f"move {checkpoint} elsewhere to resume from {before[-1].name}"
    if (checkpoint / "model").is_dir():
        return (
            f"there is no earlier checkpoint, but its weights are in {checkpoint / 'model'}: keep them, and start a "
            "new run from them with model.source"
        )
    return "there is no earlier checkpoint: start a new run"


def _all(root: Path) -> list[Path]:
    return sorted(root.glob("step_*"), key=_step) if root.is_dir() else []


def _step(path: Path) -> int:
    return int(path.name.split("_")[1])


def _name(step: int) -> str:
    return f"step_{step:04d}"
