"""verl's own losses and its engines: settings that nothing reads, or that mean something else."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from holdfast.integrations.verl.check.trap import Trap, loss_mode
from holdfast.integrations.verl.names import is_ours

_OWN_AGGREGATION = ("sapo", "geo_mean")
"""Losses of verl that do not read `loss_agg_mode`."""


def dead_clip_ratio(config: Any) -> Iterator[Trap]:
    """A symmetric clip beside the two one-sided ones, and DPPO's cap."""
    actor, mode = config.actor_rollout_ref.actor, loss_mode(config)
    if is_ours(mode):
        return
    low, high = actor.clip_ratio_low, actor.clip_ratio_high
    # 0.2 is the default: who writes nothing asks for nothing.
    if low is not None and high is not None and actor.clip_ratio not in (0.2, low, high):
        yield Trap(
            f"actor.clip_ratio={actor.clip_ratio}",
            f"nothing reads it while clip_ratio_low={low} and clip_ratio_high={high} are set",
            "Set clip_ratio_low and clip_ratio_high",
        )
    if mode.startswith("dppo") and actor.clip_ratio_c < 20:
        yield Trap(
            f"actor.clip_ratio_c={actor.clip_ratio_c} with loss_mode={mode}",
            "DPPO's cap on the ratio is this value, not the 20 that its loss names as default",
            "Set actor.clip_ratio_c=20",
        )


def aggregation(config: Any) -> Iterator[Trap]:
    """GSPO averaged over tokens, and a norm that follows the micro-batch."""
    actor, mode = config.actor_rollout_ref.actor, loss_mode(config)
    how = actor.loss_agg_mode
    if mode == "gspo" and how == "token-mean" and _gspo_follows_the_setting():
        yield Trap(
            "policy_loss.loss_mode=gspo with actor.loss_agg_mode=token-mean",
            "the sequences' losses are averaged over tokens since verl 0.9.1, so long ones weigh more; the paper, and "
            "verl until 0.9.0 whatever was set, average over sequences",
            "Set actor.loss_agg_mode=seq-mean-token-mean, or keep token-mean on purpose",
        )
    if how == "seq-mean-token-sum-norm" and actor.get("loss_scale_factor") is None:
        if is_ours(mode) or mode in _OWN_AGGREGATION:
            return
        yield Trap(
            "actor.loss_agg_mode=seq-mean-token-sum-norm without loss_scale_factor",
            "each micro-batch is divided by its own longest response, so the split into micro-batches changes the "
            "gradient",
            f"Set actor.loss_scale_factor={config.data.max_response_length}, the longest response",
        )


def split_dependent(config: Any) -> Iterator[Trap]:
    """Losses of verl whose gradient follows the split into micro-batches."""
    mode = loss_mode(config)
    effects = {
        "geo_mean": "its gradient grows with the number of micro-batches",
        "clip_cov": "its statistics are those of a micro-batch, at least one token of each",
        "kl_cov": "its statistics are those of a micro-batch, at least one token of each",
    }
    if mode in effects:
        ours = {"geo_mean": "holdfast_gmpo"}.get(mode, f"holdfast_{mode}")
        yield Trap(f"policy_loss.loss_mode={mode}", effects[mode], f"loss_mode={ours} does not depend on the split")


def truncated_support(config: Any) -> Iterator[Trap]:
    """Sampling from less than the whole vocabulary."""
    rollout = config.actor_rollout_ref.rollout
    cut = [f"{name}={rollout[name]}" for name, off in (("top_p", 1), ("top_k", -1)) if rollout[name] not in (off, 0)]
    if cut and rollout.calculate_log_probs:
        yield Trap(
            f"rollout.{', '.join(cut)}",
            "the engine samples from a truncated distribution, the trainer scores the whole one: every ratio is off",
            "Sample with temperature alone (top_p=1, top_k=-1)",
        )


def unread_precision(config: Any) -> Iterator[Trap]:
    """A precision that verl's FSDP engine does not read."""
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


def _gspo_follows_the_setting() -> bool:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return tuple(int(part) for part in version("verl").split(".")[:3] if part.isdigit()) >= (0, 9, 1)
    except PackageNotFoundError:
        return True
