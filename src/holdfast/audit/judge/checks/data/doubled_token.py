"""Prompts that begin with the same special token twice: a template and a tokenizer that both put it there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from holdfast.audit.judge.checks.check import Facts
from holdfast.audit.judge.finding import Finding
from holdfast.audit.judge.fixes import settings
from holdfast.audit.measure.view import View

MOST, PER_CHUNK = 512, 64
"""Prompts that are looked at: these many, and of each chunk."""
FEWEST, SHARE = 8, 0.9
"""Different prompts, and share of them that begin with one id twice."""


class DoubledToken:
    """Looks whether different prompts begin with one id exactly twice.

    Text does not begin so, in all prompts; more than twice is padding. The first PER_CHUNK rollouts of each chunk are
    looked at until MOST different prompts were seen.
    """

    name = "doubled_token"
    asks = "Does each prompt begin with its special token once?"
    needs = frozenset({"response_ids"})

    def __init__(self) -> None:
        self.prompts: set[int] = set()
        self.doubled: Counter[int] = Counter()

    def update(self, view: View) -> None:
        """Look at the first prompts of the chunk that are new."""
        hashes = view.chunk.prompt_hashes[:PER_CHUNK].tolist()
        for i, key in enumerate(hashes):
            if key in self.prompts or len(self.prompts) >= MOST:
                continue
            start = view.chunk.rollout(i).prompt_ids[:3]
            if len(start) < 3:
                continue
            self.prompts.add(key)
            if start[0] == start[1] != start[2]:
                self.doubled[start[0]] += 1

    def findings(self, facts: Facts) -> Iterable[Finding]:
        """A finding where nearly all prompts do."""
        token, count = max(self.doubled.items(), key=lambda item: item[1], default=(0, 0))
        if len(self.prompts) < FEWEST or count < SHARE * len(self.prompts):
            return
        yield Finding(
            name=self.name,
            kind="data",
            severity="warning",
            headline=f"{count:,} of {len(self.prompts):,} prompts begin with token {token} twice: a special token that "
            "is put there by the chat template and again by the tokenizer",
            meaning="The model was never trained on two of them. Where only one side sees both, engine and trainer "
            "read different prompts, and their drift is largest at the first tokens of each response.",
            fix="Encode the template's text with add_special_tokens=False, or pass token ids to the engine instead of "
            "text; compare the prompt ids that the engine returns with those that the trainer scores.",
            evidence={"token id": token, "prompts": len(self.prompts), "share doubled": count / len(self.prompts)},
            settings=settings("token_ids_not_text"),
        )
