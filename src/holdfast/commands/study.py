"""`holdfast study NAME`: run the study of a claim and write its evidence; `--check` holds every page to its results."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console

from holdfast.advice.choosing import Places, check_choosing, write_choosing
from holdfast.errors import ConfigError
from holdfast.study.definition import Study, find_study, read_study
from holdfast.study.diagnosis import diagnosed_runs, write_diagnosis
from holdfast.study.evidence import check_evidence, write_charts, write_evidence
from holdfast.study.judge import account, claim_verdict, judge
from holdfast.study.plan import check_plan, total_runs
from holdfast.study.results import read_results
from holdfast.study.run import collect_study, planned_runs, run_study
from holdfast.train.settings.device import refuse_several_processes

STUDIES = Path("studies")
EVIDENCE = Path("docs/evidence")


def run(argv: list[str]) -> int:
    """Run a study; 0 when every run has ended, 1 when some could not be run or a page does not follow."""
    options = parser().parse_args(argv)
    if options.diagnose:
        return _diagnose(options)
    if options.choosing:
        print("\n".join(str(path) for path in write_choosing(Places(options.evidence or EVIDENCE, STUDIES))))
        return 0
    if options.check:
        return _check(options.evidence or EVIDENCE)
    if options.study is None:
        known = ", ".join(sorted(path.stem for path in STUDIES.glob("*.toml"))) or "none here"
        raise ConfigError(f"which study? give a name ({known}) or a TOML file: holdfast study NAME --jobs 2")
    if options.jobs < 1:
        raise ConfigError(f"--jobs {options.jobs}: must be at least 1")
    if options.study.endswith(".json"):
        return _draw(Path(options.study), options)
    return _study(options)


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    made = argparse.ArgumentParser(
        prog="holdfast study",
        usage="holdfast study NAME|FILE.toml [--jobs N] | holdfast study RESULTS.json | holdfast study --check | "
        "holdfast study --choosing",
        description="Test a claim on trained models: the study's file names configurations, factors, seeds, the number "
        "that decides and what would refute the claim.",
        epilog="An interrupted study continues when the same command is given again. docs/studies.md says more.",
        allow_abbrev=False,
    )
    made.add_argument("study", nargs="?", help="name of a file in studies/, a TOML file, or results to draw")
    made.add_argument("--jobs", type=int, default=1, help="runs at the same time, each in its own process")
    made.add_argument("--out", type=Path, help="folder of the runs and the charts (default: runs/studies/NAME)")
    made.add_argument("--evidence", type=Path, help=f"folder of results and page (default: {EVIDENCE} or --out)")
    made.add_argument("--collect", action="store_true", help="start nothing: write the evidence of the runs there")
    made.add_argument("--plan", action="store_true", help="start nothing: say how many runs the study has")
    made.add_argument("--check", action="store_true", help="check that every page follows from its results")
    made.add_argument(
        "--choosing",
        action="store_true",
        help="write what is made of the evidence in docs/choosing.md, and what `holdfast advise` says",
    )
    made.add_argument(
        "--diagnose",
        action="store_true",
        help="which numbers spoke before a collapse, over the runs of all studies in --out (default: runs/studies)",
    )
    return made


def _study(options: argparse.Namespace) -> int:
    refuse_several_processes(options.study)
    path = find_study(options.study, STUDIES)
    study = read_study(path)
    check_plan(study, str(path))
    if options.plan:
        print(f"{study.title}: {total_runs(study)} runs, {len(study.configuration)} configurations")
        return 0
    out = options.out or Path("runs") / "studies" / path.stem
    console = Console()
    failures: list[str] = []
    if not options.collect:
        try:
            failures = run_study(
                study,
                str(path),
                out,
                out.parent / "warm_start",
                options.jobs,
                lambda text: console.print(text, markup=False, highlight=False, soft_wrap=True),
            )
        except KeyboardInterrupt:
            print(f"\nholdfast study: interrupted; the same command continues in {out}", file=sys.stderr)
            return 130
    ours = EVIDENCE.is_dir() and path.resolve().parent == STUDIES.resolve()
    _write(study, str(path), path.stem, out, options.evidence or (EVIDENCE if ours else out))
    for failure in failures:
        print(failure, file=sys.stderr)
    return 1 if failures else 0


def _write(study: Study, origin: str, name: str, out: Path, evidence: Path) -> None:
    results = collect_study(study, origin, out)
    written = write_evidence(evidence, name, study, results)
    charts = write_charts(out / "report.html", written[0])
    _say(*read_results(written[0]))
    print("\n".join(["", *(f"{path}" for path in (*written, charts))]))
    if Places(evidence, STUDIES).page.is_file():
        print("holdfast study --choosing writes docs/choosing.md and what holdfast advise says from it")


def _draw(path: Path, options: argparse.Namespace) -> int:
    """Both pages anew, from results alone."""
    study, results = read_results(path)
    out = options.out or Path("runs") / "studies" / path.stem
    out.mkdir(parents=True, exist_ok=True)
    written = write_evidence(options.evidence or path.parent, path.stem, study, results)
    charts = write_charts(out / "report.html", path)
    _say(study, results)
    print("\n".join(["", str(written[1]), str(charts)]))
    return 0


def _say(study: Study, results: dict) -> None:
    judged = judge(study, results)
    print(f"{claim_verdict(judged)} {account(results)}")
    for row in judged:
        where = ", ".join(f"{name} {value}" for name, value in row.cell.items())
        print(f"- {where + ': ' if where else ''}{row.sentence}")


def _diagnose(options: argparse.Namespace) -> int:
    """Over every study that has results and a file."""
    folder, root = options.evidence or EVIDENCE, options.out or Path("runs") / "studies"
    runs: list[dict] = []
    for path in sorted(STUDIES.glob("*.toml")):
        if (folder / f"{path.stem}.json").is_file():
            study = read_study(path)
            print(f"reading the runs of {path.stem}", file=sys.stderr)
            runs += diagnosed_runs(study, path.stem, planned_runs(study, str(path), root / path.stem), root / path.stem)
    if not runs:
        raise ConfigError(
            f"no finished run of a study with results in {folder} is in {root}; run a study first, or name the folder "
            "of the studies' runs with --out"
        )
    print("\n".join(str(path) for path in write_diagnosis(folder, runs)))
    return 0


def _check(folder: Path) -> int:
    if not folder.is_dir():
        raise ConfigError(f"{folder} does not exist; run in a checkout, or name the folder with --evidence")
    found = check_evidence(folder, STUDIES)
    places = Places(folder, STUDIES)
    found += check_choosing(places) if places.page.is_file() else []
    for text in found:
        print(text, file=sys.stderr)
    if not found:
        print(f"every page in {folder} follows from its results")
    return 1 if found else 0
