"""The trained model on the Hugging Face hub; whatever happens there, the run and its files are safe."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def push_model(folder: Path, repository: str, *, private: bool, message: str) -> str:
    """Upload a model folder; a sentence that says where it is now, or why not and how to do it by hand.

    No error gets out of here: it comes at the very end, when hours of training are on disk and nowhere else.
    """
    try:
        url = _hub().create_repo(repository, private=private, exist_ok=True)
        _hub().upload_folder(folder_path=folder, repo_id=repository, commit_message=message)
    except Exception as error:  # huggingface_hub raises errors of its own, of requests and of the file system
        return (
            f"the model could not be pushed to {repository} ({_short(error)}); it is safe in {folder}: "
            f"hf upload {repository} {folder}"
        )
    return f"the model is on the hub: {url}"


def login_note(repository: str) -> str | None:
    """Before the first step: None where the hub knows us, else what to do while the run goes on."""
    try:
        _hub().whoami()
    except Exception as error:  # no token, no network, no package
        return (
            f"checkpoint.push_to_hub = {repository!r}: the hub does not know you yet ({_short(error)}); log in with "
            "`hf auth login` before the run ends"
        )
    return None


def _hub() -> Any:
    from huggingface_hub import HfApi

    return HfApi()


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
