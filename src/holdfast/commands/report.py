"""`holdfast report RUN [RUN ...]`: write a run's page anew, at any time, and several runs over each other."""

from __future__ import annotations

import argparse
from pathlib import Path

from holdfast.errors import DataError
from holdfast.report.overlay import names_of, write_overlay
from holdfast.report.run import write_run_report


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    made = argparse.ArgumentParser(
        prog="holdfast report",
        description="Write report.html of a run's folder from what is there, whether the run is over or not. Of "
        "several runs write a page with their curves over each other.",
        allow_abbrev=False,
    )
    made.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folder that holdfast train wrote")
    made.add_argument("--out", type=Path, metavar="FILE", help="page of several runs (default: report-A-B.html)")
    return made


def run(argv: list[str]) -> int:
    """Write RUN/report.html of one run, or the page of several, whether they are finished, running or killed."""
    options = parser().parse_args(argv)
    folders = list(dict.fromkeys(options.runs))
    for folder in folders:
        if folder.is_dir() and not (folder / "config.toml").is_file():
            raise DataError(f"{folder} is no run: it has no config.toml; give the folder that `holdfast train` wrote")
    if len(folders) == 1:
        if options.out is not None:
            raise DataError(
                f"--out {options.out} is for the page of several runs; one run's is {folders[0]}/report.html"
            )
        print(f"wrote {write_run_report(folders[0])}")
        return 0
    named = "-".join(name.replace("/", "_") for name in names_of(folders))
    out = options.out or Path(f"report-{named[:100]}.html")
    print(f"wrote {write_overlay(folders, out)}")
    return 0
