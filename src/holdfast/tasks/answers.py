"""Final answers: finding them in a response and comparing them."""

from __future__ import annotations

import re
from fractions import Fraction

NUMBER = re.compile(r"[-+]?(?:(?:\d+(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?(?:\s*/\s*\d+)?")
LONGEST = 1000
"""Digits, and powers of ten, beyond which a number is not read: longer ones cost more than an answer is worth."""


def last_answer(response: str, marker: str) -> str | None:
    """The text after the last `marker`, stripped; None without a marker."""
    _, found, answer = response.rpartition(marker)
    return answer.strip() if found else None


def answer_of(response: str, marker: str) -> str | None:
    """The text after the last marker, or the whole response where the marker is empty."""
    return last_answer(response, marker) if marker else response.strip()


def exact(answer: str, expected: str) -> float:
    """1 where both texts are equal after stripping."""
    return float(answer.strip() == expected.strip())


def numeric(answer: str, expected: str, tolerance: float = 1e-6) -> float:
    """1 where the last number of each text is the same to `tolerance` (relative).

    Reads 1,234.5, 1e-3, 50% and 3/4; a currency sign or words around the number do not matter.
    """
    found, wanted = last_number(answer), last_number(expected)
    if found is None or wanted is None:
        return 0.0
    return float(abs(found - wanted) <= Fraction(tolerance) * max(abs(found), abs(wanted)))


def last_number(text: str) -> Fraction | None:
    """The last number in a text, exactly; None without one, or where it is no number that can be read.

    Division by zero, more than 1000 characters and powers of ten beyond 1000 cannot be read. An exponent belongs to the
    number before it: "-E+4" holds the number 4.

    >>> last_number("so x = $1,250.50.")
    Fraction(2501, 2)
    """
    found = None
    for match in NUMBER.finditer(text):
        found = match
    if found is None or len(found.group()) > LONGEST:
        return None
    numerator, _, denominator = found.group().replace(",", "").partition("/")
    if abs(_exponent(numerator)) > LONGEST or (denominator and not int(denominator)):
        return None
    value = Fraction(numerator.strip()) / int(denominator or 1)
    return value / 100 if text[found.end() :].lstrip().startswith("%") else value


def _exponent(text: str) -> int:
    return int(text.lower().partition("e")[2] or 0)
