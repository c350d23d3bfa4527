"""The pages of the preset table: one Markdown page and one figure per row, generated from the objects themselves.

`python -m holdfast.report.presets docs/presets` writes them; a test says when they are stale.
"""

from __future__ import annotations

import sys
from pathlib import Path

import tomli_w
import torch

from holdfast.objectives.objective import Objective
from holdfast.objectives.presets import TABLE, preset
from holdfast.report.charts.plots import Series, Svg, line_chart

_GRID = torch.cat([torch.linspace(-2.0, 2.0, 401, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)]).sort()


def gate_chart(objective: Objective) -> Svg:
    """The gated weight f(r) and the gradient coefficient against the ratio, for both signs of the advantage.

    The coefficient multiplies A ∇log π: f(r) e(r) through the ratio, f(r) through the score. For a pooled objective r
    is the pooled ratio of a sequence whose tokens all drift alike.
    """
    ratio = _GRID.values.exp()
    series = []
    for positive, sign in ((True, "A > 0"), (False, "A < 0")):
        at, which = _GRID.values[None], torch.full((1, len(ratio)), positive)
        value = objective.gate.log_value(at, which).exp()[0]
        slope = objective.gate.slope(at, which)[0]
        coefficient = value if objective.carrier == "score" else value * slope
        if objective.carrier == "ratio":
            series.append(Series(f"f(r), {sign}", ratio.tolist(), value.tolist()))
        series.append(Series(f"coefficient, {sign}", ratio.tolist(), coefficient.tolist()))
    return line_chart(
        series,
        title=f"{objective.name}: what a ratio is worth",
        x_label=f"ratio θ/{objective.denominator}",
        y_label="weight on A ∇log π",
        log_x=True,
    )


def preset_page(name: str) -> str:
    """The Markdown page of one row: source, formula, figure, configuration."""
    row, objective = TABLE[name], preset(name)
    needs = ", ".join(f"`{field}`" for field in sorted(objective.needs)) or "nothing beyond logprobs"
    return f"""# {name}

{row.title}.

| | |
|-|-|
| source | {_cell(row.paper)} |
| there | {_cell(row.equation)} |
| defaults | {_cell(row.defaults)} |
| differs | {_cell(row.differs)} |
| needs | {needs} |
| acts | {acting(objective)} |

```
{objective.explain()}
```

![Weight and gradient coefficient of {name} against the ratio]({name}.svg)

Use it as `holdfast.preset("{name}")`, in a run file as `[objective] preset = "{name}"`, or joined with other rows:
`"{name}+..."`. The whole object, every value of which can be overridden:

```toml
{tomli_w.dumps(objective.to_dict()).rstrip()}
```
"""


def acting(objective: Objective) -> str:
    """With how many optimiser steps per rollout batch, and which settings, every part of an objective acts."""
    if not objective.idle_where_old:
        return "with any number of optimiser steps per rollout batch"
    settings = " and ".join(f'`{key} = "{value}"`' for key, value in objective.remedies.items())
    names = " and ".join(f"`{part.kind()}`" for part in objective.idle_where_old)
    return f"{names}: with two or more optimiser steps per rollout batch" + (
        f", or with {settings}" if settings else ""
    )


def _cell(text: str) -> str:
    """Text inside a Markdown table."""
    return text.replace("|", "\\|")


def index_page() -> str:
    """The table itself."""
    rows = "\n".join(f"| [{name}]({name}.md) | {row.title} | {row.paper} |" for name, row in TABLE.items())
    return f"""# The table of objectives

Every row is data: gates, pools, masks, weights and penalties put together (`src/holdfast/objectives/table/`).
Rows join with "+": `holdfast.preset("trm+sspo+kl_cov")`. These pages are generated from the objects by
`python -m holdfast.report.presets docs/presets`.

| preset | what it is | source |
|-|-|-|
{rows}
"""


def pages() -> dict[str, str]:
    """Every generated file: name to content."""
    files = {"README.md": index_page()}
    for name in TABLE:
        files[f"{name}.md"] = preset_page(name)
        files[f"{name}.svg"] = gate_chart(preset(name)).standalone()
    return files


def write_pages(folder: Path) -> int:
    """Write every page into `folder`; returns how many files there are."""
    folder.mkdir(parents=True, exist_ok=True)
    files = pages()
    for name, content in files.items():
        (folder / name).write_text(content, encoding="utf-8")
    return len(files)


if __name__ == "__main__":
    print(f"{write_pages(Path(sys.argv[1]))} files in {sys.argv[1]}")
