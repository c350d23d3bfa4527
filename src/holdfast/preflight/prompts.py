"""The prompts of a preflight: from a file or built in, as the engine reads them and as the trainer does."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from holdfast.errors import ConfigError, DataError

FEWEST = 8
"""Intervals are over prompts: with fewer they say nothing."""
TEXT_KEYS = ("prompt", "question", "problem", "input", "text")
BUILT_IN = (
    "What is 17 + 26? Answer with the number only.",
    "What is 9 times 8, less 5? Think step by step.",
    "A train leaves at 9:40 and arrives at 11:15. How long is the journey?",
    "Sort these numbers from small to large: 12, 3, 45, 7, 28.",
    "Write a Python function that reverses the words of a sentence.",
    "Explain in two sentences why the sky is blue.",
    "List four animals that live in the sea, with one fact about each.",
    "Translate into French: The library opens at nine in the morning.",
    "Write a short poem about rain on a tin roof.",
    "What are the differences between a list and a tuple in Python?",
    "Summarise the water cycle for a ten-year-old child.",
    "Solve for x: 3x + 7 = 22. Show your work.",
    "Describe how to make a cup of tea, step by step.",
    "Which is larger, 3/7 or 4/9? Explain.",
    "Write an e-mail that politely declines a meeting on Friday.",
    "Name three causes of the First World War.",
    "What does the SQL statement SELECT COUNT(*) FROM users do?",
    "Continue the story: The lighthouse keeper heard a knock at midnight.",
    "How many minutes are there in two and a half days?",
    "Give a recipe for a simple tomato soup.",
    "Explain the difference between weather and climate.",
    "Write a haiku about an old bicycle.",
    "A box holds 12 eggs. How many boxes are needed for 100 eggs?",
    "What is the capital of Australia, and which river is near it?",
    "Fix this sentence: Him and me was going to the store yesterday.",
    "Explain what a hash table is and when it is slow.",
    "Write a regular expression that matches a date such as 2024-05-17.",
    "Compare cats and dogs as pets in three sentences.",
    "What is the probability of two heads in three tosses of a coin?",
    "Describe a sunset to someone who has never seen one.",
    "Write JSON for a person with a name, an age and two hobbies.",
    "Why do we have leap years?",
)
"""Questions of several kinds, so that short and long, certain and open responses come up."""


@dataclass(frozen=True)
class Prompt:
    """One prompt: its text, the tokens that the engine continues, and those that the trainer scores behind.

    `chat` are its messages, where it is a chat.
    """

    text: str
    engine_ids: tuple[int, ...]
    trainer_ids: tuple[int, ...]
    chat: tuple[dict[str, Any], ...] = ()

    @property
    def same(self) -> bool:
        """Whether both sides read the same tokens."""
        return self.engine_ids == self.trainer_ids


def read_prompts(path: Path | None) -> list[Any]:
    """The prompts of a file, each a text or a list of chat messages; without a file those that are built in.

    A `.jsonl` file holds a string or an object a line, with the text under one of TEXT_KEYS or chat `messages`; any
    other file a prompt a line. Equal prompts count once.

    Raises:
        ConfigError: no such file, a line that holds no prompt, or fewer than FEWEST prompts.
    """
    if path is None:
        return list(BUILT_IN)
    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except OSError as error:
        raise ConfigError(f"--prompts {path}: {error.strerror}; give a file with one prompt a line") from None
    except UnicodeDecodeError:
        raise ConfigError(f"--prompts {path} is not UTF-8 text: give a file with one prompt a line") from None
    found = [_json_prompt(path, number, line) for number, line in enumerate(lines, 1)] if _is_json(path) else lines
    distinct = list({json.dumps(prompt): prompt for prompt in found}.values())
    if len(distinct) < FEWEST:
        raise ConfigError(
            f"--prompts {path} holds {len(distinct)} prompt{'' if len(distinct) == 1 else 's'}: intervals are over "
            f"prompts and need at least {FEWEST} different ones; add some, or leave --prompts out for the built-in ones"
        )
    return distinct


def encode_prompts(
    given: Sequence[Any], tokenizer: Any, *, chat: bool, engine_template: str | None = None, most: int
) -> list[Prompt]:
    """Token ids of the prompts, for both sides; those longer than `most` tokens are left out.

    With `chat`, or where a prompt is a list of messages, the tokenizer's chat template makes the text. The engine's
    prompt is made with `engine_template` where that is given.

    Raises:
        ConfigError: a chat without a template, a template that fails, or fewer than FEWEST prompts that fit.
    """
    prompts = []
    for one in given:
        messages = one if isinstance(one, list) else [{"role": "user", "content": one}]
        talks = chat or isinstance(one, list)
        if talks:
            ids = _templated(tokenizer, messages, None)
            engine = ids if engine_template is None else _templated(tokenizer, messages, engine_template)
        else:
            ids = _without_end(tokenizer.encode(one), tokenizer.eos_token_id)
            engine = ids if engine_template is None else _templated(tokenizer, messages, engine_template)
        text = one if isinstance(one, str) else "\n".join(str(message.get("content")) for message in messages)
        prompts.append(Prompt(text, engine, ids, tuple(messages) if talks else ()))
    if any(not prompt.trainer_ids or not prompt.engine_ids for prompt in prompts):
        raise ConfigError("a prompt has no tokens: the tokenizer encodes it to nothing; give it at least one word")
    kept = [p for p in prompts if max(len(p.engine_ids), len(p.trainer_ids)) <= most]
    if len(kept) < FEWEST:
        raise DataError(
            f"{len(kept)} of {len(prompts)} prompts fit into {most} tokens, and at least {FEWEST} are needed: lower "
            "--sampling.max_tokens, shorten the prompts, or raise --batch.max_prompt_tokens"
        )
    return kept


def first_difference(prompt: Prompt) -> int:
    """The place of the first token that the two sides do not share."""
    pairs = zip(prompt.engine_ids, prompt.trainer_ids, strict=False)
    alike = next((place for place, (a, b) in enumerate(pairs) if a != b), None)
    return min(len(prompt.engine_ids), len(prompt.trainer_ids)) if alike is None else alike


def _templated(tokenizer: Any, messages: list[Any], template: str | None) -> tuple[int, ...]:
    from jinja2 import TemplateError

    if template is None and not getattr(tokenizer, "chat_template", None):
        raise ConfigError(
            "the model's tokenizer has no chat template: leave --model.chat out, or give prompts as plain text"
        )
    try:
        text = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, chat_template=template
        )
    except (TemplateError, TypeError, ValueError) as error:
        raise ConfigError(f"the chat template fails on a prompt: {error}; correct it, or the prompts") from error
    return tuple(tokenizer.encode(text, add_special_tokens=False))


def _without_end(ids: Sequence[int], end: int) -> tuple[int, ...]:
    """A prompt goes on, whatever a tokenizer puts behind a text."""
    return tuple(ids[:-1] if ids and ids[-1] == end else ids)


def _is_json(path: Path) -> bool:
    return path.suffix in (".jsonl", ".ndjson")


def _json_prompt(path: Path, number: int, line: str) -> Any:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ConfigError(
            f"--prompts {path}, line {number} is not JSON ({error}): correct it, or name it .txt"
        ) from None
    if isinstance(row, str) and row.strip():
        return row
    if isinstance(row, dict):
        messages = row.get("messages") or (row.get("prompt") if isinstance(row.get("prompt"), list) else None)
        if isinstance(messages, list) and all(isinstance(m, dict) and "role" in m and "content" in m for m in messages):
            return messages
        for key in TEXT_KEYS:
            if isinstance(row.get(key), str) and row[key].strip():
                return row[key]
    raise ConfigError(
        f"--prompts {path}, line {number} holds no prompt: a string, or an object with one of "
        f"{', '.join(TEXT_KEYS)} or messages of role and content"
    )
