"""Checkpoints: a Hugging Face model folder, the optimiser, the engine's snapshots and the random state.

Everything else that a run draws comes from its seed and the step number, so that a resumed run repeats the
uninterrupted one bit for bit.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from holdfast.errors import DataError
from holdfast.rollout.models import whole_model
from holdfast.train.keep.folder import replace_folder


def save_checkpoint(root: Path, step: int, keep: int, *, model: Any, tokenizer: Any, state: dict[str, Any]) -> Path:
    """Write `root/step_XXXX` in one move and delete all but the newest `keep`."""
    target = root / f"step_{step:04d}"
    temporary = root / f".{target.name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    save_model(temporary / "model", model, tokenizer)
    torch.save(state | {"step": step, "torch_rng": torch.get_rng_state()}, temporary / "state.pt")
    replace_folder(temporary, target)
    for old in _all(root)[:-keep]:
        shutil.rmtree(old)
    return target


def latest_checkpoint(root: Path) -> Path | None:
    """The newest complete checkpoint."""
    found = _all(root)
    return found[-1] if found else None


def load_state(checkpoint: Path) -> dict[str, Any]:
    """The state beside the model folder; tensors and plain values only, no code is run.

    Raises:
        DataError: the file is missing or damaged.
    """
    try:
        state = torch.load(checkpoint / "state.pt", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError) as error:
        raise DataError(
            f"checkpoint {checkpoint} is damaged ({error}); delete it to resume from the one before"
        ) from None
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


def _all(root: Path) -> list[Path]:
    return sorted(root.glob("step_*"), key=lambda path: int(path.name.split("_")[1])) if root.is_dir() else []
