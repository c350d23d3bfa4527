"""A browser over every logged rollout: an index to sort and filter, and the tokens of each, in the page or beside it.

Small logs lie in the page. Others become scripts in a folder beside it, one or a few for each parquet file, which the
page loads as they are asked for, also from a disk without a server. A file that did not change is not read again.
"""

from __future__ import annotations

import json
import math
import shutil
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import orjson

from holdfast.errors import DataError, visible
from holdfast.report.page import Markup, element, paragraph
from holdfast.report.tokens import log_ratios, verdict
from holdfast.types import Rollout

FOLDER = "report_rollouts"
"""Beside the page."""
MOST_EMBEDDED = 300_000
"""Bytes of JSON that the page itself may hold."""
_LARGE_FILES = 1_500_000
"""Bytes of parquet from which nobody tries to embed."""
_PART_TOKENS = 60_000
"""Tokens of a script: about two megabytes."""
_MOST_PROMPT = 160
_FORM = 1
_CALL = "holdfastRollouts"


def browse(rollouts: Path, beside: Path) -> Markup:
    """The browser over a folder of parquet files, for a page in the folder `beside`; nothing where none are logged.

    Files that cannot be read are left out (the page's survey names them). Raises DataError where the scripts cannot be
    written.
    """
    paths = sorted(rollouts.glob("*.parquet")) if rollouts.is_dir() else []
    if not paths:
        _remove(beside)
        return Markup()
    if sum(path.stat().st_size for path in paths) <= _LARGE_FILES and (packed := _embedded(paths)) is not None:
        _remove(beside)
        return _frame(f"data-rollouts='{_attribute(packed)}'")
    try:
        _write_scripts(paths, beside / FOLDER)
    except OSError as error:
        raise DataError(f"cannot write {beside / FOLDER}: {error.strerror}; the page needs it beside itself") from error
    return _frame(f'data-folder="{FOLDER}"')


def _frame(attribute: str) -> Markup:
    """What the page's script fills."""
    without = paragraph("The browser over all rollouts needs JavaScript.", css="absent")
    return element(
        "div",
        element("h3", "Every logged rollout"),
        Markup(f'<div class="browse" {attribute}><noscript>{without}</noscript></div>'),
        css="every",
    )


def _attribute(text: str) -> str:
    """JSON for a single-quoted attribute: its many double quotes stay as they are."""
    return text.replace("&", "&amp;").replace("'", "&#x27;").replace("<", "&lt;")


def _remove(beside: Path) -> None:
    shutil.rmtree(beside / FOLDER, ignore_errors=True)


def _embedded(paths: Iterable[Path]) -> str | None:
    """The whole log as JSON, or None where it is too large for the page."""
    files, parts, size = [], {}, 0
    for path in paths:
        of_file, entry = _parts(path)
        if entry is None:
            continue
        for name, rows in of_file:
            parts[name] = rows
            size += len(orjson.dumps(rows))
        files.append(entry)
        if size > MOST_EMBEDDED:
            return None
    return orjson.dumps({"files": files, "parts": parts}).decode()


def _write_scripts(paths: list[Path], folder: Path) -> None:
    """index.js and the scripts of new or changed files; those of files that are gone are removed."""
    folder.mkdir(exist_ok=True)
    known = {entry["name"]: entry for entry in _index(folder / "index.js")}
    files, kept = [], {"index.js"}
    for path in paths:
        entry = known.get(path.name)
        if entry is None or entry["stamp"] != _stamp(path):
            parts, entry = _parts(path)
            if entry is None:
                continue
            for name, rows in parts:
                (folder / f"{name}.js").write_bytes(_script(name, rows))
        files.append(entry)
        kept |= {f"{name}.js" for name in entry["parts"]}
    (folder / "index.js").write_bytes(_script("index", {"form": _FORM, "files": files}))
    for path in folder.glob("*.js"):
        if path.name not in kept:
            path.unlink()


def _stamp(path: Path) -> str:
    """What changes with the file's bytes and with nothing else: pages of equal runs are equal, whenever they ran."""
    found = 0
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            found = zlib.crc32(piece, found)
    return f"{found:08x}"


