"""Frameworks write the same rollouts more than once: of a run's files, those that tell the most of each sequence."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterable, Sequence
from pathlib import Path

from holdfast.audit.read.loaders import miles
from holdfast.audit.read.loaders.loader import SourceFile
from holdfast.audit.read.raw.compressed import plain_name
from holdfast.rollout.store import run_id

_LAYOUT = {"token_exports", "rollouts", "train_data", "rollout_data", "dashboard_columns", "dumped_data", "monitors"}
_STEP = re.compile(r"step_\d+$")


def without_repeats(files: Sequence[SourceFile], note: Callable[[str], None]) -> list[SourceFile]:
    """The files of a folder without those whose rollouts another one has in full; each kind left out is noted."""
    kept = list(files)
    for rule, why in _RULES:
        left_out = rule(kept)
        if left_out:
            kept = [file for file in kept if file.path not in left_out]
            if why:
                note(f"{len(left_out)} files left out: {why}")
    return kept


def note_mixture(files: Sequence[SourceFile], note: Callable[[str], None]) -> None:
    """Say so where a folder holds files of several sources or of several runs: all numbers then mix them."""
    titles = sorted({file.loader.title for file in files})
    if len(titles) > 1:
        note(f"files of several sources are taken together ({', '.join(titles)}): audit one of them to tell them apart")
    named = sorted({name for file in files if file.path.suffix == ".parquet" and (name := run_id(file.path))})
    if len(named) > 1:
        shown = ", ".join(named[:5]) + (", …" if len(named) > 5 else "")
        note(
            f"these files are of {len(named)} runs ({shown}), and everything below mixes them; steps and sequences "
            "of the same number are different ones: audit the folder of one run"
        )
        return
    runs = sorted({run_of(file.path) for file in files})
    if len(runs) > 1:
        shown = ", ".join(run.name or str(run) for run in runs[:5]) + (", …" if len(runs) > 5 else "")
        note(f"files of {len(runs)} folders are taken for one run: {shown}; audit them one by one if they are several")


def run_of(path: Path) -> Path:
    """The folder of the run: above the first folder that a framework's layout names."""
    parts = path.parent.parts
    for place, part in enumerate(parts):
        if part in _LAYOUT or _STEP.match(part):
            return Path(*parts[:place])
    return path.parent


def _other_ranks(files: Iterable[SourceFile]) -> set[Path]:
    ranks = [file.path for file in files if file.loader.name == "miles"]
    return {path for path in ranks if miles.siblings(path)[0] != path}


def _rollouts_with_train_data(files: Iterable[SourceFile]) -> set[Path]:
    """Rollout dumps of steps whose train dump is there too, which has the trainer's log-probabilities beside them."""
    trained = {_dump(f.path) for f in files if f.path.parent.name == "train_data"}
    dumped = [f.path for f in files if f.path.parent.name in ("rollout_data", "dashboard_columns")]
    return {path for path in dumped if _dump(path) in trained}


def _columns_with_rollouts(files: Iterable[SourceFile]) -> set[Path]:
    dumped = {_dump(f.path) for f in files if f.path.parent.name == "rollout_data"}
    return {f.path for f in files if f.path.parent.name == "dashboard_columns" and _dump(f.path) in dumped}


def _dump(path: Path) -> Hashable:
    """The run and the step of a dump of slime or miles."""
    stem = Path(plain_name(path)).stem
    if path.parent.name == "dashboard_columns":
        stem = stem.removeprefix("rollout_")
    elif path.parent.name == "train_data":
        stem = stem.split("_")[0]
    return run_of(path), stem


def _traces_with_exports(files: Iterable[SourceFile]) -> set[Path]:
    exported = {run_of(f.path) for f in files if f.loader.name == "prime_rl_tokens"}
    return {f.path for f in files if f.loader.name == "traces" and run_of(f.path) in exported}


def _traces_of_all(files: Iterable[SourceFile]) -> set[Path]:
    """all/traces.jsonl where the trained part of it is in effective/traces.jsonl."""
    paths = {f.path for f in files if f.loader.name == "traces"}
    return {p for p in paths if p.parent.name == "all" and p.parent.parent / "effective" / p.name in paths}


def _evaluations(files: Iterable[SourceFile]) -> set[Path]:
    files = list(files)
    evaluated = {f.path for f in files if "eval" in f.path.parts[-4:-1] and f.loader.name == "traces"}
    evaluated |= {f.path for f in files if f.path.name.startswith("eval_") and f.loader.name in ("slime", "miles")}
    return evaluated if len(evaluated) < len(files) else set()


def _packed_beside_plain(files: Iterable[SourceFile]) -> set[Path]:
    paths = {f.path for f in files}
    return {p for p in paths if p.name != plain_name(p) and p.with_name(plain_name(p)) in paths}


_RULES: tuple[tuple[Callable[[Iterable[SourceFile]], set[Path]], str], ...] = (
    (_packed_beside_plain, "they lie unpacked beside them"),
    (_other_ranks, ""),
    (_evaluations, "rollouts of evaluations, which are sampled by other rules and train nothing"),
    (_rollouts_with_train_data, "their rollouts are in train_data/, with the trainer's log-probabilities beside them"),
    (_columns_with_rollouts, "their rollouts are in rollout_data/"),
    (_traces_with_exports, "their rollouts are in token_exports/, with the trainer's log-probabilities beside them"),
    (_traces_of_all, "what was trained of them is in effective/traces.jsonl"),
)
