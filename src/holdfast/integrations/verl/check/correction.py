"""verl's rollout correction: what is computed, with which thresholds, and what it does to advantages."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from holdfast.errors import nearest
from holdfast.integrations.verl.check.trap import Trap, correction_of, rejection_modes, runs_v1
from holdfast.integrations.verl.levels import BASELINE_ESTIMATORS

REJECTION_MODES = (
    "token_k1", "token_k2", "token_k3", "seq_sum_k1", "seq_sum_k2", "seq_sum_k3",
    "seq_mean_k1", "seq_mean_k2", "seq_mean_k3", "seq_max_k2", "seq_max_k3",
)  # fmt: skip
"""verl's values of `rollout_rs`."""

LIMITS = {
    "seq_max_k2": 0.2,
    "seq_mean_k2": 0.02,
    "token_k2": 0.2,
    "seq_mean_k3": 0.02,
    "seq_max_k3": 0.2,
    "token_k3": 0.2,
}
"""Thresholds above which a divergence mask hardly masks: four times and more what the papers train with."""

GROUP_BASELINES = (*BASELINE_ESTIMATORS, "grpo_passk", "grpo_vectorized", "rloo_vectorized", "gpg", "gdpo",
                   "reinforce_plus_plus_baseline")  # fmt: skip
"""verl's estimators that compare a response with the others of its prompt."""

LAST_TOKEN_REWARDS = (
    "gae", "reinforce_plus_plus", "remax", "optimal_token_baseline", "tir_optimal_token_baseline",
)  # fmt: skip
"""verl's estimators that read the reward through the mask; the others sum it up first."""

_LATE = "verl refuses it only after the first rollout"


def dropped_in_bypass(config: Any) -> Iterator[Trap]:
    """Corrections that the v1 trainer does not compute in bypass mode."""
    correction = correction_of(config)
    asked = [name for name in ("rollout_is", "rollout_rs") if correction.get(name)]
    if asked and correction.get("bypass_mode") and runs_v1(config):
        yield Trap(
            f"algorithm.rollout_correction.bypass_mode=true with {' and '.join(asked)}",
            "the v1 trainer then computes neither weights nor masks, without a word",
            "Set bypass_mode=false, or put the correction into the objective (tis, mis, trm, geo_rs)",
        )


def without_logprobs(config: Any) -> Iterator[Trap]:
    """Corrections of a rollout that reports no log-probabilities."""
    correction = correction_of(config)
    asked = [name for name in ("rollout_is", "rollout_rs", "bypass_mode") if correction.get(name)]
    if asked and not config.actor_rollout_ref.rollout.calculate_log_probs:
        yield Trap(
            f"algorithm.rollout_correction.{asked[0]} with rollout.calculate_log_probs=false",
            "the engine reports no log-probabilities, so nothing is corrected",
            "Set actor_rollout_ref.rollout.calculate_log_probs=true",
        )


def refused_late(config: Any) -> Iterator[Trap]:
    """Modes and thresholds that verl reads, and refuses, once it has a batch."""
    correction = correction_of(config)
    if correction.get("bypass_mode") or not config.actor_rollout_ref.rollout.calculate_log_probs:
        return
    if (level := correction.get("rollout_is")) and level not in ("token", "sequence"):
        yield Trap(f"rollout_is={level}", f"allowed: token, sequence; {_LATE}", "Choose one of them, or null")
    elif level and (problem := weight_problem(correction.get("rollout_is_threshold", 2.0))):
        yield Trap(
            f"rollout_is_threshold={correction.get('rollout_is_threshold')}",
            f"{problem}; {_LATE}",
            "Give the cap, 2.0, or both bounds, 0.5_2.0",
        )
    modes = rejection_modes(config)
    unknown = [mode for mode in modes if mode not in REJECTION_MODES]
    for mode in unknown:
        yield Trap(f"rollout_rs={mode}", f"no such mode; {_LATE}", nearest(mode, REJECTION_MODES).capitalize())
    if modes and not unknown:
        threshold = correction.get("rollout_rs_threshold")
        for problem in threshold_problems(modes, threshold):
            yield Trap(
                f"rollout_rs={','.join(modes)} with rollout_rs_threshold={threshold}",
                f"{problem}; {_LATE}",
                "One positive number a mode, or one for all, separated by commas; for k1 both bounds, 0.8_1.25",
            )


def threshold_problems(modes: list[str], threshold: Any) -> Iterator[str]:
    """What verl's parser would raise of these thresholds."""
    given = _given(threshold)
    if not given:
        yield "no threshold"
    elif len(given) not in (1, len(modes)):
        yield f"{len(given)} thresholds for {len(modes)} modes"
    else:
        for mode, value in zip(modes, given * len(modes) if len(given) == 1 else given, strict=True):
            if problem := _problem(mode, value):
                yield problem


