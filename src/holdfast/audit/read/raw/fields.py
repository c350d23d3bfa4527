"""Reading single fields of a record that anyone may have written: type, range and length, or a reason why not.

Strict on purpose: `array` takes no text for a number, and no fraction for an integer.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping
from typing import Any

import numpy as np

from holdfast.audit.read.columns import Column

LARGEST_ID = 2**31 - 1
LARGEST_WHOLE = 2**63 - 1


class Unusable(Exception):
    """A record that must be left out: `kind` is a short phrase without numbers, `detail` names field and value."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(f"{kind}: {detail}")
        self.kind, self.detail = kind, detail


def needed(record: Mapping[str, Any], name: str) -> Any:
    """A field that the record must have."""
    value = record.get(name)
    if value is None:
        raise Unusable("missing field", name)
    return value


def ids(value: Any, name: str) -> Column:
    """int32 token ids: whole numbers from 0 to 2³¹ - 1."""
    if isinstance(value, np.ndarray):
        column = _flat(value, name, "iu")
    else:
        try:
            column = np.array(array("i", _listed(value, name)))
        except OverflowError:
            raise Unusable("token id out of range", f"{name}: ids go from 0 to {LARGEST_ID}") from None
        except TypeError:
            wrong = _short(next(v for v in value if not isinstance(v, int)))
            raise Unusable("wrong type", f"{name} holds {wrong}, allowed are whole numbers") from None
    if len(column) and (column.min() < 0 or column.max() > LARGEST_ID):
        wrong = column.min() if column.min() < 0 else column.max()
        raise Unusable("token id out of range", f"{name} has {wrong}: ids go from 0 to {LARGEST_ID}")
    return column.astype(np.int32)


def floats(value: Any, name: str) -> Column | None:
    """float32 values; null within is NaN (writers put it where a number was not finite), null for all is None."""
    if value is None:
        return None
    if isinstance(value, np.ndarray):
        return _flat(value, name, "fiub").astype(np.float32)
    values = _listed(value, name)
    try:
        column = np.array(array("d", values))
    except TypeError:
        if values.count(None) == len(values):
            return None
        if not set(map(type, values)) <= {int, float, bool, type(None)}:
            raise Unusable("wrong type", f"{name} holds {_strange(values)}, allowed are numbers and null") from None
        column = np.array([math.nan if v is None else min(max(v, -math.inf), math.inf) for v in values], np.float64)
    except OverflowError:
        raise Unusable("number out of range", f"{name}: an integer too large for a float") from None
    with np.errstate(over="ignore"):
        return column.astype(np.float32)


def flags(value: Any, name: str) -> Column | None:
    """Booleans from true/false, 0/1 or 0.0/1.0; null is None."""
    if value is None:
        return None
    if isinstance(value, np.ndarray):
        column = _flat(value, name, "biuf")
    else:
        try:
            column = np.frombuffer(bytes(_listed(value, name)), np.uint8)
        except (TypeError, ValueError):
            numbers = floats(value, name)
            if numbers is None:
                return None
            column = numbers
    if len(column) and not ((column == 0) | (column == 1)).all():
        wrong = column[(column != 0) & (column != 1)][0]
        raise Unusable("wrong type", f"{name} holds {wrong}, allowed are 0 and 1")
    return column.astype(bool)


def mask(value: Any, name: str) -> Column:
    """Booleans that must be there."""
    column = flags(value, name)
    if column is None:
        raise Unusable("missing field", name)
    return column


def real(value: Any, name: str) -> float | None:
    """A number, or None."""
    if value is None:
        return None
    if not isinstance(value, (int, float)):
        raise Unusable("wrong type", f"{name} is {_short(value)}, allowed is a number")
    try:
        number = float(value)
    except OverflowError:
        raise Unusable("number out of range", f"{name}: an integer too large for a float") from None
    # Columns are float32: what it cannot hold is infinite there.
    return number if abs(number) < 3.4e38 or not math.isfinite(number) else math.copysign(math.inf, number)


def whole(value: Any, name: str, largest: int = LARGEST_WHOLE) -> int | None:
    """A whole number, or None."""
    if value is None:
        return None
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        value = int(value)
    if not isinstance(value, int) or abs(value) > largest:
        raise Unusable("wrong type", f"{name} is {_short(value)}, allowed is a whole number up to {largest}")
    return int(value)


def word(value: Any, name: str) -> str | None:
    """A text, or None."""
    if value is None or isinstance(value, str):
        return value
    raise Unusable("wrong type", f"{name} is {_short(value)}, allowed is text")


def same_lengths(columns: Mapping[str, Column | None], length: int, of: str) -> None:
    """Raise Unusable where a column that is there has another length than `of`."""
    for name, column in columns.items():
        if column is not None and len(column) != length:
            raise Unusable("lengths differ", f"{name} has {len(column)} entries, {of} {length}")


def mapping(value: Any, name: str) -> Mapping[str, Any]:
    """An object; null is an empty one."""
    if value is None:
        return {}
    if isinstance(value, Mapping):
        return value
    raise Unusable("wrong type", f"{name} is {_short(value)}, allowed is an object")


def listed(value: Any, name: str) -> list[Any]:
    """A list; null is an empty one."""
    return [] if value is None else _listed(value, name)


def _listed(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list):
        raise Unusable("wrong type", f"{name} is {_short(value)}, allowed is a list")
    return value


def _flat(value: Column, name: str, kinds: str) -> Column:
    if value.ndim != 1 or value.dtype.kind not in kinds:
        raise Unusable("wrong type", f"{name} is an array of {value.dtype} with shape {value.shape}")
    return value


def _strange(values: list[Any]) -> Any:
    return next(_short(v) for v in values if v is not None and not isinstance(v, (int, float)))


def _short(value: Any) -> str:
    if isinstance(value, (list, dict)):
        return type(value).__name__
    if isinstance(value, int) and abs(value) > LARGEST_WHOLE:  # Python refuses to print very large ones
        return f"int of {value.bit_length()} bits"
    text = f"{type(value).__name__} {value!r}"
    return text if len(text) <= 60 else text[:57] + "..."


def digits(text: Any) -> int | None:
    """The whole number from 0 to 2³¹ - 1 that a text spells, else None."""
    return (
        int(text)
        if isinstance(text, str) and text.isdecimal() and len(text) <= 10 and int(text) <= LARGEST_ID
        else None
    )
