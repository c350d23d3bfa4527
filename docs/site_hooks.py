"""What the site has beside docs/: README, examples, CHANGELOG and CONTRIBUTING as pages, and the Python reference."""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parent.parent
PAGES = {
    "index.md": "README.md",
    "examples.md": "examples/README.md",
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
}
"""Page of the site, and the file of the repository that it is."""
MODULES = (
    "holdfast.types",
    "holdfast.objectives.objective",
    "holdfast.objectives.presets",
    "holdfast.objectives.parts.masks",
    "holdfast.objectives.parts.ratio_masks",
    "holdfast.objectives.parts.token_masks",
    "holdfast.objectives.parts.gates",
    "holdfast.objectives.parts.weights",
    "holdfast.objectives.parts.penalties",
    "holdfast.objectives.parts.covariance",
    "holdfast.core.bounds",
    "holdfast.core.certificate",
    "holdfast.core.betting",
    "holdfast.core.advise",
    "holdfast.core.divergences",
    "holdfast.core.entropy",
    "holdfast.kernels.head",
    "holdfast.rollout.engine",
    "holdfast.rollout.store",
    "holdfast.tasks.base",
    "holdfast.errors",
)
"""What a user calls, in the order of the reference."""
LINK = re.compile(r"\[([^\[\]]*)\]\((?!https?:|#|mailto:)([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that lie elsewhere."""
    for page, source in PAGES.items():
        text = _moved((ROOT / source).read_text(encoding="utf-8"), (ROOT / source).parent, "")
        files.append(File.generated(config, page, content=text))
    text = "# Python\n\n`import holdfast` brings the names of the first sections.\n\n"
    text += "\n\n".join(f"::: {module}" for module in MODULES)
    files.append(File.generated(config, "api.md", content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Links from docs to files outside docs lead to their pages, or are plain text where they have none."""
    source = page.file.abs_src_path
    if source is None:
        return markdown
    depth = len(Path(page.file.src_path).parent.parts)
    return _moved(markdown, Path(source).parent, "../" * depth)


def _moved(text: str, folder: Path, up: str) -> str:
    """`text` of a file in `folder` with its links as they are in the site, `up` leading to the site's root."""
    pages = {(ROOT / source).resolve(): page for page, source in PAGES.items()}

    def link(match: re.Match[str]) -> str:
        words, target, anchor = match[1], (folder / match[2]).resolve(), match[3] or ""
        if target in pages:
            return f"[{words}]({up}{pages[target]}{anchor})"
        if target.is_relative_to(ROOT / "docs") and target.is_file():
            return f"[{words}]({up}{target.relative_to(ROOT / 'docs')}{anchor})"
        return words  # a file of the repository that is no page

    parts = re.split(r"(```.*?```)", text, flags=re.DOTALL)
    return "".join(part if place % 2 else LINK.sub(link, part) for place, part in enumerate(parts))
