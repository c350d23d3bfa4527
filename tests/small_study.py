"""A study whose runs take a second each."""

from typing import Any

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
