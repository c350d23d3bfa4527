"""`holdfast audit PATH`: logged rollouts in, a verdict out; exit code 0 clean, 1 findings, 2 unusable input."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from holdfast.audit.auditor import Audit, Auditor
from holdfast.audit.finding import SEVERITIES, at_least
from holdfast.audit.reading import Reading
from holdfast.audit.source import find_files, read_files
from holdfast.errors import DataError


def run(argv: Sequence[str]) -> int:
    """Audit a file or folder."""
    options = _parser().parse_args(argv)
    audit = audit_path(options.path, Reading(allow_pickle=options.allow_pickle))
    for finding in audit.findings:
        print(f"[{finding.severity}] {finding.name}: {finding.headline}")
    return int(any(at_least(f.severity, options.fail_on) for f in audit.findings))


def audit_path(path: Path, reading: Reading) -> Audit:
    """Read everything under a path; raises DataError where no usable rollout is found."""
    auditor = Auditor(reading)
    for file, chunk in read_files(find_files(path), reading):
        auditor.feed(chunk, str(file.path))
    audit = auditor.result()
    if audit.facts.sequences == 0:
        reasons = ", ".join(f"{n} × {kind}" for kind, n in reading.rejected.most_common())
        raise DataError(f"{path}: no usable rollout ({reasons or 'no records'})")
    return audit


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="holdfast audit", description=__doc__)
    parser.add_argument("path", type=Path, help="a file or folder of logged rollouts")
    parser.add_argument("--allow-pickle", action="store_true", help="read pickles, which can run any code")
    parser.add_argument("--fail-on", choices=SEVERITIES, default="warning", help="exit with 1 at this severity")
    return parser
