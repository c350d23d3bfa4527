"""The errors that Holdfast raises on purpose: each message names the value, what is allowed, and the fix."""

import difflib
import unicodedata
from collections.abc import Iterable


class HoldfastError(Exception):
    """Base of every error raised on purpose; the command line prints its message without a traceback."""


class ConfigError(HoldfastError, ValueError):
    """A setting that cannot be honoured: unknown key, value out of range, parts that do not fit together."""


class DataError(HoldfastError, ValueError):
    """Tensors or records that do not fit: shapes, NaN, positive logprobs, missing fields."""


class EngineError(HoldfastError, RuntimeError):
    """The rollout engine failed or returned something that cannot be trained on."""


def nearest(name: str, allowed: Iterable[str], count: int = 3) -> str:
    """Say which allowed names are close to an unknown one, or list them all where none is.

    >>> nearest("grppo", ["grpo", "ppo", "sapo"])
    'did you mean grpo, ppo?'
    """
    names = sorted(allowed)
    close = difflib.get_close_matches(name, names, n=count, cutoff=0.6)
    return f"did you mean {', '.join(close)}?" if close else f"allowed: {', '.join(names)}"


def visible(text: str, keep: str = "") -> str:
    """Spell out control, format and surrogate characters but those in `keep`: others' text steers no terminal or page.

    >>> visible("a\\u202eb")
    'a\\\\u202eb'
    """
    return "".join(
        _spell(c) if c not in keep and unicodedata.category(c) in {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"} else c
        for c in text
    )


def _spell(character: str) -> str:
    code = ord(character)
    short = {9: "\\t", 10: "\\n", 13: "\\r"}
    return short.get(code) or (f"\\u{code:04x}" if code > 0xFF else f"\\x{code:02x}")
