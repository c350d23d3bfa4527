"""Imports go down only, within folders too; files stay few and short; `import holdfast` loads nothing heavy."""

import ast
import itertools
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import holdfast

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
    "check_loss": {"objectives", "core", "types", "errors"},
    "report": {"objectives", "core", "rollout", "types", "errors"},
    "guard": {"audit", "errors"},
    "train": {"guard", "objectives", "core", "kernels", "rollout", "tasks", "report", "types", "errors"},
    "audit": {"objectives", "core", "rollout", "report", "types", "errors"},
    "study": {"audit", "train", "report", "errors"},
    "advice": {"study", "audit", "train", "integrations", "objectives", "core", "errors"},
    "preflight": {"audit", "train", "objectives", "core", "rollout", "report", "types", "errors"},
    "integrations": {"guard", "objectives", "core", "kernels", "rollout", "types", "errors"},
    "launch": {"integrations", "train", "guard", "objectives", "core", "rollout", "tasks", "types", "errors"},
}
ORDER = {
    "objectives": "parts policy_term metrics checks composition objective whole_step table presets",
    "check_loss": "cases trl shapes laws split rows report",
    "rollout": "support engine pretrained models footer store rescore embedded outside engines",
    "report": (
        "charts page tokens metrics catalog curves learning words survey browse run_figures presets titles compare "
        "overlay run"
    ),
    "train": "settings keep policy sampling estimate warmstart update setup evaluate brake show loop compare session",
    "train/brake": "step_gain snapshot judge certificate controller brake",
    "study": "definition plan statistics results run judge markdown page rollout_signals diagnosis evidence",
    "advice": "lines setting traits measured change advising rollouts show resolve choosing",
    "audit": "course read measure judge shards show simulate",
    "audit/read": "columns codec reading prefetch raw scalars loaders rescore overlap source",
    "audit/measure": (
        "adding estimate tokens alignment stretches edges repeats extremes retokenised view binned contrast levels "
        "by_step sample statistics"
    ),
    "audit/judge": "finding fixes_by_flags fixes more checks attribution course auditor verdict advice",
    "audit/judge/checks": "check lights places calibration lengths data drift training credit",
    "audit/shards": "shard processes cluster",
    "audit/show": "jsonout page terminal outputs",
    "preflight": (
        "grid prompts observe plan gap bench causes stability served sync numerics findings thresholds inspect session "
        "show"
    ),
    "preflight/show": "words jsonout terminal page",
}
"""Files and folders of a folder, each of which may import those named before it."""
APART = [
    ("rollout/embedded", "rollout/outside"),
    *itertools.permutations([f"audit/judge/checks/{kind}" for kind in ("data", "drift", "training", "credit")], 2),
]
"""Folders of which the second is never imported by the first."""
MOST_FILES = 15
"""At one level, `__init__.py` not counted: what a reader takes in at a glance."""
INDEXED = {"commands"}
"""Folders with one file for each entry of a list that users see: `holdfast --help` is their table of contents."""
HEAVY = ["transformers", "tokenizers", "vllm", "trl", "verl", "ray", "triton", "pyarrow", "pydantic", "rich"]
FILES = [path for path in ROOT.rglob("*.py") if path.relative_to(ROOT).parts[0].removesuffix(".py") in BELOW]


MODULES = {".".join(("holdfast", *path.relative_to(ROOT).with_suffix("").parts)): path for path in ROOT.rglob("*.py")}


