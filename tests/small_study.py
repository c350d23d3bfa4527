"""A study whose runs take a second each."""

from typing import Any

from holdfast.study.definition import Study
from holdfast.study.plan import cells

BASE = {
    "steps": 2,
    "task": {"name": "ledger", "entries": 1},
    "model": {"hidden": 32, "layers": 1, "heads": 2},
    "warm_start": {"clean_steps": 4, "sloppy_steps": 0, "batch_size": 4},
    "sampling": {"max_tokens": 8},
    "batch": {"prompts": 2, "group_size": 2},
    "evaluation": {"every": 1, "problems": 4, "greedy": False},
    "checkpoint": {"every": 0},
    "log": {"rollouts_every": 0, "report_every": 0},
}
STUDY: dict[str, Any] = {
    "title": "Does b beat a?",
    "claim": "b ends higher than a.",
    "refuted_by": "a ends higher than b.",
    "base": BASE,
    "seeds": {"reporting": [2, 3, 4, 5, 6, 7]},
    "metric": {"key": "eval_reward", "title": "held-out reward", "failed": 0.0, "collapse": 0.5},
    "also": [{"key": "entropy", "of": "last", "title": "entropy"}],
    "factor": [{"name": "lag", "key": "engine.lag", "values": [0, 2]}],
    "configuration": [
        {"name": "a", "set": {"objective.preset": "reinforce"}},
        {"name": "b", "set": {"objective": {"preset": "ppo", "denominator": "rollout"}}},
    ],
    "comparison": [{"first": ["b"], "second": "a", "claim": True}],
}


def results_without_runs(study: Study, ends: dict[str, list[float]], start: float = 0.5, **more: Any) -> dict[str, Any]:
    """Results in which each configuration ends at these values, seed by seed from 2, in every cell."""
    runs = [
        {
            "configuration": name,
            "cell": cell,
            "seed": seed,
            "for": "reporting",
            "settings": {},
            "state": "finished",
            "value": value,
            "start": start,
            "collapsed": value < start / 2,
            "also": {"entropy:last": 0.25, "kl_exact_mean:highest": 0.02},
            "curve": {"step": [0, 2], "value": [start, value]},
        }
        for cell in cells(study)
        for name, values in ends.items()
        for seed, value in enumerate(values, 2)
    ]
    head = {"study": study.model_dump(mode="json"), "hash": study.hash, "versions": {"torch": ["2.13.0"]}}
    return head | {"planned": len(runs), "chosen": {}, "runs": runs, "dropped": []} | more
