"""The text of token ids and back: what checks of re-tokenisation ask, from a Hugging Face tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from holdfast.errors import ConfigError


@runtime_checkable
class Codec(Protocol):
    """A vocabulary: ids go from 0 to `size`, exclusive; `name` is what messages call it."""

    @property
    def name(self) -> str:
        """What messages call it."""
        ...

    @property
    def size(self) -> int:
        """One more than the largest id."""
        ...

    @property
    def special(self) -> frozenset[int]:
        """Ids that stand for no text: ends of turns, padding."""
        ...

    def decode(self, ids: Sequence[Sequence[int]]) -> list[str]:
        """The text of each list of ids, special tokens written out."""
        ...

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text, without special tokens but those that are written out in it."""
        ...


@dataclass
class Tokenizer:
    """The tokenizer of a Hugging Face folder, loaded when it is first used: each worker has its own."""

    folder: Path

    @property
    def name(self) -> str:
        """The folder."""
        return str(self.folder)

    @cached_property
    def tokenizer(self) -> Any:
        """What transformers makes of the folder; raises ConfigError where it has no tokenizer."""
        from transformers import AutoTokenizer

        try:
            return AutoTokenizer.from_pretrained(self.folder, local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            told = str(error).strip().partition("\n")[0]
            raise ConfigError(
                f"--tokenizer {self.folder}: no tokenizer there ({told}): save_pretrained writes one"
            ) from error

    @property
    def size(self) -> int:
        """One more than the largest id."""
        return self._size

    @property
    def special(self) -> frozenset[int]:
        """Ids of special tokens, those added for chat templates among them."""
        return self._special

    @cached_property
    def _size(self) -> int:
        return 1 + max(self.tokenizer.get_vocab().values(), default=-1)

    @cached_property
    def _special(self) -> frozenset[int]:
        added = getattr(self.tokenizer, "added_tokens_decoder", {})
        return frozenset(self.tokenizer.all_special_ids) | {i for i, token in added.items() if token.special}

    def decode(self, ids: Sequence[Sequence[int]]) -> list[str]:
        """The text of each list of ids, special tokens written out and spaces left as they are."""
        return [
            self.tokenizer.decode(list(one), skip_special_tokens=False, clean_up_tokenization_spaces=False)
            for one in ids
        ]

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text, without special tokens but those that are written out in it."""
        return self.tokenizer(list(texts), add_special_tokens=False)["input_ids"] if texts else []

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder}
