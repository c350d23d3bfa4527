"""The language-model head as every implementation sees it: its inputs, what is asked of it, what it returns."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, fields
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from holdfast.errors import ConfigError, DataError, nearest
from holdfast.types import TokenStats

CURRENT_OUTPUTS = frozenset({"entropy", "sum_p2", "entropy_change"})
ROLLOUT_OUTPUTS = frozenset({"kl_rollout", "tv_rollout", "chi2_rollout"})


@dataclass(frozen=True)
class VocabShard:
    """The slice of the vocabulary that this rank holds: token ids `start` to `start` + rows of its weight.

    `size` is the whole vocabulary; `group` the process group over which the slices are spread (None: the default).
    """

    start: int
    size: int
    group: Any = None


@dataclass(frozen=True)
class Head:
    """One head: logits z = cap·tanh(scale·(h·Wᵀ + b) / cap) / temperature, without the cap where `softcap` is None.

    `scale` multiplies the logits (Cohere's logit_scale; Granite divides, so give the inverse); `softcap` is Gemma's
    final_logit_softcapping. `shard` says which part of a vocabulary-parallel head this is.
    """

    weight: Float[Tensor, "V d"]
    bias: Float[Tensor, " V"] | None = None
    scale: float = 1.0
    softcap: float | None = None
    shard: VocabShard | None = None

    @property
    def start(self) -> int:
        """The token id of the first row of `weight`."""
        return self.shard.start if self.shard else 0

    @property
    def vocab_size(self) -> int:
        """The size of the whole vocabulary, over all shards."""
        return self.shard.size if self.shard else self.weight.shape[0]

    @property
    def compute_dtype(self) -> torch.dtype:
        """Logits and reductions are float32, or float64 where the weight is."""
        return torch.float64 if self.weight.dtype == torch.float64 else torch.float32


def logit_form(config: Any) -> tuple[float, float | None]:
    """(scale, soft-cap) that a Hugging Face model puts on its logits, under the names that its classes use.

    Gemma caps them, Cohere and others multiply, Granite divides; a model that does something else has
    to be found out by comparing logits.
    """
    names = ("logit_scale", "output_multiplier", "lm_head_multiplier")
    scale = next((factor for name in names if (factor := getattr(config, name, None))), None)
    divisor = getattr(config, "logits_scaling", None)
    if scale is None and divisor:
        # HyperCLOVA X multiplies by what Granite divides by.
        scale = divisor if getattr(config, "model_type", "") == "hyperclovax" else 1.0 / divisor
    return 1.0 if scale is None else float(scale), getattr(config, "final_logit_softcapping", None)


@dataclass(frozen=True)
class HeadStats(TokenStats):
    """Token statistics and what only the head can tell.

    `sum_p2` is Σ_v p_v², the collision probability. `entropy_change` is ⟨∇_z H, ∇_z log p_y⟩ in nats: to first order,
    the change of the entropy at this context when a step of size one on its logits follows ∇ log p of the sampled
    token; times learning rate and advantage it is the token's own term of dH = -Cov(log π, dz).
    `gathered_logprobs` are log p at the ids asked for, such as the engine's top-K. All three are detached.
    """

    sum_p2: Float[Tensor, "*shape"] | None = None
    entropy_change: Float[Tensor, "*shape"] | None = None
    gathered_logprobs: Float[Tensor, "*shape K"] | None = None

    def token_stats(self, response_mask: Bool[Tensor, "B T"] | None = None) -> TokenStats:
        """Only what objectives read; with a mask, the rows go back to its True positions and 0 elsewhere.

        Keeping prompt and padding out of the head altogether is then `hidden[mask]`, `targets[mask]` on the way in.
        Raises DataError where the mask has another number of True positions than there are rows.
        """
        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(TokenStats)}
        if response_mask is not None:
            rows, places = self.logprobs.shape[0], int(response_mask.sum())
            if rows != places:
                raise DataError(f"{rows} rows do not fit a response_mask with {places} True positions; use one mask")
            values = {name: None if v is None else _scatter(v, response_mask) for name, v in values.items()}
        return TokenStats(**values)


@dataclass(frozen=True)
class Problem:
    """One checked call: `ids` [N, 1+K] are the sampled tokens and then the ids to gather.

    `rollout` is None, logits [N, V], or the rollout policy's hidden states with its head. `temperature` is None
    where it is 1 everywhere.
    """

    hidden: Float[Tensor, "N d"]
    head: Head
    ids: Int[Tensor, "N K"]
    temperature: Float[Tensor, " N"] | None
    rollout: Float[Tensor, "N V"] | tuple[Float[Tensor, "N e"], Head] | None
    outputs: frozenset[str]


def make_problem(
    hidden: Tensor,
    head: Tensor | Head,
    targets: Tensor,
    *,
    temperature: float | Tensor = 1.0,
    rollout: Tensor | tuple[Tensor, Tensor | Head] | None = None,
    outputs: Collection[str] = ("entropy",),
    gather_ids: Tensor | None = None,
) -> Problem:
    """Check one call and put it in one form; raises DataError for tensors, ConfigError for settings."""
    own = head if isinstance(head, Head) else Head(head)
    _check_outputs(outputs, rollout is not None)
    _check_head("hidden", hidden, own)
    _check_ids("targets", targets, hidden, own, ())
    ids = targets[:, None]
    if gather_ids is not None:
        _check_ids("gather_ids", gather_ids, hidden, own, gather_ids.shape[1:2])
        ids = torch.cat((ids, gather_ids.to(ids.dtype)), dim=1)
    return Problem(
        hidden,
        own,
        ids,
        _check_temperature(temperature, hidden),
        _check_rollout(rollout, hidden, own),
        frozenset(outputs),
    )


def refuse_non_finite(lse: Tensor, problem: Problem) -> None:
    """Name the rows that made a log-sum-exp non-finite; costs nothing while all is well."""
    bad = ~torch.isfinite(lse)
    if problem.head.softcap is not None:  # tanh hides an infinite hidden state behind a finite logit
        bad = bad | ~torch.isfinite(problem.hidden).all(dim=1)
    if not bool(bad.any()):
        return
    rows = bad.nonzero().flatten()
    shown = ", ".join(str(int(r)) for r in rows[:8]) + (", ..." if rows.numel() > 8 else "")
    blame = "hidden" if bool((~torch.isfinite(problem.hidden)).any()) else "weight, bias or rollout"
    raise DataError(
        f"non-finite logits in {rows.numel()} of {lse.numel()} rows ({shown}): {blame} holds inf or NaN; "
        "drop these rows or find the step that broke the model"
    )


def _scatter(values: Tensor, mask: Tensor) -> Tensor:
    return values.new_zeros(mask.shape).masked_scatter(mask, values)


def _check_outputs(outputs: Collection[str], has_rollout: bool) -> None:
    allowed = CURRENT_OUTPUTS | ROLLOUT_OUTPUTS
    for name in outputs:
        if name not in allowed:
            raise ConfigError(f"unknown output {name!r}: {nearest(name, allowed)}")
    asked = ROLLOUT_OUTPUTS.intersection(outputs)
    if asked and not has_rollout:
        raise ConfigError(
            f"{', '.join(sorted(asked))} needs the rollout policy: pass rollout=(hidden, weight) or logits"
        )
    if has_rollout and not asked:
        raise ConfigError(f"rollout is given but no output reads it: add one of {', '.join(sorted(ROLLOUT_OUTPUTS))}")


def _check_head(name: str, hidden: Tensor, head: Head) -> None:
    weight, bias = head.weight, head.bias
    if hidden.ndim != 2 or weight.ndim != 2 or hidden.shape[1] != weight.shape[1] or weight.shape[0] == 0:
        raise DataError(
            f"{name} {list(hidden.shape)} and weight {list(weight.shape)} do not fit: [N, d] and [V > 0, d] are needed"
        )
    for what, x in ((name, hidden), ("weight", weight)):
        if hasattr(x, "full_tensor"):
            raise DataError(
                f"{what} is a DTensor, sharded over ranks: pass whole tensors. Where FSDP shards the head, call the "
                "kernels inside a forward pass of its layer; weight.full_tensor() alone would leave each rank with the "
                'gradient of its own rows: it needs grad_placements=[Partial("avg")]'
            )
    if hidden.dtype != weight.dtype or not hidden.is_floating_point():
        raise DataError(f"{name} is {hidden.dtype} and weight {weight.dtype}: one floating dtype is needed; cast one")
    if hidden.device != weight.device:
        raise DataError(f"{name} is on {hidden.device} and weight on {weight.device}: move them to one device")
    if bias is not None and (bias.shape != weight.shape[:1] or bias.device != weight.device):
        raise DataError(f"bias {list(bias.shape)} on {bias.device} must be [{weight.shape[0]}] on {weight.device}")
    if not math.isfinite(head.scale) or head.scale == 0:
        raise ConfigError(f"scale is {head.scale}: it must be finite and not 0")
    if head.softcap is not None and not 0 < head.softcap < math.inf:
        raise ConfigError(f"softcap is {head.softcap}: it must be above 0, or None for no cap")
    if head.shard and not 0 <= head.start <= head.start + weight.shape[0] <= head.vocab_size:
        raise ConfigError(f"shard {head.start}+{weight.shape[0]} does not lie in a vocabulary of {head.vocab_size}")


def _check_ids(name: str, ids: Tensor, hidden: Tensor, head: Head, rest: tuple[int, ...]) -> None:
    expected = (hidden.shape[0], *rest)
    if tuple(ids.shape) != expected:
        raise DataError(f"{name} is {list(ids.shape)}: {list(expected)} is needed, a row per hidden state")
    if ids.dtype not in (torch.int64, torch.int32) or ids.device != hidden.device:
        raise DataError(f"{name} is {ids.dtype} on {ids.device}: int64 token ids on {hidden.device} are needed")
    if ids.numel():
        low, high = (int(x) for x in torch.aminmax(ids))
        if low < 0 or high >= head.vocab_size:
            raise DataError(
                f"{name} spans {low} to {high}: allowed are 0 to {head.vocab_size - 1}; "
                "leave ignored positions out (index hidden and targets with the mask) instead of marking them -100"
            )


def _check_temperature(temperature: float | Tensor, hidden: Tensor) -> Tensor | None:
    if isinstance(temperature, Tensor):
        if temperature.shape not in ((), hidden.shape[:1]):
            raise DataError(f"temperature is {list(temperature.shape)}: a scalar or [{hidden.shape[0]}] is needed")
        lowest, highest = (float(x) for x in torch.aminmax(temperature)) if temperature.numel() else (1.0, 1.0)
    else:
        lowest = highest = float(temperature)
    if not (lowest > 0 and highest < math.inf):
        raise ConfigError(
            f"temperature {lowest if not lowest > 0 else highest} is not above 0 and finite; greedy sampling has no "
            "log-probability, so give the temperature that the tokens were sampled with"
        )
    if lowest == highest == 1.0:
        return None
    dtype = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    return torch.as_tensor(temperature, dtype=dtype, device=hidden.device).detach().expand(hidden.shape[0])


def _check_rollout(
    rollout: Tensor | tuple[Tensor, Tensor | Head] | None, hidden: Tensor, head: Head
) -> Tensor | tuple[Tensor, Head] | None:
    if rollout is None:
        return None
    if isinstance(rollout, Tensor):
        expected = (hidden.shape[0], head.weight.shape[0])
        if tuple(rollout.shape) != expected or rollout.device != hidden.device:
            raise DataError(
                f"rollout logits are {list(rollout.shape)} on {rollout.device}: "
                f"{list(expected)} on {hidden.device} are needed"
            )
        return rollout.detach()
    states, other = rollout
    if not isinstance(other, Head):
        other = Head(other, scale=head.scale, softcap=head.softcap, shard=head.shard)
    _check_head("rollout hidden", states, other)
    if states.shape[0] != hidden.shape[0] or other.weight.shape[0] != head.weight.shape[0]:
        raise DataError(
            f"rollout has {states.shape[0]} rows over {other.weight.shape[0]} tokens: "
            f"{hidden.shape[0]} rows over {head.weight.shape[0]} are needed, the same contexts and vocabulary"
        )
    return states.detach(), other
