"""One pass over a run's logged rollouts: a few sequences worth reading, and what a figure of all of them needs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from holdfast.report.tokens import log_ratios, verdict, worst_position
from holdfast.types import Rollout

MOST_FILES = 48
MOST_TOKENS = 2_000_000
MOST_POINTS = 600


@dataclass(frozen=True)
class Example:
    """A sequence to show, with the heading that says why it was chosen."""

    heading: str
    rollout: Rollout


@dataclass
class Survey:
    """What was seen of the rollouts: counts, one point per sequence, the size of every log ratio, and examples."""

    sequences: int = 0
    tokens: int = 0
    verdicts: dict[str, int] = field(default_factory=dict)
    points: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    ratios: list[float] = field(default_factory=list)
    accepted: Rollout | None = None
    rejected: Rollout | None = None
    drifted: Rollout | None = None
    lowest: Rollout | None = None
    graded: bool = False
    files: int = 0
    skipped_files: int = 0
    cut_files: int = 0
    unreadable: list[str] = field(default_factory=list)

    def examples(self) -> list[Example]:
        """One accepted sequence, the worst rejected one (or else the one that drifted most), one of low reward.

        A reward of 0 is called wrong, and one of 1 right, only where every reward is 0 or 1.
        """
        found: list[Example] = []
        if self.accepted:
            best = self.accepted.reward if self.accepted.reward is not None else 0.0
            words = "Accepted, highest reward" if self.graded else "Accepted, right answer" if best == 1 else "Accepted"
            found.append(Example(words, self.accepted))
        if self.rejected:
            found.append(Example("Of the masked sequences, the one that drifted most", self.rejected))
        elif self.drifted:
            masks = "no verdict" not in self.verdicts
            words = "No sequence was masked; this one drifted most" if masks else "The sequence that drifted most"
            found.append(
                Example(
                    words if self.whole or not masks else f"Of those read, {words[0].lower()}{words[1:]}", self.drifted
                )
            )
        low = self.lowest
        if low and (self.graded or low.reward == 0) and all(low is not example.rollout for example in found):
            found.append(Example("Lowest reward" if self.graded else "A wrong answer", low))
        return found

    @property
    def whole(self) -> bool:
        """Whether every logged sequence was read."""
        return not (self.skipped_files or self.cut_files or self.unreadable)


def survey(rollouts: Iterable[Rollout], into: Survey | None = None) -> Survey:
    """Look at every rollout once and keep the best example of each kind; later steps win ties."""
    seen = into if into is not None else Survey()
    for rollout in rollouts:
        word, _ = verdict(rollout)
        ratios = [abs(r) for r in log_ratios(rollout) if r is not None]
        seen.sequences += 1
        seen.tokens += len(rollout.response_ids)
        seen.verdicts[word] = seen.verdicts.get(word, 0) + 1
        seen.ratios += ratios
        if ratios:
            seen.points.setdefault(word, []).append((len(rollout.response_ids), max(ratios)))
            seen.drifted = max((r for r in (seen.drifted, rollout) if r), key=_drift)
        if word == "accepted":
            seen.accepted = max((r for r in (seen.accepted, rollout) if r), key=_merit)
        elif word in ("rejected", "partly masked"):
            seen.rejected = max((r for r in (seen.rejected, rollout) if r), key=_drift)
        if rollout.reward is not None:
            seen.graded |= rollout.reward not in (0.0, 1.0)
            seen.lowest = max((r for r in (seen.lowest, rollout) if r), key=_lowness)
    return seen


def survey_run(folder: Path) -> Survey:
    """Survey the parquet files of a run's rollout folder, at most 48 of them, evenly spaced, the last among them.

    Reading stops at about two million tokens; a file that cannot be read is named, never raised.
    """
    seen = Survey()
    paths = sorted(folder.glob("*.parquet")) if folder.is_dir() else []
    chosen = (
        paths if len(paths) <= MOST_FILES else [paths[-1 - k * len(paths) // MOST_FILES] for k in range(MOST_FILES)]
    )
    seen.skipped_files = len(paths) - len(chosen)
    for path in sorted(chosen):
        try:
            tokens, some = MOST_TOKENS // len(chosen), _read(path)
            survey(_within(some, tokens), seen)
            seen.cut_files += next(some, None) is not None
            seen.files += 1
        except (ValueError, OSError):
            seen.unreadable.append(path.name)
    return seen


def thin_points(points: list[tuple[int, float]], most: int) -> list[tuple[int, float]]:
    """At most `most` points, the largest half kept whole and the rest evenly thinned."""
    if len(points) <= most:
        return points
    ordered = sorted(points, key=lambda p: -p[1])
    rest = ordered[most // 2 :]
    return ordered[: most // 2] + list(islice(rest, 0, None, -(-len(rest) // (most - most // 2))))


def _read(path: Path) -> Iterator[Rollout]:
    from holdfast.rollout.store import read_rollouts

    return iter(read_rollouts(path))


def _within(rollouts: Iterator[Rollout], tokens: int) -> Iterator[Rollout]:
    for rollout in rollouts:
        yield rollout
        tokens -= len(rollout.response_ids)
        if tokens <= 0:
            return


def _drift(rollout: Rollout) -> tuple[float, float]:
    place = worst_position(rollout)
    return max(rollout.kl_exact or rollout.kl_lower or (0.0,)), abs(place[1]) if place else 0.0


def _merit(rollout: Rollout) -> tuple[float, int]:
    return -math.inf if rollout.reward is None else rollout.reward, rollout.step or 0


def _lowness(rollout: Rollout) -> tuple[float, bool, int]:
    reward = math.inf if rollout.reward is None else rollout.reward
    return -reward, verdict(rollout)[0] == "accepted", rollout.step or 0
