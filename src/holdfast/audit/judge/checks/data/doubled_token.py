"""Prompts that begin with the same special token twice: a template and a tokenizer that both put it there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np

from holdfast.audit.judge.checks.check import Facts
from holdfast.audit.judge.finding import Finding
from holdfast.audit.judge.fixes import settings
from holdfast.audit.measure.adding import Sampled, hash_numbers
from holdfast.audit.measure.view import View

MOST = 256
"""Prompts that are looked at."""
FEWEST, SHARE = 8, 0.9
"""Different prompts, and share of them that begin with one id twice."""


class DoubledToken:
    """Looks whether different prompts begin with one id exactly twice.

    Text does not begin so, in all prompts; more than twice is padding. MOST different prompts are looked at, those of
    the smallest hashes.
    """

    name = "doubled_token"
    asks = "Does each prompt begin with its special token once?"
    needs = frozenset({"response_ids"})

    def __init__(self) -> None:
        self.prompts: Sampled[tuple[int, int | None]] = Sampled(MOST)
        """Of each prompt whether it has three tokens, and the one that it begins with twice."""
        self.known: set[int] = set()

    def update(self, view: View) -> None:
        """Look at the prompts of the chunk whose hashes are small and new."""
        hashes, rows = np.unique(view.chunk.prompt_hashes, return_index=True)
        keys = hash_numbers(hashes)
        for place in np.argsort(keys)[:MOST].tolist():
            key = int(keys[place])
            if not self.prompts.wants(key):
                break
            if key in self.known:
                continue
            start = [int(token) for token in view.chunk.prompt_ids(int(rows[place]))[:3]]
            twice = len(start) == 3 and start[0] == start[1] != start[2]
            self.prompts.add(key, 1, (len(start) == 3, start[0] if twice else None))
            self.known = {-kept for kept, _, _ in self.prompts.kept}

    def merge(self, other: DoubledToken) -> None:
        """Look at another's prompts."""
        for key, weight, value in other.prompts.kept:
            if -key not in self.known:
                self.prompts.add(-key, weight, value)
        self.known = {-kept for kept, _, _ in self.prompts.kept}

    def findings(self, facts: Facts) -> Iterable[Finding]:
        """A finding where nearly all prompts do."""
        begun = [token for long, token in self.prompts.values() if long]
        doubled = Counter(token for token in begun if token is not None)
        token, count = max(doubled.items(), key=lambda item: (item[1], -item[0]), default=(0, 0))
        if len(begun) < FEWEST or count < SHARE * len(begun):
            return
        yield Finding(
            name=self.name,
            kind="data",
            severity="warning",
            headline=f"{count:,} of {len(begun):,} prompts begin with token {token} twice: a special token that "
            "is put there by the chat template and again by the tokenizer",
            meaning="The model was never trained on two of them. Where only one side sees both, engine and trainer "
            "read different prompts, and their drift is largest at the first tokens of each response.",
            fix="Encode the template's text with add_special_tokens=False, or pass token ids to the engine instead of "
            "text; compare the prompt ids that the engine returns with those that the trainer scores.",
            evidence={"token id": token, "prompts": len(begun), "share doubled": count / len(begun)},
            settings=settings("token_ids_not_text"),
        )
