"""The small study with changes, and its results without any run."""

from typing import Any

import pytest

from holdfast.study.definition import Study, parse_study
from small_study import STUDY


@pytest.fixture
def make_study():
    """The study with some of its keys replaced."""

    def make(**changes: Any) -> Study:
        return parse_study(STUDY | changes, "study.toml")

    return make


@pytest.fixture
def results_of():
    """Results in which each configuration ends at these values, seed by seed from 2, in every cell."""

    def make(study: Study, ends: dict[str, list[float]], **more: Any) -> dict[str, Any]:
        from holdfast.study.plan import cells

        runs = [
            {
                "configuration": name,
                "cell": cell,
                "seed": seed,
                "for": "reporting",
                "settings": {},
                "state": "finished",
                "value": value,
                "start": 0.5,
                "collapsed": value < 0.25,
                "also": {"entropy:last": 0.25},
                "curve": {"step": [0, 2], "value": [0.5, value]},
            }
            for cell in cells(study)
            for name, values in ends.items()
            for seed, value in enumerate(values, 2)
        ]
        head = {"study": study.model_dump(mode="json"), "hash": study.hash, "versions": {"torch": ["2.13.0"]}}
        return head | {"planned": len(runs), "chosen": {}, "runs": runs, "dropped": []} | more

    return make
