"""The page docs/oracles.md, made from the tables that the tests run: `PYTHONPATH=tests python -m oracles.page`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from oracles import trl_rows, verl_rows
from oracles.rows import BATCHES, TOLERANCE, WIDEST, Difference, Row

PAGE = Path(__file__).parents[2] / "docs" / "oracles.md"

BAR = "\\|"
"""A bar inside a cell of a Markdown table."""

_KINDS = {
    "defect": "Defects: the peer does not do what its setting or its documentation says",
    "choice": "Choices: two defensible estimators",
    "epsilon": "Epsilons and precision",
    "missing": "Missing here: what the algebra has no part for",
}

_LIMIT = f"{TOLERANCE:g}".replace("e-0", "e-")

_INTRO = f"""# Oracles

Holdfast's objectives against the losses of two released trainers. Each row of a table is one setting of the peer and
the Holdfast objective that equals it: on {BATCHES} random batches the peer's own code and ours give the same loss and
the same gradient of every log-probability and entropy, to {_LIMIT} relative in float64. The batches have ragged
lengths and holes (tool output), advantages per sequence or per token, a quarter of them zero, and log-ratios from .02
to {WIDEST} (or as the row's remark says). Gradient elements below 1e-13 of the largest, or of the advantages, are
rounding. Where the two part, the test named in the first column shows it.

`make test-trl` and `make test-verl` install the peer at the pinned version into an environment of its own and run
everything on this page. The page is made from the tables that those tests run, by
`PYTHONPATH=tests python -m oracles.page`; a test of the main suite says when it is stale.
"""


def render() -> str:
    """The whole page as Markdown."""
    trl = _peer(
        "TRL 1.16.0",
        "`GRPOTrainer._compute_loss` and the GMPO trainer's, called on a stand-in for the trainer that returns given "
        "log-probabilities and entropies; importance ratios and advantages from `_generate_and_score_completions`. "
        "Each row also holds without old log-probabilities, the old policy then being the current one.",
        {"Losses": trl_rows.ROWS, "Advantages": trl_rows.ADVANTAGES},
        trl_rows.DIFFERENCES,
    )
    verl = _peer(
        "verl 0.9.1",
        "The registered policy losses, `kl_penalty`, `agg_loss`, the rollout correction and the advantage estimators, "
        "called as its workers call them. Masks are compared token by token.",
        {
            "Losses": verl_rows.ROWS,
            "KL losses and the entropy bonus": verl_rows.PENALTIES,
            "Rejection masks": verl_rows.MASKS,
            "Advantages": verl_rows.ADVANTAGES,
        },
        verl_rows.DIFFERENCES,
    )
    return "\n".join([_INTRO, trl, verl])


def _peer(name: str, how: str, tables: Mapping[str, list[Row]], differences: list[Difference]) -> str:
    sections = [f"## {name}\n\n{how}\n"]
    sections += [f"### {title}\n\n{_same(rows)}\n" for title, rows in tables.items()]
    for kind, title in _KINDS.items():
        chosen = [difference for difference in differences if difference.kind == kind]
        if chosen:
            sections.append(f"### {title}\n\n{_apart(name.split()[0], chosen)}\n")
    return "\n".join(sections)


def _same(rows: list[Row]) -> str:
    lines = ["| peer | setting | Holdfast | remark |", "|-|-|-|-|"]
    for row in rows:
        remarks = [row.note] if row.note else []
        if row.widest != WIDEST:
            remarks.append(f"log-ratios to ±{row.widest:g}")
        if row.min_tokens > 1:
            remarks.append(f"at least {row.min_tokens} tokens")
        lines.append(_line(row.name, _settings(row), f"`{row.ours}`", "; ".join(remarks)))
    return "\n".join(lines)


def _line(*cells: str) -> str:
    return f"| {' | '.join(cell.replace('|', BAR) for cell in cells)} |"


def _settings(row: Row) -> str:
    settings: dict[str, Any] = {key: row.options[key] for key in ("loss_mode",) if key in row.options}
    return " ".join(f"`{key}={value!r}`" for key, value in (settings | dict(row.settings)).items())


def _apart(peer: str, differences: list[Difference]) -> str:
    lines = [f"| test | {peer} | Holdfast |", "|-|-|-|"]
    return "\n".join(lines + [_line(f"`{d.key}`", d.theirs, d.ours) for d in differences])


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
    print(f"wrote {PAGE}")
