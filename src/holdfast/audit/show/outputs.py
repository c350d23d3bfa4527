"""The files of an audit: report.html and report.json in one folder; texts come from the log or from a tokenizer."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from holdfast.audit.judge.advice import SampleAdvice
from holdfast.audit.judge.auditor import Audit
from holdfast.audit.read.codec import Codec
from holdfast.audit.show.jsonout import audit_dict, write_json
from holdfast.audit.show.page import write_audit_page
from holdfast.errors import DataError
from holdfast.types import Rollout

MOST_TEXT = 20_000
"""Characters of a prompt or a response that the page shows."""


def write_reports(folder: Path, audit: Audit, advice: SampleAdvice, *, title: str) -> tuple[Path, Path]:
    """Write report.html and report.json; returns their paths. Raises DataError where the folder cannot be written."""
    worst = [(name, _shortened(rollout)) for name, rollout in audit.sample.worst()]
    if audit.reading.codec is not None:
        worst = with_texts(worst, audit.reading.codec)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"cannot write to {folder}: {error.strerror}; give a folder with --out") from error
    page = write_audit_page(folder / "report.html", audit, advice, title=title, worst=worst)
    return page, write_json(folder / "report.json", audit_dict(audit, advice))


def with_texts(numbered: Sequence[tuple[int, Rollout]], codec: Codec) -> list[tuple[int, Rollout]]:
    """The rollouts with `token_texts` and `prompt_text` from a tokenizer, where the log has none.

    Rollouts with ids that the tokenizer does not have stay as they are.
    """

    def told(rollout: Rollout) -> Rollout:
        ids = (*rollout.prompt_ids, *rollout.response_ids)
        if rollout.token_texts is not None or not all(0 <= token < codec.size for token in ids):
            return rollout
        texts = tuple(codec.decode([[token] for token in rollout.response_ids]))
        prompt = rollout.prompt_text or codec.decode([rollout.prompt_ids])[0][:MOST_TEXT]
        return dataclasses.replace(rollout, token_texts=texts, prompt_text=prompt)

    return [(name, told(rollout)) for name, rollout in numbered]


def _shortened(rollout: Rollout) -> Rollout:
    if rollout.prompt_text is None or len(rollout.prompt_text) <= MOST_TEXT:
        return rollout
    return dataclasses.replace(rollout, prompt_text=rollout.prompt_text[:MOST_TEXT] + " …")