def _script(name: str, value: Any) -> bytes:
    return f"{_CALL}({json.dumps(name)},".encode() + orjson.dumps(value) + b");\n"


def _index(path: Path) -> list[dict[str, Any]]:
    """The entries of the last time; none where the form was another one."""
    try:
        text = path.read_bytes()
        value = orjson.loads(text[len(f'{_CALL}("index",') : -len(b");\n")])
    except (OSError, ValueError):
        return []
    return value["files"] if isinstance(value, dict) and value.get("form") == _FORM else []


def _parts(path: Path) -> tuple[list[tuple[str, list[dict[str, Any]]]], dict[str, Any] | None]:
    """The scripts of a parquet file and its entry in the index; None where it cannot be read."""
    entry: dict[str, Any] = {"name": path.name, "stamp": _stamp(path), "parts": [], "rows": []}
    prompts: dict[str, int] = {}
    parts: list[tuple[str, list[dict[str, Any]]]] = []
    tokens = _PART_TOKENS
    try:
        for rollout in _read(path):
            if tokens >= _PART_TOKENS:
                parts.append((f"{path.stem}-{len(parts)}", []))
                tokens = 0
            tokens += len(rollout.response_ids)
            entry["rows"].append([*_row(rollout, prompts), len(parts) - 1, len(parts[-1][1])])
            parts[-1][1].append(packed(rollout))
    except (ValueError, OSError):
        return [], None
    return parts, entry | {"parts": [name for name, _ in parts], "prompts": list(prompts)}


def _read(path: Path) -> Iterator[Rollout]:
    from holdfast.rollout.store import read_rollouts

    return iter(read_rollouts(path))


def _row(rollout: Rollout, prompts: dict[str, int]) -> list[Any]:
    """Step, prompt, reward, verdict, length and the worst |log ratio|: what the index sorts and filters by."""
    if rollout.prompt_text is not None:
        text = " ".join(rollout.prompt_text.split())
        text = text if len(text) <= _MOST_PROMPT else f"…{text[-_MOST_PROMPT:]}"
    else:
        text = f"group {rollout.group_id}" if rollout.group_id is not None else ""
    place = prompts.setdefault(visible(text), len(prompts))
    known = [abs(r) for r in log_ratios(rollout) if r is not None]
    worst = _short(max(known)) if known else None
    return [rollout.step, place, _short(rollout.reward), verdict(rollout)[0], len(rollout.response_ids), worst]


def packed(rollout: Rollout) -> dict[str, Any]:
    """One sequence for the token viewer; a field that was not logged is absent.

    `mask` has a letter for each token: k kept, m masked, g given (not the policy's own), n no verdict.
    """
    count = len(rollout.response_ids)
    own = rollout.response_mask if rollout.response_mask is not None else (True,) * count
    kept = rollout.trust_mask
    letters = ("g" if not mine else "n" if kept is None else "k" if kept[i] else "m" for i, mine in enumerate(own))
    kl = rollout.kl_exact if rollout.kl_exact is not None else rollout.kl_lower
    texts = rollout.token_texts
    found = {
        "prompt": None if rollout.prompt_text is None else visible(rollout.prompt_text, keep="\n\t"),
        "texts": None if texts is None else [visible(text, keep="\n\t") for text in texts],
        "ids": rollout.response_ids if texts is None else None,
        "engine": _shorts(rollout.rollout_logprobs),
        "trainer": _shorts(rollout.trainer_logprobs),
        "kl": _shorts(kl),
        "proven": True if rollout.kl_exact is None and kl is not None else None,
        "mask": "".join(letters),
        "why": visible(verdict(rollout)[1]),
        "finish": _said(rollout.finish_reason),
        "environment": _said(rollout.environment),
        "answer": _said(rollout.extra.get("answer")),
    }
    return {key: value for key, value in found.items() if value is not None}


def _said(value: object) -> str | None:
    return None if value is None else visible(str(value))


def _shorts(values: tuple[float, ...] | None) -> list[float | None] | None:
    return None if values is None else [_short(v) for v in values]


def _short(value: float | None) -> float | None:
    """Four significant digits, at most six places; None where it is no finite number."""
    if value is None or not math.isfinite(value):
        return None
    return round(value, 6 if abs(value) < 0.01 else 4)
