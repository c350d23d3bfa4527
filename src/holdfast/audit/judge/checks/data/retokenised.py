"""Text that was tokenised again on its way from the engine to the trainer, or from one turn to the next."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from holdfast.audit.judge.checks.check import Facts
from holdfast.audit.judge.checks.places import Places
from holdfast.audit.judge.finding import Finding, Severity, Where
from holdfast.audit.judge.fixes import settings
from holdfast.audit.measure.adding import First, Sampled, add_up
from holdfast.audit.measure.binned import Binned
from holdfast.audit.measure.contrast import growth
from holdfast.audit.measure.tokens import FOLDS
from holdfast.audit.measure.view import View
from holdfast.audit.read.columns import Column

ENOUGH = 1 << 19
"""Tokens that are decoded and encoded again."""
TIMES, NATS = 5.0, 0.3
"""How many times the drift of moved tokens must exceed that of all others, and what it must be at least."""
MANY = 0.05
"""Share of the tokens that no policy leaves of its own tokenizer's words: beyond, the tokenizer is another one."""
FEWEST_TURNS, SHARE_OF_TURNS = 3, 0.01
TEXTS, FEWEST_TEXTS, OTHER_TEXTS = 32, 8, 0.5
"""Texts of a chunk that are compared with their ids, how many there must be, and the share that must differ."""


@dataclass
class _Looked:
    """Sums of some chunks: drift in nats and tokens by fold, of tokens that stay and that move, and counts."""

    drift: Column = field(default_factory=lambda: np.zeros((FOLDS, 2)))
    measured: Column = field(default_factory=lambda: np.zeros((FOLDS, 2)))
    shares: Binned = field(default_factory=lambda: Binned(4))
    """Tokens looked at, changed tokens, sequences, and sequences with a change."""
    unknown: int = 0
    kept: int = 0
    broken: int = 0
    texts: int = 0
    other_texts: int = 0
    places: Places = field(default_factory=Places)
    sequences: First = field(default_factory=First)


class Retokenised:
    """Decodes responses, encodes their text again, and asks four things.

    How much would change if text were passed on instead of ids. Whether the trainer's log-probabilities belong to the
    encoding: then tokens behind a change that alters the number of tokens are far off, and no others. Whether prompts
    of later turns hold the answers before them in other ids. Whether the texts that are logged beside ids are theirs.

    Sampled tokens need not be those that a tokenizer makes of their text, which is no fault as long as ids are passed
    on. Needs a tokenizer (`View.codec`).
    """

    name = "retokenised"
    asks = "Are the engine's token ids passed on, and not their text?"
    needs = frozenset({"response_ids"})

    def __init__(self) -> None:
        self.looked: Sampled[_Looked] = Sampled(ENOUGH)

    def update(self, view: View) -> None:
        """Encode the chunk's text again, if it is one of those that are looked at."""
        if view.codec is None or not view.chunk.token_count or not self.looked.wants(view.key):
            return
        again, turns, found = view.reencoded, view.turns, _Looked()
        found.unknown, found.kept, found.broken = again.unknown, turns.kept, turns.broken
        found.sequences.add((view.first_sequence + np.array(turns.sequences[:10], np.int64)).tolist())
        looked, changed = view.sum(again.looked), view.sum(again.changed)
        found.shares.add_quantities(view, np.column_stack([looked, changed, looked > 0, changed > 0]))
        for column, where in enumerate((again.looked & ~again.changed & ~again.moved, again.moved)):
            at = where & view.measured
            found.drift[:, column] = np.bincount(view.fold, view.sum(np.where(at, view.size, 0)), FOLDS)
            found.measured[:, column] = np.bincount(view.fold, view.sum(at), FOLDS)
        found.places.add(view, np.flatnonzero(again.changed), view.size[again.changed])
        found.texts, found.other_texts = _texts(view)
        self.looked.add(view.key, view.chunk.token_count, found)

    def findings(self, facts: Facts) -> Iterable[Finding]:
        """What was tokenised again, the gravest first; else how much would change, which is worth a word."""
        every = _Looked()
        for one in self.looked.values():
            add_up(every, one)
        if every.unknown:
            yield _unknown(every)
        if not every.shares.sums[:, 0].any():
            return
        alien = every.shares.estimate_totals(lambda s, _: s[..., 1] / np.maximum(s[..., 0], 1), 0.998).low > MANY
        scored = _scored_again(every)
        others = [f for f in (_turns(every), _other_texts(every)) if f]
        yield from (f for f in (scored, *others) if f)
        if not scored:
            yield _risk(every, alien)


