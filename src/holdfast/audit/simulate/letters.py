"""The text of a simulated vocabulary: a letter for most ids, and two letters for those that a tokenizer would merge."""

from __future__ import annotations

from collections.abc import Sequence

from holdfast.audit.simulate.world import VOCABULARY

PAIRS = 16
"""The last ids of the vocabulary stand for two letters each."""
_FIRST = ord("A")
SINGLE = VOCABULARY - PAIRS


class Letters:
    """A codec (`holdfast.audit.read.codec`) of the simulated vocabulary.

    Id k below SINGLE is one letter, id SINGLE + k the letters of k and k + PAIRS: where a policy samples the two one
    after the other, their text is encoded as one.
    """

    name = "the simulated vocabulary"
    size = VOCABULARY
    special: frozenset[int] = frozenset()

    def decode(self, ids: Sequence[Sequence[int]]) -> list[str]:
        """The letters of each list of ids."""
        return ["".join(map(_text, one)) for one in ids]

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """From the left, a pair wherever there is one."""
        return [_encode([ord(letter) - _FIRST for letter in text]) for text in texts]


def _text(token: int) -> str:
    if token < SINGLE:
        return chr(_FIRST + token)
    return chr(_FIRST + token - SINGLE) + chr(_FIRST + token - SINGLE + PAIRS)


def _encode(letters: list[int]) -> list[int]:
    out, at = [], 0
    while at < len(letters):
        first = letters[at]
        if first < PAIRS and at + 1 < len(letters) and letters[at + 1] == first + PAIRS:
            out.append(SINGLE + first)
            at += 2
        else:
            out.append(first)
            at += 1
    return out
