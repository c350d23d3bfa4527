"""Streamed answers: the chunks of one answer joined by its id, whatever chunks of others lie between them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from holdfast.audit.read.raw.fields import Unusable, listed, mapping

_LISTS = ("content", "tokens", "token_logprobs", "top_logprobs")


@dataclass
class _Choice:
    """What has come of one choice of one answer."""

    logprobs: dict[str, list[Any]] = field(default_factory=dict)
    token_ids: list[Any] = field(default_factory=list)
    text: list[str] = field(default_factory=list)
    finish_reason: str | None = None

    def add(self, chunk: Mapping[str, Any]) -> None:
        for name, values in mapping(chunk.get("logprobs") or {}, "logprobs").items():
            if name in _LISTS and values is not None:
                self.logprobs.setdefault(name, []).extend(listed(values, f"logprobs.{name}"))
        self.token_ids += listed(chunk.get("token_ids") or [], "token_ids")
        said = chunk["text"] if "text" in chunk else mapping(chunk.get("delta") or {}, "delta").get("content")
        if isinstance(said, str):
            self.text.append(said)
        self.finish_reason = chunk.get("finish_reason") or self.finish_reason

    def whole(self, index: int) -> dict[str, Any]:
        """The choice as an answer that was not streamed holds it."""
        text = "".join(self.text)
        return {
            "index": index,
            "logprobs": self.logprobs,
            "message": {"content": text},
            "text": text,
            "finish_reason": self.finish_reason,
            **({"token_ids": self.token_ids} if self.token_ids else {}),
        }


@dataclass
class Streams:
    """Answers under way: whole once all choices seen so far have a finish reason, or at the end of the file."""

    _open: dict[str, dict[int, _Choice]] = field(default_factory=dict)
    _heads: dict[str, Mapping[str, Any]] = field(default_factory=dict)

    def joined(self, line: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
        """The line itself, unless it is a chunk: then the answer that it completes, if any.

        Raises Unusable for a chunk without an id: nothing says which answer it belongs to.
        """
        if not _is_chunk(line):
            yield line
            return
        name = line.get("id")
        if not isinstance(name, str) or not name:
            raise Unusable("streamed chunk without an id", "chunks of one answer are joined by their id")
        choices = self._open.setdefault(name, {})
        self._heads.setdefault(name, line)
        for chunk in listed(line.get("choices") or [], "choices"):
            index = mapping(chunk, "choices").get("index", 0)
            if not isinstance(index, int):
                raise Unusable("wrong type", f"choices.index is {index!r}, allowed is a number")
            choices.setdefault(index, _Choice()).add(chunk)
        # A chunk of usage alone comes after the finish reasons; it opens the answer anew, with nothing in it.
        if choices and all(choice.finish_reason for choice in choices.values()):
            yield self._close(name)

    def rest(self) -> Iterator[Mapping[str, Any]]:
        """Answers of which nothing more came, in the order in which they began."""
        for name in list(self._open):
            if self._open[name]:
                yield self._close(name)

    def _close(self, name: str) -> Mapping[str, Any]:
        choices, head = self._open.pop(name), self._heads.pop(name)
        prompt = {key: head[key] for key in ("prompt_token_ids", "prompt_text") if key in head}
        return {"choices": [choices[index].whole(index) for index in sorted(choices)], **prompt}


def _is_chunk(line: Mapping[str, Any]) -> bool:
    if str(line.get("object", "")).endswith(".chunk"):
        return True
    choices = line.get("choices")
    return isinstance(choices, list) and bool(choices) and isinstance(choices[0], dict) and "delta" in choices[0]