def _texts(view: View) -> tuple[int, int]:
    """Texts that the log has beside ids, and those of them that are not what the ids say."""
    assert view.codec is not None
    rows = view.filled[:: max(1, len(view.filled) // TEXTS)][:TEXTS]
    kept = [view.chunk.keep(int(i)) for i in rows]
    whole = [getattr(promise, "whole", promise)() for promise in kept]
    given = [r for r in whole if r.response_text and r.response_text.strip() and max(r.response_ids) < view.codec.size]
    spoken = [[t for t in r.response_ids if t not in view.codec.special] for r in given]
    said = zip(given, view.codec.decode([r.response_ids for r in given]), view.codec.decode(spoken), strict=True)
    other = sum(not any(_bare(r.response_text) in _bare(text) for text in texts) for r, *texts in said)
    return len(given), other


def _bare(text: str | None) -> str:
    return "".join((text or "").split())


def _scored_again(every: _Looked) -> Finding | None:
    first, second = ((every.drift[:, [k]], every.measured[:, [k]]) for k in (0, 1))
    found = growth(first, second)
    level = float(second[0].sum() / max(1.0, second[1].sum()))
    if not (level > NATS and found.surely_above(TIMES)):
        return None
    return _finding(
        "critical",
        "the trainer scored text that was tokenised again: behind the first place where a response's text makes other "
        f"tokens than were sampled, log-probabilities are {level:.2g} nats apart on average, {found.value:.0f} times "
        "as far as elsewhere",
        "From that place on each log-probability stands beside another token's, or is of a context that the engine "
        "never had. Ratios there are noise, and the gradient raises and lowers tokens that were not sampled.",
        evidence={"mean |log ratio| behind a change": level, "times elsewhere": found.estimate(), **_shares(every)},
        where=every.places.where(),
        invalidates=True,
    )


def _turns(every: _Looked) -> Finding | None:
    total = every.kept + every.broken
    if every.broken < FEWEST_TURNS or every.broken < SHARE_OF_TURNS * total:
        return None
    return _finding(
        "warning",
        f"the history was tokenised again between turns: in {every.broken:,} of {total:,} later prompts the answer "
        "before stands as the same text in other tokens",
        "The next turn continues tokens that the policy did not sample, and the turns of a conversation cannot be "
        "joined into one sequence: they are trained on apart, or with log-probabilities of another context.",
        evidence={"prompts with other tokens": every.broken, "prompts with the sampled ones": every.kept},
        where=Where(sequences=tuple(every.sequences.numbers)),
    )


def _other_texts(every: _Looked) -> Finding | None:
    if every.texts < FEWEST_TEXTS or every.other_texts < OTHER_TEXTS * every.texts:
        return None
    return _finding(
        "warning",
        f"{every.other_texts:,} of {every.texts:,} texts in the log are not what the token ids beside them say",
        "Either the tokenizer is not the one that the run used, or the ids were made from another text than the one "
        "that was rewarded.",
        evidence={"texts": every.texts, "of other tokens": every.other_texts},
        fix="Give --tokenizer the folder that the engine loaded. If it is that one, compare a text and its ids by eye: "
        "rewards are computed on one of the two, the loss on the other.",
    )


def _unknown(every: _Looked) -> Finding:
    return _finding(
        "warning",
        f"{every.unknown:,} tokens have ids that the tokenizer does not have",
        "It is another model's tokenizer, or the log holds ids that no token has: padding, image places, or a row of "
        "the LM head beyond the vocabulary, which then was sampled. Their sequences are not looked at.",
        evidence={"tokens": every.unknown},
        fix="Give --tokenizer the folder that the engine loaded. If it is that one, keep the engine from sampling "
        "beyond the vocabulary: such tokens have no text, and are lost wherever text is passed on.",
    )


def _risk(every: _Looked, alien: bool) -> Finding:
    shares = _shares(every)
    tokens, sequences = shares["share of tokens"], shares["share of sequences"]
    return _finding(
        "warning" if alien else "info",
        f"if text were tokenised again, {sequences.value:.1%} of the responses and {tokens.value:.2%} of the tokens "
        "would change" + (": the tokenizer is not the run's, or the policy has left its words" if alien else ""),
        "Sampled tokens need not be those that a tokenizer makes of their text. As long as ids are passed on this does "
        "no harm; where text is, the trainer learns from tokens that were not sampled.",
        evidence=shares,
        where=every.places.where(),
    )


def _shares(every: _Looked) -> dict[str, Any]:
    pairs = {"share of tokens": (1, 0), "share of sequences": (3, 2)}
    return {
        name: every.shares.estimate_totals(lambda sums, _, a=a, b=b: sums[..., a] / np.maximum(sums[..., b], 1))
        for name, (a, b) in pairs.items()
    }


def _finding(
    severity: Severity,
    headline: str,
    meaning: str,
    evidence: dict[str, Any],
    fix: str = "",
    where: Where | None = None,
    invalidates: bool = False,
) -> Finding:
    return Finding(
        name=Retokenised.name,
        kind="data",
        severity=severity,
        headline=headline,
        meaning=meaning,
        fix=fix
        or "Keep the token ids that the engine returned, for the loss and for the next turn's prompt, and never the "
        "text alone: append new messages' tokens to the ids so far.",
        evidence=evidence,
        where=where or Where(),
        settings=settings("token_ids_not_text"),
        invalidates=invalidates,
    )
