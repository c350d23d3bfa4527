"""Every check finds its fault, healthy runs raise no alarm, and the page that says how often is not stale."""

import re
from collections import Counter
from pathlib import Path

import pytest

from holdfast.audit.judge.checks import CHECKS
from holdfast.audit.simulate import FAULTS
from holdfast.audit.simulate.evaluate import SIZES, detected, false_alarms, healthy_plan, main, page

DOCUMENT = Path(__file__).parents[3] / "docs" / "audit_checks.md"


@pytest.mark.slow
def test_every_fault_is_found_at_its_strongest():
    found = {name for name, _ in detected(1, list(FAULTS), strongest=True)}
    assert found == set(FAULTS)


def test_every_check_has_a_fault():
    assert {f.check for f in FAULTS.values()} == {c.name for c in CHECKS}


@pytest.mark.parametrize("seed", range(8))
def test_healthy_runs_raise_no_alarm(seed):
    assert false_alarms(seed, 16) == set()


def test_sizes_are_shared_out_as_said():
    assert sum(share for _, _, share in SIZES) == pytest.approx(1)
    assert healthy_plan(1, 64, 50) == healthy_plan(1, 64, 50)
    assert healthy_plan(1, 64, 50, age=7).age == 7


def test_a_page_of_nothing_but_one_check(capsys):
    main(["--healthy", "0", "--faulty", "1", "--only", "shifted_by_one"])
    out = capsys.readouterr().out
    assert "| `shifted_by_one` | *s* of the sequences log one token late | 2%: **100%**" in out
    assert "temperature_mismatch` |" in out


def test_the_page_lists_what_exists():
    """What was measured cannot be checked in seconds; which checks, faults and strengths there are can."""
    found = {(f.name, s): 0 for f in FAULTS.values() for s in f.strengths}
    bare = re.compile(r"\*\*\d+%\*\*|\d+ of \d+ \||planted in \d+ random")
    written = bare.sub("#", DOCUMENT.read_text(encoding="utf-8"))
    assert written == bare.sub("#", page(Counter(), 200, found, 10)), "run python -m holdfast.audit.simulate.evaluate"
