"""Imports go down only, and `import holdfast` loads torch and nothing heavier."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "src" / "holdfast"
BELOW = {
    "types": {"errors"},
    "errors": set(),
    "core": {"types", "errors"},
    "objectives": {"core", "types", "errors"},
    "kernels": {"types", "errors"},
    "rollout": {"core", "types", "errors"},
    "tasks": {"errors"},
    "lab": {"objectives", "core", "types", "errors"},
    "report": {"objectives", "core", "rollout", "types", "errors"},
    "train": {"objectives", "core", "kernels", "rollout", "tasks", "report", "types", "errors"},
    "audit": {"objectives", "core", "rollout", "report", "types", "errors"},
    "integrations": {"objectives", "core", "kernels", "rollout", "types", "errors"},
    "launch": {"integrations", "train", "objectives", "core", "rollout", "tasks", "types", "errors"},
}
HEAVY = ["transformers", "tokenizers", "vllm", "trl", "verl", "ray", "triton", "pyarrow", "pydantic", "rich"]
FILES = [path for path in ROOT.rglob("*.py") if path.relative_to(ROOT).parts[0].removesuffix(".py") in BELOW]


def imported(path):
    """Packages of holdfast that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        for name in names:
            if name.startswith("holdfast."):
                yield name.split(".")[1]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down_only(path):
    own = path.relative_to(ROOT).parts[0].removesuffix(".py")
    assert set(imported(path)) <= BELOW[own] | {own}


@pytest.mark.parametrize("path", [p for p in FILES if p.parts[-2] in ("core", "objectives")], ids=lambda p: p.name)
def test_mathematics_imports_torch_and_shapes_only(path):
    allowed = {"torch", "jaxtyping", "holdfast", *sys.stdlib_module_names}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        assert {name.split(".")[0] for name in names} <= allowed


def test_importing_holdfast_loads_nothing_heavy():
    code = f"import sys, holdfast; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_files_stay_readable():
    long = {str(p.relative_to(ROOT)): n for p in ROOT.rglob("*.py") if (n := len(p.read_text().splitlines())) > 420}
    assert not long, f"over 400 lines: {long}"
