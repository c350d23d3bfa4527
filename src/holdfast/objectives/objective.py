"""The objective: parts composed into one loss.

    L = − Σ_it n_it M_it w_it φ_it + Σ_it n'_it Σ_p penalty_p,it

with n the normaliser, M the masks, w the weights and φ the gated, pooled, carried ratio times the advantage. Shares
of micro-batches add up to L exactly: whole-batch statistics are made once, in `prepare`, and handed down in a Plan.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from itertools import groupby
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from holdfast.errors import ConfigError, nearest
from holdfast.objectives import checks, composition
from holdfast.objectives.metrics import LengthQuartiles, covariance_share, loss_metrics
from holdfast.objectives.parts.advantages import Advantage, Group
from holdfast.objectives.parts.gates import Gate, Identity
from holdfast.objectives.parts.masks import Mask
from holdfast.objectives.parts.part import Part, coerce, coerce_fields
from holdfast.objectives.parts.penalties import Penalty
from holdfast.objectives.parts.reduce import Normalize, Pool
from holdfast.objectives.parts.terms import Terms
from holdfast.objectives.parts.weights import Weight
from holdfast.objectives.policy_term import gated, policy_loss
from holdfast.types import Batch, Counts, LossOutput, TokenStats

Carrier = Literal["ratio", "score"]
_LISTS: dict[str, type[Part]] = {"masks": Mask, "weights": Weight, "penalties": Penalty}


@dataclass(frozen=True)
class Plan:
    """What `prepare` learnt about one whole optimiser step; `select` gives the share of a micro-batch.

    `prepared` holds one whole-batch statistic (or None) per mask, weight and penalty, in that order.
    """

    counts: Counts
    accepted: Counts
    quartiles: LengthQuartiles
    covariance_share: Tensor
    prepared: tuple[Tensor | None, ...]
    step: int

    def select(self, rows: Int[Tensor, " b"] | slice, length: int | None = None) -> Plan:
        """The plan for these rows, optionally trimmed to the first `length` columns; 0-d statistics stay whole."""
        chosen = tuple(p if p is None or p.ndim == 0 else p[rows][:, :length] for p in self.prepared)
        return replace(self, prepared=chosen)


@dataclass(frozen=True)
class Objective:
    """A policy objective as data: call it on a batch and one forward pass to get a loss.

    `denominator`: the policy below the ratio r = θ/μ, `old` (PPO's proximal policy) or `rollout` (the engine).
    `carrier`: the gradient runs through the gate ("ratio": ∇f(r)) or past it ("score": sg(f(r)) ∇log π).
    """

    gate: Gate = field(default_factory=Identity)
    pool: Pool = field(default_factory=Pool)
    carrier: Carrier = "ratio"
    denominator: Literal["old", "rollout"] = "old"
    masks: tuple[Mask, ...] = ()
    weights: tuple[Weight, ...] = ()
    penalties: tuple[Penalty, ...] = ()
    normalize: Normalize = field(default_factory=Normalize)
    advantage: Advantage = field(default_factory=Group)
    name: str = "custom"

    def __post_init__(self) -> None:
        if self.gate.score_only and self.carrier == "ratio":
            raise ConfigError(
                f"gate {self.gate.kind()!r} has no useful gradient of its own: use carrier='score', not 'ratio'"
            )
        for name, family in _LISTS.items():
            for part in getattr(self, name):
                if not isinstance(part, family):
                    raise ConfigError(f"{name} holds {part!r}: expected {family.family}s")
        composition.refuse_double_corrections(self.name, self.gate, self.denominator, self.weights)

    @property
    def parts(self) -> tuple[Any, ...]:
        """Masks, weights and penalties: the parts that may look at the whole batch."""
        return (*self.masks, *self.weights, *self.penalties)

    @property
    def needs(self) -> frozenset[str]:
        """Fields of Batch and TokenStats that may not be None (`old_logprobs` may: then old is the current policy)."""
        needed = frozenset().union(self.pool.needs, self.advantage.needs, *(part.needs for part in self.parts))
        needed |= {"rollout_logprobs"} if self.denominator == "rollout" else frozenset()
        return needed - {"old_logprobs"}

    @property
    def idle_where_old(self) -> tuple[Part, ...]:
        """The gate and parts that change no gradient while θ = old, as with one optimiser step per rollout batch."""
        return tuple(part for part in (self.gate, *self.parts) if not part.acts_where_old(self.denominator))

    @property
    def remedies(self) -> dict[str, str]:
        """Settings for `with_` that let idle parts act there; a gate beside a weight needs several steps instead."""
        return composition.remedies(self.idle_where_old, composition.corrects(self.weights))

    @property
    def double_corrections(self) -> list[str]:
        """Sentences about drift that is counted twice and may be meant to be; what never is, cannot be built."""
        return composition.double_corrections(self.gate, self.denominator, self.weights)

    def idle_note(self, several: str = "take several steps", *, gate: bool = True) -> str:
        """A sentence on what cannot act with one optimiser step per rollout batch, "" where everything can.

        `several` says how to take more, in the words of whoever trains; `gate` is False where its idling is no news.
        """
        idle = [part for part in self.idle_where_old if gate or part is not self.gate]
        return composition.idle_note(idle, composition.corrects(self.weights), several)

    def estimate_advantages(
        self,
        rewards: Float[Tensor, " B"],
        group_ids: Int[Tensor, " B"],
        response_mask: Bool[Tensor, "B T"],
        values: Float[Tensor, "B T"] | None = None,
        score_norms: Float[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, "B T"]:
        """Advantages of every response token from the rewards of B sequences, by `self.advantage`.

        `group_ids` number the prompts; `values` are a value head's estimates and `score_norms` 1 − 2p + Σp² of the
        sampled tokens, for advantages that use them (`Advantage.beside`).
        """
        advantages = self.advantage.estimate(rewards, group_ids, response_mask, values, score_norms)
        if advantages.ndim == 1:
            advantages = advantages[:, None].expand(response_mask.shape)
        return torch.where(response_mask, advantages, 0)

    def prepare(
        self,
        batch: Batch,
        stats: TokenStats | None = None,
        *,
        step: int = 0,
        counts: Counts | None = None,
        accepted: Counts | None = None,
        validate: bool = True,
    ) -> Plan:
        """Whole-batch statistics of one optimiser step, without a gradient.

        `stats` is the current policy on the whole batch (a pass without gradient); None stands for "θ = old" and
        then needs `old_logprobs`. `counts` (and `accepted`, for a normaliser over accepted tokens) are sums over ranks
        where the step is spread over several. Validation reads values back from the device; switch it off to avoid the
        synchronisation.
        """
        checks.check_kinds(batch, stats)
        with torch.no_grad():
            stats = checks.stats_or_old(batch, stats, self.needs)
            if validate:
                checks.validate(batch, stats, self.needs)
            terms = self._terms(batch, stats)
            prepared = tuple(part.prepare(terms, step) for part in self.parts)
            keep, _ = self._keep(terms, prepared)
            return Plan(
                counts=counts or Counts.of(terms.mask),
                accepted=accepted or Counts.of(keep),
                quartiles=LengthQuartiles.of(terms.mask),
                covariance_share=covariance_share(terms),
                prepared=prepared,
                step=step,
            )

    def __call__(self, batch: Batch, stats: TokenStats, *, plan: Plan | None = None) -> LossOutput:
        """This batch's share of the loss. Without a plan the batch is the whole optimiser step."""
        checks.check_kinds(batch, stats)
        if plan is None:
            plan = self.prepare(batch, stats.detach())
        with torch.no_grad():
            terms = self._terms(batch, stats)
        out = self._policy_term(terms, plan)
        if not self.penalties:
            return out
        return replace(out, loss=out.loss + self._penalty(terms.with_gradient(), plan))

    def correction(self, batch: Batch, stats: TokenStats) -> tuple[Bool[Tensor, "B T"], Float[Tensor, "B T"]]:
        """Masks and weights alone, without gate and normaliser: for trainers that keep a loss of their own."""
        plan = self.prepare(batch, stats.detach())
        with torch.no_grad():
            terms = self._terms(batch, stats.detach())
            keep, _ = self._keep(terms, plan.prepared)
            return keep, self._weight(terms, plan).expand(keep.shape)

    def _terms(self, batch: Batch, stats: TokenStats) -> Terms:
        return self.advantage.in_loss(Terms.of(batch, stats, self.denominator))

    def _policy_term(self, terms: Terms, plan: Plan) -> LossOutput:
        with torch.no_grad():
            keep, reasons = self._keep(terms, plan.prepared)
            ratios = gated(terms, self.gate, self.pool, self.carrier, self.denominator)
            weight = self._weight(terms, plan)
            weights = torch.where(keep, terms.advantages, 0) * (-self._normalizer(terms, plan, keep) * weight)
        loss = policy_loss(terms, ratios, self.pool, self.carrier, weights)
        del weights
        with torch.no_grad():
            metrics = loss_metrics(terms, plan.counts, plan.quartiles, keep, ratios, weight, plan.covariance_share)
        return LossOutput(loss=loss, metrics=metrics, trust_mask=keep, reasons=reasons)

    def _keep(self, terms: Terms, prepared: tuple[Tensor | None, ...]) -> tuple[Tensor, dict[str, Tensor]]:
        """The trust mask, and per mask part the response tokens that it rejected."""
        keep, reasons = terms.mask, {}
        with torch.no_grad():
            for number, (part, statistic) in enumerate(zip(self.masks, prepared[: len(self.masks)], strict=True)):
                kept = part.keep(terms, statistic)
                name = part.kind() if part.kind() not in reasons else f"{part.kind()}_{number + 1}"
                reasons[name] = terms.mask & ~kept
                keep = keep & kept
        return keep, reasons

    def _normalizer(self, terms: Terms, plan: Plan, keep: Tensor) -> Tensor:
        if self.normalize.over == "all":
            return self.normalize.weights(terms.mask, plan.counts, terms.logprobs.dtype)
        return self.normalize.weights(keep, plan.accepted, terms.logprobs.dtype)

    def _weight(self, terms: Terms, plan: Plan) -> Tensor:
        weight = terms.logprobs.new_ones(())
        first = len(self.masks)
        for part, prepared in zip(self.weights, plan.prepared[first : first + len(self.weights)], strict=True):
            weight = weight * part.weight(terms, prepared)
        return weight

    def _penalty(self, terms: Terms, plan: Plan) -> Tensor:
        normalizer = self.normalize.weights(terms.mask, plan.counts, terms.logprobs.dtype)
        first = len(self.masks) + len(self.weights)
        values = [
            torch.where(terms.mask, part.penalty(terms, prepared, plan.step), 0)
            for part, prepared in zip(self.penalties, plan.prepared[first:], strict=True)
        ]
        return sum((normalizer * value).sum() for value in values)  # pyright: ignore[reportReturnType]

    def after_step(self, metrics: Mapping[str, Tensor | float]) -> Objective:
        """The objective for the next optimiser step: adaptive coefficients move by the step's `metrics["entropy"]`."""
        if "entropy" not in metrics:
            return self
        entropy = float(metrics["entropy"])
        return replace(self, penalties=tuple(penalty.after_step(entropy) for penalty in self.penalties))

    def with_(self, **changes: Any) -> Objective:
        """The same objective with these fields, or these fields of its parts, replaced.

        `with_(gate=Clip(0.1))` replaces a field; `with_(delta=0.3)` the field `delta` of the one part that has it;
        `with_(**{"clip_cov.high": 3.0})` names the part where several have the field.
        """
        objective, own = self, {f.name for f in fields(Objective)}
        # Neighbouring fields change together: one of them alone may not fit the others.
        for is_own, group in groupby(changes.items(), key=lambda change: change[0] in own):
            if is_own:
                objective = replace(objective, **{key: _coerce_field(key, value) for key, value in group})
                continue
            objective = objective._with_knobs(dict(group))
        return objective

    def _with_knobs(self, changes: Mapping[str, Any]) -> Objective:
        """Fields of parts replaced, those of one part together: one of them alone may not fit the others."""
        slots, knobs = self._slots(), {}
        for key, value in changes.items():
            owner, _, knob = key.rpartition(".")
            owners = [
                (place, part)
                for place, (slot, part) in enumerate(slots)
                if any(f.name == knob for f in fields(part)) and owner in ("", part.kind(), slot)
            ]
            if len(owners) != 1:
                raise ConfigError(self._knob_error(key, [slots[place] for place, _ in owners]))
            knobs.setdefault(owners[0][0], {})[knob] = value
        objective = self
        for place, (slot, part) in enumerate(slots):
            if place in knobs:
                changed = replace(part, **coerce_fields(type(part), knobs[place]))
                if slot in _LISTS:
                    kept = getattr(objective, slot)
                    changed = tuple(changed if p is part else p for p in kept)
                objective = replace(objective, **{slot: changed})
        return objective

    def _slots(self) -> list[tuple[str, Any]]:
        single = [(slot, getattr(self, slot)) for slot in ("gate", "pool", "normalize", "advantage")]
        return single + [(slot, part) for slot in _LISTS for part in getattr(self, slot)]

    def _knob_error(self, key: str, owners: list[tuple[str, Any]]) -> str:
        if owners:
            names = ", ".join(f"{part.kind()}.{key.rpartition('.')[2]}" for _, part in owners)
            return f"{key!r} is a setting of several parts of {self.name!r}: name one of {names}"
        known = {f.name for _, part in self._slots() for f in fields(part)} | {f.name for f in fields(Objective)}
        return f"{self.name!r} has no setting {key!r}: {nearest(key.rpartition('.')[2], known)}"

    def explain(self) -> str:
        """The composed formula in unicode, with its numbers."""
        value = "f(r)" if self.pool.over == "token" else "φ"
        carried = f"{value}·A" if self.carrier == "ratio" else f"sg({value})·A·log θ"
        factors = ["n", "M" if self.masks else "", "w" if self.weights else "", carried]
        lines = [
            f"{self.name}:  L = −Σ_it {'·'.join(f for f in factors if f)}" + (" + Σ_it n·P" if self.penalties else ""),
            f"  r_t = θ/{self.denominator}",
            f"  {self.gate.formula()}",
            f"  {self.pool.formula()}",
            f"  n = {self.normalize.formula()}",
            *(f"  M: {mask.formula()}" for mask in self.masks),
            *(f"  w: {weight.formula()}" for weight in self.weights),
            *(f"  P: {penalty.formula()}" for penalty in self.penalties),
            f"  {self.advantage.formula()}",
            *(f"  Note: {note}" for note in (self.idle_note(), *self.double_corrections) if note),
        ]
        return "\n".join(line for line in lines if line.strip())

    def to_dict(self) -> dict[str, Any]:
        """Every part as plain data (strings, numbers, lists, dicts): fit for TOML and JSON; `from_dict` reads it."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {
            name: [part.to_dict() for part in value]
            if isinstance(value, tuple)
            else value.to_dict()
            if isinstance(value, Part)
            else value
            for name, value in values.items()
        }

    @staticmethod
    def from_dict(settings: Mapping[str, Any]) -> Objective:
        """The objective that `to_dict` wrote; missing keys take their defaults, unknown ones raise ConfigError."""
        known = {f.name for f in fields(Objective)}
        for key in settings:
            if key not in known:
                raise ConfigError(f"unknown key {key!r} for an objective: {nearest(key, known)}")
        return Objective(**{key: _coerce_field(key, value) for key, value in settings.items()})


def _coerce_field(key: str, value: Any) -> Any:
    if key in _LISTS:
        if isinstance(value, str | Mapping | Part):
            raise ConfigError(f"{key} = {value!r}: expected a list")
        return tuple(v if isinstance(v, Part) else _LISTS[key].from_dict(v) for v in value)
    hints: dict[str, Any] = {
        "gate": Gate,
        "pool": Pool,
        "normalize": Normalize,
        "advantage": Advantage,
        "carrier": Carrier,
        "denominator": Literal["old", "rollout"],
        "name": str,
    }
    return coerce(value, hints[key], key)