def thresholds(config: Any) -> list[tuple[str, float, float]]:
    """(mode, low, high) of each rejection mode that verl accepts; low is 0 but for k1. One threshold serves all."""
    modes, threshold = rejection_modes(config), correction_of(config).get("rollout_rs_threshold")
    if any(mode not in REJECTION_MODES for mode in modes) or any(threshold_problems(modes, threshold)):
        return []
    given = _given(threshold)
    pairs = zip(modes, given * len(modes) if len(given) == 1 else given, strict=True)
    return [(mode, *_bounds(mode, value)) for mode, value in pairs]


def inverted_bounds(config: Any) -> Iterator[Trap]:
    """Bounds of k1, which is minus the log-ratio."""
    for mode, low, high in thresholds(config):
        if mode.endswith("k1") and not math.isclose(low * high, 1.0, rel_tol=1e-3):
            yield Trap(
                f"rollout_rs={mode} with rollout_rs_threshold={low:g}_{high:g}",
                f"k1 is −log(train/rollout): the ratio train/rollout is kept in "
                f"[{1 / high:.3g}, {1 / low:.3g}], not in [{low:g}, {high:g}]",
                f"For train/rollout in [{low:g}, {high:g}] set {1 / high:.4g}_{1 / low:.4g}, or use geo_rs",
            )


def wrong_scale(config: Any) -> Iterator[Trap]:
    """Thresholds of k2 and k3 far above anything that drift reaches."""
    for mode, _, high in thresholds(config):
        if mode in LIMITS and high > LIMITS[mode]:
            meaning = f"a ratio of {math.exp(math.sqrt(2 * high)):.3g}" if mode.endswith("k2") else "e^x−1−x"
            yield Trap(
                f"rollout_rs={mode} with rollout_rs_threshold={high:g}",
                f"a threshold on {meaning}: next to nothing is rejected",
                "The papers train with seq_max_k2 = .05 and seq_mean_k3 = .001; holdfast.advise fits one to a run",
            )


def rejected_in_baseline(config: Any) -> Iterator[Trap]:
    """Rejected responses that the others are compared with, and rewards on rejected tokens."""
    modes, estimator = rejection_modes(config), str(config.algorithm.adv_estimator)
    sequence = [mode for mode in modes if mode.startswith("seq")]
    token = [mode for mode in modes if mode.startswith("token")]
    if sequence and estimator in GROUP_BASELINES:
        yield Trap(
            f"rollout_rs={','.join(sequence)} with adv_estimator={estimator}",
            "rejected responses still count in the baseline of their group",
            f"Use a mask of the objective with policy_loss.baseline=accepted ({', '.join(BASELINE_ESTIMATORS)})",
        )
    if token and estimator in LAST_TOKEN_REWARDS:
        yield Trap(
            f"rollout_rs={','.join(token)} with adv_estimator={estimator}",
            "where the last token is masked, the reward on it is masked too and the response scores 0",
            "Reject whole sequences, or use a token mask of the objective (icepop, dppo_tv)",
        )


def weight_problem(threshold: Any) -> str | None:
    """What is wrong with `rollout_is_threshold`, None where verl takes it."""
    low, found, high = str(threshold).partition("_")
    values = [_number(low), _number(high)] if found else [_number(low)]
    if isinstance(threshold, bool) or None in values:
        return "not a number"
    numbers = [value for value in values if value is not None]
    if min(numbers) <= 0:
        return "not positive"
    return "the lower bound is above the upper" if numbers[0] > numbers[-1] else None


def _given(threshold: Any) -> list[str]:
    return [] if threshold is None else [part.strip() for part in str(threshold).split(",") if part.strip()]


def _problem(mode: str, value: str) -> str | None:
    low, found, high = value.partition("_")
    if found and not mode.endswith("k1"):
        return f"{mode} takes one upper bound, not {value}"
    values = [_number(low), _number(high)] if found else [_number(low)]
    numbers = [number for number in values if number is not None]
    if len(numbers) < len(values):
        return f"{value} is not a number"
    if min(numbers) <= 0:
        return f"{value} is not positive"
    bounds = _bounds(mode, value)
    return f"{mode} keeps nothing between {bounds[0]:g} and {bounds[1]:g}" if bounds[0] > bounds[1] else None


def _bounds(mode: str, value: str) -> tuple[float, float]:
    low, found, high = value.partition("_")
    if found:
        return float(low), float(high)
    return (1 / float(low) if mode.endswith("k1") else 0.0), float(low)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
