"""What level 2 and 3 refuse in a composed config, by name and before any worker starts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from holdfast.errors import ConfigError
from holdfast.integrations.verl.check.trap import own_trainer
from holdfast.integrations.verl.config import HoldfastLossConfig, loss_config
from holdfast.integrations.verl.levels import BASELINE_ESTIMATORS, Given, check
from holdfast.integrations.verl.names import PREFIX, TRAINER_MODE, is_ours
from holdfast.integrations.verl.settings import step_objective
from holdfast.objectives.objective import Objective


def require(config: Any, actor: Any) -> Objective:
    """The objective of a composed config, checked against everything that the trainer mode can give it.

    Raises ConfigError for the first setting that contradicts it.
    """
    settings = loss_config(actor)
    for problem in _contradictions(config, actor, settings):
        raise ConfigError(problem)
    objective = step_objective(actor)
    given = Given(
        level=3 if settings.top_k else 2,
        rollout=bool(config.actor_rollout_ref.rollout.calculate_log_probs),
        entropy=True,
        reference=bool(actor.use_kl_loss),
        top_k=settings.top_k,
    )
    check(objective, given)
    if settings.top_k and objective.normalize.over == "accepted":
        raise ConfigError(
            "policy_loss.top_k=true with normalize over 'accepted': what the top-K accepts is known only after the "
            "gradient's own forward pass; normalize over 'all'"
        )
    if settings.baseline == "accepted" and not objective.masks:
        raise ConfigError(
            f"policy_loss.baseline=accepted with {objective.name}: it has no mask, so nothing is ever rejected; "
            "join one (trm, geo_rs), or leave baseline out"
        )
    return objective


def _contradictions(config: Any, actor: Any, settings: HoldfastLossConfig) -> Iterator[str]:
    mode = f"trainer.v1.trainer_mode={TRAINER_MODE}"
    if not config.trainer.get("use_v1", True):
        yield (
            f"{mode} with trainer.use_v1=false: the old trainer does not read the mode and would train with what a "
            "policy loss alone can see. Set trainer.use_v1=true, or leave the mode out and use level 1"
        )
    if own_trainer(config):
        yield (
            f"{mode} in a fully asynchronous or one-step-off run: their entry points do not read the mode and would "
            "train with what a policy loss alone can see. Leave the mode out and use level 1, or run main_ppo"
        )
    if not is_ours(settings.loss_mode):
        yield (
            f"{mode} with policy_loss.loss_mode={settings.loss_mode}: the mode trains with Holdfast's objectives only, "
            f"loss_mode={PREFIX}_<row> or {PREFIX}"
        )
    if actor.strategy not in ("fsdp", "fsdp2"):
        yield (
            f"{mode} with actor.strategy={actor.strategy}: it runs on fsdp and fsdp2; other engines have level 1, "
            "trainer_mode=sync"
        )
    if (config.get("distillation") or {}).get("enabled"):
        yield (
            f"{mode} with distillation.enabled=true: the objective takes the place of verl's distillation loss, which "
            "would be dropped. Set distillation.enabled=false, or keep distillation and use level 1, trainer_mode=sync"
        )
    yield from _second_correction(config, settings)
    yield from _baseline(config, settings)
    yield from _top_k(config, settings)


def _second_correction(config: Any, settings: HoldfastLossConfig) -> Iterator[str]:
    correction = config.algorithm.get("rollout_correction") or {}
    for name, instead in (("rollout_is", "tis, mis, icepop"), ("rollout_rs", "trm, geo_rs, ser, opsm")):
        if correction.get(name):
            yield (
                f"algorithm.rollout_correction.{name}={correction[name]} would correct a second time, outside the "
                f"objective: leave it out and join a row to the objective ({instead})"
            )
    if bool(correction.get("bypass_mode")) != settings.bypass_mode:
        yield (
            f"algorithm.rollout_correction.bypass_mode={correction.get('bypass_mode')} and policy_loss.bypass_mode="
            f"{settings.bypass_mode}: set both, or neither"
        )


def _baseline(config: Any, settings: HoldfastLossConfig) -> Iterator[str]:
    if settings.baseline == "all":
        return
    if settings.bypass_mode or settings.top_k:
        yield (
            "policy_loss.baseline=accepted needs the verdict before the update, from old log-probabilities: "
            "not with bypass_mode (old is the rollout) or top_k (its bounds come with the update)"
        )
    estimator = str(config.algorithm.adv_estimator)
    if estimator not in BASELINE_ESTIMATORS:
        yield (
            f"policy_loss.baseline=accepted with algorithm.adv_estimator={estimator}: known for "
            f"{', '.join(BASELINE_ESTIMATORS)}, whose baseline is the group's; choose one of them, or baseline=all"
        )
    if config.actor_rollout_ref.rollout.n < 2:
        yield (
            f"policy_loss.baseline=accepted with rollout.n={config.actor_rollout_ref.rollout.n}: a group of one has "
            "no baseline; set actor_rollout_ref.rollout.n to 2 or more, or baseline=all"
        )


def _top_k(config: Any, settings: HoldfastLossConfig) -> Iterator[str]:
    if not settings.top_k:
        return
    if config.actor_rollout_ref.model.get("use_fused_kernels"):
        yield "policy_loss.top_k=true needs logits, which model.use_fused_kernels=true never makes"
    parallel = config.actor_rollout_ref.actor.get("ulysses_sequence_parallel_size") or 1
    if parallel > 1:
        yield (
            f"policy_loss.top_k=true needs whole sequences on each rank: ulysses_sequence_parallel_size={parallel} "
            "cuts them, set it to 1"
        )
