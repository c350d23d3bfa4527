"""Every number of metrics.jsonl: its group, unit, meaning, healthy range and name in trackers.

The page's curves, the names in TensorBoard and W&B, and docs/metrics.md come from here:
`python -m holdfast.report.catalog docs/metrics.md` writes the last.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from holdfast.report.metrics import is_number

GROUPS = {
    "train": "Training rollouts and update",
    "eval": "Held-out problems",
    "drift": "Drift between engine and trainer",
    "trust": "Trust region and weights",
    "bounds": "Error bounds",
    "engine": "Engine",
    "time": "Time",
    "guard": "Guard",
    "other": "Other numbers",
}
"""Groups in the order of the page, with their headings; the key is the prefix in trackers."""


@dataclass(frozen=True)
class Metric:
    """A number, or with `*` in its name a family of them."""

    key: str
    group: str
    unit: str
    meaning: str
    healthy: str = ""


_NATS = "nats per token"
_DRIFT = "flat; below 2e-4 for a dense model and .002 for a mixture of experts at equal weights, .015 is a problem"
_OF_GROUP = "training goes on where it is above 0; at 0 every advantage is 0"

METRICS = (
    Metric("reward_mean", "train", "reward", "mean reward of the step's rollouts", "rises, then levels off"),
    Metric("reward_std", "train", "reward", "standard deviation of the step's rewards", _OF_GROUP),
    Metric("accuracy", "train", "share", "share of right answers; only where every reward is 0 or 1", "rises"),
    Metric("reward_of_*", "train", "reward", "of several reward functions, this one's mean before its weight"),
    Metric("reward_errors", "train", "responses", "could not be scored and got reward 0", "0"),
    Metric("reward_timeouts", "train", "responses", "of those, scored for too long and stopped", "0"),
    Metric(
        "loss", "train", "loss", "mean over the optimiser steps of the batch", "no trend is wanted: watch the reward"
    ),
    Metric("grad_norm", "train", "norm", "of the gradient before clipping, mean over optimiser steps", "no spikes"),
    Metric("learning_rate", "train", "rate", "at the step's first update", "as scheduled"),
    Metric("entropy", "train", _NATS, "of the policy before the update", "falls slowly and stays well above 0"),
    Metric("covariance_share", "train", "share", "of the entropy change, from the tokens of largest covariance"),
    Metric("tokens", "train", "tokens", "response tokens of the step"),
    Metric("response_length_mean", "train", "tokens", "mean response length", "no growth without reward"),
    Metric("truncated_share", "train", "share", "responses cut off at sampling.max_tokens", "below .05"),
    Metric("eval_reward", "eval", "reward", "mean reward on held-out problems, sampled", "rises with reward_mean"),
    Metric("eval_greedy_reward", "eval", "reward", "the same, decoded greedily", "rises"),
    Metric(
        "eval_reward_se", "eval", "reward", "standard error of eval_reward", "small against the change you look for"
    ),
    Metric("eval_accuracy", "eval", "share", "right answers, sampled; only where every reward is 0 or 1", "rises"),
    Metric("eval_greedy_accuracy", "eval", "share", "the same, decoded greedily", "rises"),
    Metric(
        "eval_pass_at_*",
        "eval",
        "share",
        "1 − C(n − c, K)/C(n, K) with c of n = evaluation.samples responses of reward 1; rewards within [0, 1]",
        "does not fall while eval_accuracy rises",
    ),
    Metric("eval_reward_of_*", "eval", "reward", "of several reward functions, this one's mean before its weight"),
    Metric("eval_reward_errors", "eval", "responses", "could not be scored and got reward 0", "0"),
    Metric("kl_exact_mean", "drift", _NATS, "KL(rollout‖trainer) over the whole vocabulary, mean", _DRIFT),
    Metric("kl_exact_max", "drift", "nats", "the same at the worst token", "no trend"),
    Metric("kl_lower_*", "drift", "nats", "lower bound of that KL from the engine's likeliest tokens", _DRIFT),
    Metric("tv_lower_*", "drift", "0 to 1", "lower bound of the total variation, from the likeliest tokens", "flat"),
    Metric("tv_upper_*", "drift", "0 to 1", "upper bound of the total variation, from the likeliest tokens", "flat"),
    Metric(
        "rollout_k1_mean",
        "drift",
        _NATS,
        "−log ρ with log ρ = log trainer − log rollout; estimates KL",
        "around 0, flat",
    ),
    Metric("rollout_k2_*", "drift", "nats", "(log ρ)²/2 of the sampled tokens", "flat"),
    Metric("rollout_k3_*", "drift", "nats", "ρ − 1 − log ρ of the sampled tokens; estimates KL", _DRIFT),
    Metric("abs_log_ratio_mean", "drift", _NATS, "mean |log ρ| of the sampled tokens", "flat"),
    Metric("abs_log_ratio_max", "drift", "nats", "|log ρ| of the worst token", "no trend"),
    Metric(
        "router_drift", "drift", "share", "of (token, layer) pairs: engine and trainer choose other experts", "flat"
    ),
    Metric("router_drift_tokens", "drift", "share", "of tokens with any such layer", "flat"),
    Metric(
        "own_experts_abs_log_ratio_mean",
        "drift",
        _NATS,
        "with engine.replay_experts: what abs_log_ratio_mean would be without",
        "above abs_log_ratio_mean",
    ),
    Metric(
        "own_experts_rollout_k3_mean",
        "drift",
        _NATS,
        "with engine.replay_experts: what rollout_k3_mean would be without",
        "above rollout_k3_mean",
    ),
    Metric("policy_lag", "drift", "updates", "behind the trainer: the weights of the oldest token", "as configured"),
    Metric("policy_lag_mean", "drift", "updates", "the same, mean over tokens", "as configured"),
    Metric(
        "masked_sequences", "trust", "share", "sequences that the trust region left out of the gradient", "below .3"
    ),
    Metric("masked_tokens", "trust", "share", "tokens left out of the gradient", "below .3"),
    Metric("clip_share", "trust", "share", "tokens whose gate clips", "below .2; 0 with one update per batch"),
    Metric("ess", "trust", "0 to 1", "importance weights: effective share of the sample", "above .5"),
    Metric("weight_mean", "trust", "weight", "mean importance weight", "near 1"),
    Metric("weight_max", "trust", "weight", "largest importance weight"),
    Metric("effective_tokens", "trust", "0 to 1", "effective share of the tokens by their factor on A ∇log π", "flat"),
    Metric("coefficient_max", "trust", "factor", "largest factor on A ∇log π", "no spikes"),
    Metric("bounds.*", "bounds", "share of the rewards' range", "what the drift can cost at most, on sampled contexts"),
    Metric("engine_restarts", "engine", "restarts", "of an asynchronous engine so far", "0"),
    Metric("rounds_ahead", "engine", "rounds", "asked of an asynchronous engine and not back", "as configured"),
    Metric("seconds", "time", "s", "wall time of the step"),
    Metric("cpu_seconds", "time", "s", "process time of the step"),
    Metric(
        "tokens_per_cpu_second", "time", "tokens/s", "response tokens over CPU seconds of all but evaluation", "flat"
    ),
    Metric("time_split.*", "time", "s", "wall time per activity"),
    Metric("guard/worst", "guard", "severity", "of the worst alarm that is on: 0 none, 1 warning, 2 critical", "0"),
    Metric("guard/seconds", "guard", "s", "the guard has taken so far"),
    Metric("guard/*", "guard", "severity", "of one alarm that is on", "absent"),
    Metric("braked", "guard", "0 or 1", "1: the step was not taken, by held-out prompts", "0"),
    Metric("braked_in_a_row", "guard", "steps", "up to this one that were not taken", "0"),
    Metric("brake_e", "guard", "e-value", "highest of the test that the step does no harm", "below 1 / (1 - level)"),
    Metric("brake_harm", "guard", "reward", "lower limit of what the step costs of the mean reward", "below 0"),
    Metric("brake_reward", "guard", "reward", "mean of the updated policy's answers to held-out prompts", "rises"),
    Metric("brake_prompts", "guard", "prompts", "held out of the step's update", "as configured"),
    Metric("brake_gain", "guard", "reward", "what held-out rollouts say that the step gains, first order", "above 0"),
    Metric("brake_gain_se", "guard", "reward", "its standard error over prompts", "below brake_gain"),
    Metric(
        "brake_cost", "guard", "reward", "twice what the step's length can cost at most, second order", "near the gain"
    ),
    Metric("brake_fisher", "guard", "nats²", "mean squared change of a response's log-probability; about 2 KL"),
    Metric("brake_informed", "guard", "prompts", "held out, with rewards that differ within them", "most of them"),
    Metric("brake_best", "guard", "factor", "length of step with the highest lower bound, in steps", "around 1"),
    Metric("brake_scale", "guard", "factor", "on the scheduled learning rate, from the next step on", "levels off"),
)
"""In the order of the page. A healthy range is a rule of thumb, not a guarantee."""

_LISTS = {
    "reward_quartiles": "rewards of the step: lowest, first quartile, median, third, highest",
    "eval_rewards": "the sampled reward of each held-out problem (the mean of its samples), always in the same order",
    "drift_by_position": "mean abs(log ρ) and exact KL in 16 bins of the response position; `edges` has one more entry",
    "masked_by_length": "masked share of the sequences by quartile of response length; null for one without a response",
    "length_counts": "how many responses each of these quartiles holds",
    "length_quartiles": "the edges between them, in tokens",
    "reward_error": "the first reason why a response could not be scored",
    "non_finite": "numbers of this step that are NaN or infinite, and have no key of their own",
    "not_measured": "what could not be measured or written beside training, with the reason",
    "warnings": "sentences about the step: all rewards equal, every sequence masked (with the threshold that would "
    "keep 70 %), acceptance falling with length, responses cut off; at step 0 what to know of the held-out problems",
}
_UNKNOWN = Metric("*", "other", "", "")


def metric_of(key: str) -> Metric:
    """What the catalogue says of a number; a name it does not know belongs to `other`.

    >>> metric_of("eval_pass_at_4").group, metric_of("mine").group
    ('eval', 'other')
    """
    return next((m for m in METRICS if fnmatchcase(key, m.key)), _UNKNOWN)


def tracker_name(key: str) -> str:
    """The name in TensorBoard, W&B and trackio: the group, a slash, the rest.

    >>> [tracker_name(k) for k in ("reward_mean", "eval_reward", "bounds.mixed", "time_split.update", "guard/worst")]
    ['train/reward_mean', 'eval/reward', 'bounds/mixed', 'time/update', 'guard/worst']
    """
    group, rest = metric_of(key).group, key
    for prefix in ("eval_", "bounds.", "time_split.", "guard/"):
        rest = rest.removeprefix(prefix)
    return f"{group}/{rest}"


def scalars(record: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Names and values of all finite numbers of a line of metrics.jsonl, `bounds` and `time_split` taken apart.

    >>> dict(scalars({"step": 1, "loss": 2, "bounds": {"mixed": 0.5, "unified_name": "mixed"}, "warnings": []}))
    {'loss': 2.0, 'bounds.mixed': 0.5}
    """
    for key, value in record.items():
        if isinstance(value, Mapping) and key in ("bounds", "time_split"):
            yield from ((f"{key}.{name}", float(v)) for name, v in value.items() if is_number(v))
        elif key != "step" and is_number(value):
            yield key, float(value)