def imported_names(path):
    """Dotted names that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def imported_files(path):
    """Files of holdfast that a file imports."""
    for name in imported_names(path):
        candidates = (name, f"{name}.__init__", name.rpartition(".")[0], f"{name.rpartition('.')[0]}.__init__")
        found = next((MODULES[candidate] for candidate in candidates if candidate in MODULES), None)
        if found is not None and found != path:
            yield found


IMPORTS = {path: set(imported_files(path)) for path in MODULES.values()}


def imported(path):
    """Packages of holdfast that a file imports."""
    return {found.relative_to(ROOT).parts[0].removesuffix(".py") for found in IMPORTS[path]} - {"__init__"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down_only(path):
    own = path.relative_to(ROOT).parts[0].removesuffix(".py")
    assert set(imported(path)) <= BELOW[own] | {own}


@pytest.mark.parametrize(
    "path", [p for p in FILES if p.relative_to(ROOT).parts[0] in ("core", "objectives")], ids=lambda p: p.name
)
def test_mathematics_imports_torch_and_shapes_only(path):
    allowed = {"torch", "jaxtyping", "holdfast", *sys.stdlib_module_names}
    assert {name.split(".")[0] for name in imported_names(path)} <= allowed


@pytest.mark.parametrize("folder", ORDER)
def test_imports_run_one_way_within_a_folder(folder):
    order = {name: place for place, name in enumerate(ORDER[folder].split())}
    inside = {p.relative_to(ROOT / folder).parts[0].removesuffix(".py") for p in (ROOT / folder).rglob("*.py")}
    assert set(order) == inside - {"__init__"}, "name every file and folder"
    for path in (ROOT / folder).rglob("*.py"):
        own = path.relative_to(ROOT / folder).parts[0].removesuffix(".py")
        for found in IMPORTS[path]:
            if found.is_relative_to(ROOT / folder) and own != "__init__":
                other = found.relative_to(ROOT / folder).parts[0].removesuffix(".py")
                assert other == own or order[other] < order[own], f"{path} imports {found}"


@pytest.mark.parametrize(("folder", "other"), APART)
def test_folders_beside_each_other_do_not_meet(folder, other):
    assert not [
        (path, found)
        for path in (ROOT / folder).rglob("*.py")
        for found in IMPORTS[path]
        if found.is_relative_to(ROOT / other)
    ]


def test_no_file_is_in_a_circle():
    left = dict(IMPORTS)
    while free := [path for path, needed in left.items() if not needed & set(left)]:
        for path in free:
            del left[path]
    assert not left, f"in or behind a circle: {sorted(str(path.relative_to(ROOT)) for path in left)}"


def test_a_folder_is_taken_in_at_a_glance():
    folders = {ROOT, *(path.parent for path in ROOT.rglob("*.py"))}
    counts = {str(f.relative_to(ROOT)): sum(p.stem != "__init__" for p in f.glob("*.py")) for f in folders}
    assert not {folder: n for folder, n in counts.items() if n > MOST_FILES and folder not in INDEXED}


def test_every_folder_says_what_lives_there():
    for path in ROOT.rglob("__init__.py"):
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
        assert text, path
    assert all((path.parent / "__init__.py").exists() for path in ROOT.rglob("*.py"))


def test_importing_holdfast_loads_nothing_heavy():
    code = f"import sys, holdfast; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_help_needs_no_torch():
    code = "import sys; from holdfast.cli import dispatch; dispatch(['--help']); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "holdfast COMMAND" in done.stdout


def test_every_public_name_is_there_and_no_other():
    code = "import holdfast; print([n for n in holdfast.__all__ if getattr(holdfast, n, None) is None], dir(holdfast))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("[] ") and "'preset'" in done.stdout
    with pytest.raises(AttributeError, match="no attribute 'presets_of'"):
        holdfast.presets_of  # noqa: B018
    assert holdfast.kernels.lm_head_stats is not None


def test_files_stay_readable():
    long = {str(p.relative_to(ROOT)): n for p in ROOT.rglob("*.py") if (n := len(p.read_text().splitlines())) > 420}
    assert not long, f"over 400 lines: {long}"


@pytest.mark.parametrize("environment", ["trl", "verl", "vllm"])
def test_locked_environments_have_all_that_the_package_needs(environment):
    """They are installed with --no-deps: what is left out is missing when something there first imports it."""
    project = tomllib.loads((ROOT.parents[1] / "pyproject.toml").read_text())["project"]
    locked = (ROOT.parents[1] / "requirements" / f"test-{environment}.txt").read_text().splitlines()
    names = {line.partition("==")[0].lower().replace("_", "-") for line in locked}
    assert {re.split(r"[^\w-]", needed, maxsplit=1)[0] for needed in project["dependencies"]} <= names
