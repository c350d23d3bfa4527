"""Settings of a composed verl config that do not do what they say: found, named, with a fix. Nothing imports verl.

Each trap is a function of the config (an OmegaConf DictConfig, or anything with the same attributes) that yields what
it finds; facts are about verl 0.9.1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from holdfast.errors import ConfigError
from holdfast.integrations.verl.names import POLICY_LOSS, advantage_overrides, is_ours, objective_name, with_settings
from holdfast.objectives.objective import Objective
from holdfast.objectives.parts.weights import ImportanceWeight

LIMITS = {
    "seq_max_k2": 0.2,
    "seq_mean_k2": 0.02,
    "token_k2": 0.2,
    "seq_mean_k3": 0.02,
    "seq_max_k3": 0.2,
    "token_k3": 0.2,
}
"""Thresholds above which a divergence mask hardly masks: four times and more what the papers train with."""


@dataclass(frozen=True)
class Trap:
    """One finding: the setting, what really happens, and what to set instead."""

    setting: str
    effect: str
    fix: str

    def __str__(self) -> str:
        return f"{self.setting}: {self.effect}. {self.fix}"


def find(config: Any) -> list[Trap]:
    """Every trap in a composed `main_ppo` config, in the order of the table below."""
    return [trap for look in TRAPS for trap in look(config)]


def _dropped_in_bypass(config: Any) -> Iterator[Trap]:
    correction = _correction(config)
    asked = [name for name in ("rollout_is", "rollout_rs") if correction.get(name)]
    if asked and correction.get("bypass_mode") and config.trainer.get("use_v1", True):
        yield Trap(
            f"algorithm.rollout_correction.bypass_mode=true with {' and '.join(asked)}",
            "the v1 trainer then computes neither weights nor masks, without a word",
            "Set bypass_mode=false, or put the correction into the objective (tis, mis, trm, geo_rs)",
        )


def _correction_without_logprobs(config: Any) -> Iterator[Trap]:
    correction = _correction(config)
    asked = [name for name in ("rollout_is", "rollout_rs", "bypass_mode") if correction.get(name)]
    if asked and not config.actor_rollout_ref.rollout.calculate_log_probs:
        yield Trap(
            f"algorithm.rollout_correction.{asked[0]} with rollout.calculate_log_probs=false",
            "the engine reports no log-probabilities, so nothing is corrected",
            "Set actor_rollout_ref.rollout.calculate_log_probs=true",
        )


def _inverted_bounds(config: Any) -> Iterator[Trap]:
    for option, threshold in _thresholds(config):
        low, found, high = str(threshold).partition("_")
        if option.endswith("k1") and found and not math.isclose(float(low) * float(high), 1.0, rel_tol=1e-3):
            yield Trap(
                f"rollout_rs={option} with rollout_rs_threshold={threshold}",
                f"k1 is −log(train/rollout): the ratio train/rollout is kept in "
                f"[{1 / float(high):.3g}, {1 / float(low):.3g}], not in [{low}, {high}]",
                f"For train/rollout in [{low}, {high}] set {1 / float(high):.4g}_{1 / float(low):.4g}, or use geo_rs",
            )


def _wrong_scale(config: Any) -> Iterator[Trap]:
    for option, threshold in _thresholds(config):
        value = str(threshold)
        if option in LIMITS and "_" not in value and float(value) > LIMITS[option]:
            meaning = f"a ratio of {math.exp(math.sqrt(2 * float(value))):.3g}" if option.endswith("k2") else "e^x−1−x"
            yield Trap(
                f"rollout_rs={option} with rollout_rs_threshold={value}",
                f"a threshold on {meaning}: next to nothing is rejected",
                "The papers train with seq_max_k2 = .05 and seq_mean_k3 = .001; holdfast.advise fits one to a run",
            )


def _rejected_in_baseline(config: Any) -> Iterator[Trap]:
    modes = [option for option, _ in _thresholds(config)]
    if modes and config.algorithm.adv_estimator in ("grpo", "rloo", "grpo_passk", "opo"):
        yield Trap(
            f"rollout_rs={','.join(modes)} with adv_estimator={config.algorithm.adv_estimator}",
            "rejected responses still count in the baseline of their group",
            "Use a mask of the objective with policy_loss.baseline=accepted",
        )
    if any(mode.startswith("token") for mode in modes):
        yield Trap(
            f"rollout_rs={','.join(modes)}",
            "where the last token is masked, the reward on it is masked too and the response scores 0",
            "Reject whole sequences, or use a token mask of the objective (icepop, dppo_tv)",
        )


def _dead_clip_ratio(config: Any) -> Iterator[Trap]:
    actor = config.actor_rollout_ref.actor
    if is_ours(actor.policy_loss.loss_mode):
        return
    low, high = actor.clip_ratio_low, actor.clip_ratio_high
    if low is not None and high is not None and actor.clip_ratio not in (low, high):
        yield Trap(
            f"actor.clip_ratio={actor.clip_ratio}",
            f"nothing reads it while clip_ratio_low={low} and clip_ratio_high={high} are set",
            "Set clip_ratio_low and clip_ratio_high",
        )
    if actor.policy_loss.loss_mode.startswith("dppo") and actor.clip_ratio_c < 20:
        yield Trap(
            f"actor.clip_ratio_c={actor.clip_ratio_c} with loss_mode={actor.policy_loss.loss_mode}",
            "DPPO's cap on the ratio is this value, not the 20 that its loss names as default",
            "Set actor.clip_ratio_c=20",
        )


def _split_dependent_losses(config: Any) -> Iterator[Trap]:
    mode = config.actor_rollout_ref.actor.policy_loss.loss_mode
    effects = {
        "geo_mean": "its gradient grows with the number of micro-batches",
        "clip_cov": "its statistics are those of a micro-batch, at least one token of each",
        "kl_cov": "its statistics are those of a micro-batch, at least one token of each",
    }
    if mode in effects:
        ours = {"geo_mean": "holdfast_gmpo"}.get(mode, f"holdfast_{mode}")
        yield Trap(f"policy_loss.loss_mode={mode}", effects[mode], f"loss_mode={ours} does not depend on the split")


def _read_by_nobody(config: Any) -> Iterator[Trap]:
    actor = config.actor_rollout_ref.actor
    if not is_ours(actor.policy_loss.loss_mode):
        return
    defaults = {
        "clip_ratio": 0.2, "clip_ratio_low": 0.2, "clip_ratio_high": 0.2, "clip_ratio_c": 3.0,
        "tau_pos": 1.0, "tau_neg": 1.05, "loss_agg_mode": "token-mean", "loss_scale_factor": None,
    }  # fmt: skip
    changed = [f"{name}={actor[name]}" for name, default in defaults.items() if actor[name] != default]
    if changed:
        yield Trap(
            f"actor.{', '.join(changed)} with loss_mode={actor.policy_loss.loss_mode}",
            "the objective has its own clip, temperatures and normaliser and does not read these",
            "Set them through policy_loss.settings (low, high, dual, tau_pos, normalize)",
        )


def _truncated_support(config: Any) -> Iterator[Trap]:
    rollout = config.actor_rollout_ref.rollout
    cut = [f"{name}={rollout[name]}" for name, off in (("top_p", 1), ("top_k", -1)) if rollout[name] not in (off, 0)]
    if cut and rollout.calculate_log_probs:
        yield Trap(
            f"rollout.{', '.join(cut)}",
            "the engine samples from a truncated distribution, the trainer scores the whole one: every ratio is off",
            "Sample with temperature alone (top_p=1, top_k=-1)",
        )


def _unread_precision(config: Any) -> Iterator[Trap]:
    actor = config.actor_rollout_ref.actor
    if not str(actor.strategy).startswith("fsdp"):
        return
    asked, mixed = str(actor.fsdp_config.dtype), actor.fsdp_config.get("mixed_precision") or {}
    used = str(mixed.get("param_dtype", "bfloat16"))
    used = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}.get(used, used)
    if asked not in ("bfloat16", used):
        yield Trap(
            f"actor.fsdp_config.dtype={asked}",
            f"verl's FSDP engine does not read it and computes in {used}",
            f"Set +actor_rollout_ref.actor.fsdp_config.mixed_precision.param_dtype={asked}",
        )


def _other_advantage(config: Any) -> Iterator[Trap]:
    if (objective := _objective(config)) is None:
        return
    try:
        wanted = advantage_overrides(objective)
    except ConfigError as error:
        setting = f"algorithm.adv_estimator={config.algorithm.adv_estimator}"
        yield Trap(setting, "verl estimates the advantages, not the objective", str(error))
        return
    names = [override.partition("=")[0].removeprefix("algorithm.") for override in wanted]
    found = [f"algorithm.{name}={_hydra(config.algorithm[name])}" for name in names]
    if wanted != found:
        yield Trap(
            ", ".join(found),
            f"verl estimates the advantages, and {objective.name} asks for others: {objective.advantage.formula()}",
            f"Set {' '.join(wanted)}, or keep yours on purpose",
        )


def _one_for_all(config: Any) -> Iterator[Trap]:
    if (objective := _objective(config)) is None:
        return
    bypass = bool(_correction(config).get("bypass_mode"))
    weights = [part for part in objective.weights if isinstance(part, ImportanceWeight) and part.numerator == "old"]
    if bypass and weights:
        yield Trap(
            f"algorithm.rollout_correction.bypass_mode=true with {objective.name}",
            "old is the rollout, so every weight old/rollout is 1",
            "Set bypass_mode=false on trainer_mode=holdfast_sync",
        )
    if _once(config) and not bypass and not weights and objective.gate in objective.idle_where_old:
        yield Trap(
            f"one update per batch with {objective.name}",
            "old is then the trainer itself and every ratio θ/old is 1: a clip on it cannot act",
            "Add settings.denominator=rollout, or a mask or weight on the rollout (trm, tis)",
        )


def _idle_or_twice(config: Any) -> Iterator[Trap]:
    """Parts on θ/old that nothing moves; drift that several updates count twice."""
    if (objective := _objective(config)) is None:
        return
    idle = [part.kind() for part in objective.idle_where_old if part is not objective.gate]
    if _once(config) and not _correction(config).get("bypass_mode") and idle:
        settings = " ".join(f"+{POLICY_LOSS}.settings.{key}={value}" for key, value in objective.remedies.items())
        yield Trap(
            f"one update per batch with {objective.name}",
            f"old is then the trainer itself, and {' and '.join(idle)} cannot act: no gradient changes",
            f"Set actor.ppo_mini_batch_size below data.train_batch_size, or {settings}",
        )
    for sentence in () if _once(config) else objective.double_corrections:
        yield Trap(f"several updates per batch with {objective.name}", sentence, "One of the two is enough")


def _once(config: Any) -> bool:
    """Whether a batch of rollouts gets one update, under the weights that its old log-probabilities are of."""
    actor = config.actor_rollout_ref.actor
    once = actor.ppo_epochs == 1 and actor.ppo_mini_batch_size == config.data.train_batch_size
    return once and config.trainer.v1.trainer_mode != "separate_async"


TRAPS: tuple[Callable[[Any], Iterator[Trap]], ...] = (
    _dropped_in_bypass,
    _correction_without_logprobs,
    _inverted_bounds,
    _wrong_scale,
    _rejected_in_baseline,
    _dead_clip_ratio,
    _split_dependent_losses,
    _read_by_nobody,
    _truncated_support,
    _unread_precision,
    _other_advantage,
    _one_for_all,
    _idle_or_twice,
)


def _objective(config: Any) -> Objective | None:
    """The objective of a config whose loss is ours."""
    loss = config.actor_rollout_ref.actor.policy_loss
    if not is_ours(loss.loss_mode):
        return None
    return with_settings(objective_name(loss.loss_mode, loss.get("objective", "")), loss.get("settings", {}))


def _hydra(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else str(value)


def _correction(config: Any) -> Any:
    return config.algorithm.get("rollout_correction") or {}


def _thresholds(config: Any) -> list[tuple[str, Any]]:
    """Each rejection mode with its threshold; one threshold serves all modes."""
    correction = _correction(config)
    modes = [mode.strip() for mode in str(correction.get("rollout_rs") or "").split(",") if mode.strip()]
    given = [part.strip() for part in str(correction.get("rollout_rs_threshold") or "").split(",") if part.strip()]
    return list(zip(modes, given * len(modes) if len(given) == 1 else given, strict=False))
