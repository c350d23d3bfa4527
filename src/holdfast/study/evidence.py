"""Results and pages of studies on disk, and the check that every page follows from its results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from holdfast.errors import HoldfastError
from holdfast.report.page import write_page
from holdfast.study import diagnosis
from holdfast.study.definition import Study, read_study
from holdfast.study.markdown import markdown_page
from holdfast.study.page import study_page
from holdfast.study.results import read_results, write_results
from holdfast.train.keep.files import write_text


def write_evidence(folder: Path, name: str, study: Study, results: Mapping[str, Any]) -> list[Path]:
    """NAME.json, and NAME.md made from what was just written."""
    path = folder / f"{name}.json"
    write_results(path, results)
    study, kept = read_results(path)
    page = path.with_suffix(".md")
    write_text(page, markdown_page(study, kept, name))
    return [path, page]


def write_charts(path: Path, results: Path) -> Path:
    """The page with charts, made from a results' file.

    Raises:
        DataError: the results cannot be read, or the page not be written.
    """
    study, kept = read_results(results)
    return write_page(path, study_page(study, kept, results.stem))


def check_evidence(folder: Path, studies: Path) -> list[str]:
    """What does not follow: a page that its results do not give, results of another study than the file's, orphans."""
    found = _check_diagnosis(folder)
    for path in sorted(folder.glob("*.json")):
        if path.stem == diagnosis.NAME:
            continue
        try:
            study, results = read_results(path)
        except HoldfastError as error:
            found.append(str(error))
            continue
        page = path.with_suffix(".md")
        if not page.is_file():
            found.append(f"{page} is missing; `holdfast study {path}` writes it")
        elif page.read_text(encoding="utf-8") != markdown_page(study, results, path.stem):
            found.append(f"{page} does not follow from {path.name}; `holdfast study {path}` writes it anew")
        file = studies / f"{path.stem}.toml"
        if not file.is_file():
            found.append(f"{path} has no study {file}; put the study's file there, or remove its results")
        elif (now := read_study(file).hash) != study.hash:
            found.append(
                f"{path} was made with another {file.name} (hash {study.hash}, now {now}); run `holdfast study "
                f"{path.stem}` again, or restore the file"
            )
    results_of = {path.stem for path in folder.glob("*.json")}
    return found + [
        f"{page} has no results {page.stem}.json; remove it, or run `holdfast study {page.stem}`"
        for page in sorted(folder.glob("*.md"))
        if page.stem not in results_of and page.stem != "README"
    ]


def _check_diagnosis(folder: Path) -> list[str]:
    """What does not follow in the diagnosis, where there is one: its page, and which runs collapsed."""
    path = folder / f"{diagnosis.NAME}.json"
    if not path.is_file():
        return []
    try:
        runs = diagnosis.read_diagnosis(path)
    except HoldfastError as error:
        return [str(error)]
    again = "`holdfast study --diagnose` writes it anew"
    page = path.with_suffix(".md")
    written = page.read_text(encoding="utf-8") if page.is_file() else ""
    found = [] if written == diagnosis.diagnosis_page(runs) else [f"{page} does not follow from {path.name}; {again}"]
    for name in sorted({run["study"] for run in runs}):
        try:
            _, results = read_results(folder / f"{name}.json")
        except HoldfastError as error:
            found.append(f"{path}: {error}")
            continue
        ended = [run for run in results["runs"] if run["for"] == "reporting" and run["state"] == "finished"]
        if _ends(ended) != _ends([run for run in runs if run["study"] == name]):
            found.append(f"{path} has other runs of {name} than {name}.json; {again}")
    return found


def _ends(runs: Sequence[Mapping[str, Any]]) -> set[tuple[str, str, int, bool]]:
    return {(run["configuration"], str(run["cell"]), run["seed"], run["collapsed"]) for run in runs}