def reference() -> str:
    """The page docs/metrics.md."""
    lines = [
        "# Metrics",
        "",
        "`RUN/metrics.jsonl` has one JSON object per step; step 0 is the evaluation before training. A number that was",
        "not measured has no key. The page of a run draws all of them ([reports](report.md)); with `log.trackers` they",
        "go to TensorBoard, W&B and trackio under the names in the last column. Healthy ranges are rules of thumb:",
        "what matters is a trend or a jump of your own run. [The audit](audit.md) judges them with intervals.",
    ]
    for group, heading in GROUPS.items():
        rows = [m for m in METRICS if m.group == group]
        if rows:
            lines += ["", f"## {heading}", "", "| key | unit | meaning | healthy | in trackers |", "|-|-|-|-|-|"]
            for m in rows:
                name = tracker_name(m.key)
                lines.append(
                    f"| `{m.key}` | {m.unit} | {m.meaning} | {m.healthy} | `{name}` |".replace("|log ρ|", "abs(log ρ)")
                )
    lines += ["", "## Lists and texts", "", "In metrics.jsonl alone.", "", "| key | meaning |", "|-|-|"]
    lines += [f"| `{key}` | {meaning} |" for key, meaning in _LISTS.items()]
    lines += [
        "",
        "Drift is that of the trainer's policy before the step's update against the engine's weights, numerics and lag",
        "at that step. `bounds` are halved, for rewards in [0, 1]: a commentary on sampled contexts, no certificate.",
        "",
        "Trackers also get `rollouts`, a table of a few responses with their rewards, at every evaluation.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(reference(), encoding="utf-8")
