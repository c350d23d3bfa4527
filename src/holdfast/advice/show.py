"""Advice in a terminal and as JSON: each line with its figures and its page, and what of the run was not measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from holdfast.advice.advising import Advised, Reader, Spoken
from holdfast.advice.change import as_toml, in_framework
from holdfast.advice.measured import JUDGED, Figure, Outcome
from holdfast.advice.setting import KNOWN_BY
from holdfast.core.advise import Advice, Recommendation

HEADS = {
    "change": "CHANGE",
    "kept": "Already so",
    "note": "Measured",
    "not judged": "Not judged here",
}
NEAREST = "by the nearest measurement"
TOY = "Measured on models of toy size: what failed there can fail elsewhere, what held there need not hold at scale."


@dataclass(frozen=True)
class Fitted:
    """Thresholds fitted to rollouts: the audit's verdict, the advice, the masks that pay with their lines, and what is
    missing.
    """

    verdict: str = ""
    advice: Advice | None = None
    masks: Mapping[str, Recommendation] = field(default_factory=dict)
    lines: Mapping[str, str] = field(default_factory=dict)
    missing: tuple[str, ...] = ()

    @property
    def judged(self) -> bool:
        """Whether the sample tells of any mask that it pays, or that it does not."""
        return self.advice is not None and any(r.needed is not None for r in self.advice.recommendations.values())


def exit_code(advised: Advised, fitted: Fitted | None) -> int:
    """1 where something would be set, 0 where what was measured leaves the run as it is, 3 where nothing speaks."""
    if advised.changes or (fitted and fitted.masks):
        return 1
    return 0 if advised.judged or (fitted and fitted.judged) else 3


def in_words(name: str, reader: Reader, advised: Advised, fitted: Fitted | None, framework: str) -> Iterator[str]:
    """Line by line, from what the run is to what to write into it."""
    objective = reader.objective["preset"] if reader.objective else "objective not known"
    drift = "" if reader.setting.kl is None else f", KL {reader.setting.kl:.2g} nats a token"
    yield f"{name}: {objective}; {reader.setting.words or 'nothing known of its setting'}{drift}"
    yield TOY
    if advised.own is not None:
        yield f"This objective was measured: {_outcome(advised.own)}"
    if fitted is not None:
        yield ""
        yield from _fitted(fitted)
    for head in ("change", "kept", "note", "not judged"):
        for found in advised.spoken:
            if found.verdict == head:
                yield ""
                yield from _spoken(found)
    if depends := [found for found in advised.spoken if found.verdict == "depends"]:
        yield ""
        yield from _depends(depends)
    if not advised.judged and advised.nearest is not None:
        yield ""
        if not depends:
            yield "NOT MEASURED: nothing that was judged speaks to this run."
        yield f"  Nearest measured: {advised.nearest.setting.words} ({advised.nearest.page})"
        yield from _elsewhere(advised.nearest_elsewhere)
    yield ""
    yield from _to_write(reader, advised, framework)


def _spoken(found: Spoken) -> Iterator[str]:
    head = HEADS[found.verdict] + (f", {NEAREST}" if found.elsewhere and found.verdict in ("change", "kept") else "")
    yield f"{head}: {found.line.say} ({found.status})"
    settings: dict[tuple[str, str], list[Figure]] = {}
    for figure in found.figures:
        settings.setdefault((figure.page, figure.where), []).append(figure)
    shown = _nearest_two(settings)
    for page, words in shown:
        yield f"  {words} [{page}]:"
        yield from (f"    {figure.text}" for figure in settings[page, words])
    if rest := len(settings) - len(shown):
        yield f"  Measured at {rest} more setting{'s' if rest > 1 else ''}: docs/choosing.md"
    if not found.figures:
        yield "  Written as a study, and not run."
    if found.line.note:
        yield f"  {found.line.note}"
    yield from _elsewhere(found.elsewhere)


def _depends(found: Sequence[Spoken]) -> Iterator[str]:
    """Lines that what the log does not say decides on: what that is, and what they would say."""
    unknown = dict.fromkeys(key for one in found for key in one.unknown)
    yield f"Not known from here: {'; '.join(f'{KNOWN_BY[key][0]} ({KNOWN_BY[key][1]})' for key in unknown)}"
    yield "On that depend:"
    for one in found:
        if one.figures:
            yield f"  {one.line.say} ({one.status})"


def _nearest_two(settings: Mapping[tuple[str, str], list[Figure]]) -> list[tuple[str, str]]:
    """The nearest setting, and where nothing was judged there the nearest in which something was."""
    order = list(settings)
    judged = [key for key in order if any(figure.support in JUDGED for figure in settings[key])]
    return list(dict.fromkeys([*order[:1], *judged[:1]]))


def _elsewhere(phrases: tuple[str, ...]) -> Iterator[str]:
    if phrases:
        yield f"  Yours was not measured: {'; '.join(phrases)}"


def _outcome(found: Outcome) -> str:
    start = f"from {found.start} to " if found.start else ""
    return f"{found.configuration}, {found.setting.words}: {found.metric}, {start}{found.text} [{found.page}]"


def _fitted(fitted: Fitted) -> Iterator[str]:
    yield f"The audit of these rollouts: {fitted.verdict}"
    yield "Thresholds fitted to them:"
    if fitted.advice is not None:
        yield from (f"  {line}" for line in str(fitted.advice).splitlines())
    yield from (f"  Not given: {text}" for text in fitted.missing)
    if fitted.advice is not None and not fitted.masks:
        yield "  None is proposed: no mask was shown to pay here."
    for rule, lines in fitted.lines.items():
        yield f"  What sets {rule}:"
        yield from (f"    {line}" for line in lines.splitlines())


def _to_write(reader: Reader, advised: Advised, framework: str) -> Iterator[str]:
    if advised.objective is None:
        if any(found.verdict == "depends" for found in advised.spoken):
            yield "Say what is not known from here with those options, and these lines are decided."
        else:
            yield "Nothing to change by what was measured." if advised.judged else "Nothing measured decides this run."
        return
    yield "To write into the run:"
    yield as_toml(advised.objective)
    if framework != "Holdfast":
        yield f"The same in {framework}:"
        yield in_framework(framework, advised.objective, advised.remedies)


def advised_dict(name: str, reader: Reader, advised: Advised, fitted: Fitted | None, framework: str) -> dict[str, Any]:
    """Everything as plain values."""
    return {
        "of": name,
        "setting": asdict(reader.setting),
        "objective": dict(reader.objective) if reader.objective else None,
        "lines": [_line_dict(found) for found in advised.spoken],
        "own": asdict(advised.own) if advised.own else None,
        "nearest": None
        if advised.nearest is None
        else asdict(advised.nearest) | {"not_measured": list(advised.nearest_elsewhere)},
        "propose": None if advised.objective is None else dict(advised.objective),
        "framework": framework,
        "lines_to_set": None
        if advised.objective is None
        else in_framework(framework, advised.objective, advised.remedies),
        "thresholds": None
        if fitted is None
        else {
            "audit": fitted.verdict,
            "advice": fitted.advice.to_dict() if fitted.advice else None,
            "propose": list(fitted.masks),
            "lines": dict(fitted.lines),
            "missing": list(fitted.missing),
        },
        "exit_code": exit_code(advised, fitted),
    }


def _line_dict(found: Spoken) -> dict[str, Any]:
    return {
        "id": found.line.id,
        "say": found.line.say,
        "verdict": found.verdict,
        "status": found.status,
        "note": found.line.note,
        "figures": [asdict(figure) | {"page": figure.page} for figure in found.figures],
        "not_measured": list(found.elsewhere),
        "unknown": list(found.unknown),
    }
