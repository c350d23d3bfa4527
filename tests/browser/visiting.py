"""Opens a page in headless Chromium at two widths and in both colour schemes, and says what a person would meet.

Needs Chromium and node on PATH, and `npm install --prefix .browser playwright-core axe-core` in the repository's root.
"""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
MODULES = Path(__file__).parents[2] / ".browser" / "node_modules"
NEEDS = [
    pytest.mark.skipif(CHROMIUM is None or shutil.which("node") is None, reason="no chromium or no node on PATH"),
    pytest.mark.skipif(
        not (MODULES / "axe-core").is_dir(), reason="run: npm install --prefix .browser playwright-core axe-core"
    ),
]
SIZES = ("380 light", "380 dark", "1200 light", "1200 dark")


def visit(page, *only):
    """What page.mjs saw, as it printed it; with "look" nothing is clicked."""
    command = ["node", str(Path(__file__).with_name("page.mjs")), str(page), str(CHROMIUM), str(MODULES), *only]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def barriers(page):
    """Everything that keeps somebody from reading the page: none of it may be there."""
    seen = visit(page, "look")
    found = [f"message: {text}" for text in seen["messages"]]
    for size in SIZES:
        found += [f"{size}: {line}" for line in seen["axe"][size]]
        found += [f"{size}: {over} wider than the screen" for over in seen["wide"][size]["elements"]]
        found += [f"{size}: {one}" for one in (*seen["spilled"][size], *seen["repeated"][size])]
    return found
