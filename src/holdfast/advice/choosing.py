"""The part of docs/choosing.md between two marks, and the kept figures: made of lines and evidence, and checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from holdfast.advice.lines import SOURCE, Change, Line, Lines, read_lines
from holdfast.advice.measured import KEPT, Figure, Measured, Outcome, status_of, status_words, supported, to_text
from holdfast.advice.resolve import Evidence, resolve
from holdfast.advice.setting import common
from holdfast.errors import DataError
from holdfast.train.keep.files import write_text

PAGE = "choosing.md"
BEGIN = "<!-- Made from the evidence by `holdfast study --choosing`; edit src/holdfast/advice/lines.toml instead. -->"
END = "<!-- End of what is made. -->"
AGAIN = "`holdfast study --choosing` writes it anew"


@dataclass(frozen=True)
class Places:
    """Where lines, evidence, studies, the page and the kept figures are."""

    evidence: Path
    studies: Path
    lines: Path = SOURCE
    kept: Path = KEPT

    @property
    def page(self) -> Path:
        """Beside the evidence's folder."""
        return self.evidence.parent / PAGE


def check_choosing(places: Places) -> list[str]:
    """What does not follow: lines that the evidence refutes or does not have, the page, the kept figures."""
    lines = read_lines(places.lines)
    measured, problems = resolve(lines, Evidence(places.evidence, places.studies))
    if problems:
        return problems
    text = _read(places.page)
    found = [] if text == _with_part(text, places.page, made_part(lines, measured)) else [_stale(places.page)]
    kept = places.kept.read_text(encoding="utf-8") if places.kept.is_file() else ""
    return found + ([] if kept == to_text(measured) else [_stale(places.kept)])


def write_choosing(places: Places) -> list[Path]:
    """Write both anew.

    Raises:
        DataError: a line that the evidence refutes, or a reference that leads nowhere; nothing is written then.
    """
    lines = read_lines(places.lines)
    measured, problems = resolve(lines, Evidence(places.evidence, places.studies))
    if problems:
        raise DataError("\n".join(problems))
    page = _with_part(_read(places.page), places.page, made_part(lines, measured))
    write_text(places.page, page)
    write_text(places.kept, to_text(measured))
    return [places.page, places.kept]


def _stale(path: Path) -> str:
    return f"{path} does not follow from the evidence; {AGAIN}"


def _read(page: Path) -> str:
    try:
        return page.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"cannot read {page}: {error.strerror}; restore it") from None


def _with_part(text: str, page: Path, part: str) -> str:
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise DataError(
            f"{page} has lost a mark; it needs the lines\n{BEGIN}\n{END}\nbetween which the made part stands"
        )
    return f"{head}{BEGIN}\n\n{part}\n{END}{tail}"


def made_part(lines: Lines, measured: Measured) -> str:
    """Everything between the marks, as Markdown."""
    short = [_in_short(one, measured.figures[one.id]) for one in lines.line]
    blocks = ["## In short", "\n".join(filter(None, short))] if any(short) else []
    for topic in lines.topic:
        rows = [found for found in lines.line if found.topic == topic.name and _ran(measured, found)]
        if rows:
            blocks += [f"## {topic.title}", *([topic.intro] if topic.intro else [])]
            blocks += [_entry(found, measured.figures[found.id]) for found in rows]
    if measured.outcomes:
        blocks += ["## Every measured setting", _settings(measured.outcomes)]
    waiting = [found for found in lines.line if not _ran(measured, found)]
    if waiting:
        blocks += ["## Written, and not run", "\n".join(_waiting(found) for found in waiting)]
    return "\n\n".join(blocks) + "\n"


def _in_short(line: Line, figures: tuple[Figure, ...]) -> str:
    part = {"shown": "", "in part": f" ({status_words(figures)})"}
    status = status_of(figures)
    return f"- {line.say}{part[status]}." if status in part else ""


def _ran(measured: Measured, line: Line) -> bool:
    return status_of(measured.figures[line.id]) != "not run"


def _entry(line: Line, figures: Sequence[Figure]) -> str:
    words = status_words(tuple(figures))
    if supported(tuple(figures)):
        said = f"**{line.say}**: {words}.{_what_to_set(line.change)}"
    else:
        said = f"{_capital(words.replace(': ', ', '))}: *{line.say}*."
    ran = [found for found in figures if found.support != "not run"]
    places: dict[tuple[str, str], list[str]] = {}
    for found in ran:
        places.setdefault((found.study, _capital(found.where)), []).append(found.text)
    rows: list[str] = []
    for (study, where), texts in places.items():
        page = f"[{study.replace('_', ' ')}](evidence/{study}.md)"
        rows.append(f"- {where}, {page}:" if where else f"- {_capital(page)}:")
        rows += [f"    - {text}" for text in texts]
    return f"{said} {line.note}".strip() + "\n\n" + "\n".join(rows)


def _capital(words: str) -> str:
    return words[:1].upper() + words[1:]


def _what_to_set(change: Change | None) -> str:
    if change is None:
        return ""
    said = [f"the loss to `{change.loss}`"] if change.loss else []
    said += [f"`{key} = {_toml(value)}`" for key, value in change.set.items()]
    if change.drop and not change.loss:
        return f" Leave out {' or '.join(f'`+{name}`' for name in change.drop)}."
    return f" Set {' and '.join([*said, *(f'`+{name}`' for name in change.add)])}."


def _toml(value: str | float | bool) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value).lower() if isinstance(value, bool) else f"{value:g}"


def _settings(outcomes: Sequence[Outcome]) -> str:
    """A row for each measured setting, with every objective, the highest first."""
    rows = ["| setting | how each ended | page |", "| - | - | - |"]
    cells: dict[tuple[str, str], list[Outcome]] = {}
    for found in outcomes:
        cells.setdefault((found.study, found.cell), []).append(found)
    for (study, _), here in sorted(cells.items(), key=lambda pair: (pair[1][0].setting.lag or 0, pair[0])):
        first = here[0]
        shared = common([one.setting for one in here]).words
        setting = _capital(", ".join(filter(None, (shared, first.beside))))
        ended = "; ".join(f"{one.configuration} {one.text}" for one in sorted(here, key=lambda one: -one.mean))
        start = f" (start {first.start})" if first.start else ""
        rows.append(
            f"| {setting} | {first.metric}{start}: {ended} | [{study.replace('_', ' ')}](evidence/{study}.md) |"
        )
    return "\n".join(rows)


def _waiting(line: Line) -> str:
    names = dict.fromkeys(found.study for found in line.evidence)
    return f"- {line.say} ({', '.join(f'`studies/{name}.toml`' for name in names)}). {line.note}".rstrip()
