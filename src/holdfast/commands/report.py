"""`holdfast report RUN`: write a run's page anew, at any time."""

from __future__ import annotations

import argparse
from pathlib import Path

from holdfast.errors import DataError
from holdfast.report.run import write_run_report


def run(argv: list[str]) -> int:
    """Write RUN/report.html of one or several runs, finished, running or killed."""
    parser = argparse.ArgumentParser(
        prog="holdfast report",
        description="Write report.html of a run's folder from what is there, whether the run is over or not.",
        allow_abbrev=False,
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folder that holdfast train wrote")
    folders = parser.parse_args(argv).runs
    for folder in folders:
        if folder.is_dir() and not (folder / "config.toml").is_file():
            raise DataError(f"{folder} is no run: it has no config.toml; give the folder that `holdfast train` wrote")
        print(f"wrote {write_run_report(folder)}")
    return 0
