"""Every bound on the surrogate error that the given drifts allow, checked, named and compared.

>>> rows = table(4096, kl=1e-4, seq_kl=0.01)
>>> round(rows["mixed_kl"].value.item(), 3), bool(rows["mixed_kl"].vacuous)
(8.192, True)
>>> unified(rows).winner, round(unified(rows).value.item(), 3)
('sequence_kl', 0.01)

The formulas, with their sources, are in `bound_formulas`; statements and proofs in docs/theory/bounds.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from holdfast.core import bound_formulas as formula
from holdfast.core.divergences import Divergence
from holdfast.errors import DataError

Number = int | float | Tensor | Divergence

_ROUNDING = 1 + 1e-6  # of divergences measured in float32
_ASSUMPTIONS = {
    "tv": "TV(c) ≤ tv at every context that either policy can reach",
    "kl": "KL(rollout‖current)(c) ≤ kl at every context that either policy can reach",
    "chi2": "χ²(c) = E_rollout[(ρ - 1)²] ≤ chi2 at every context that either policy can reach",
    "seq_kl": "seq_kl = Σ_t E_rollout KL(c_t), the KL of whole sequences, over all rollouts",
    "seq_tv": "the TV of whole sequences is at most seq_tv",
    "reward_sd": "rewards of one prompt scatter by at most reward_sd, √(E Var(R | prompt))",
    "tv_by_position": "mean TV at each position over all rollouts, ended ones counting as zero",
    "kl_by_position": "mean KL at each position over all rollouts, ended ones counting as zero",
    "chi2_by_position": "mean χ² at each position over all rollouts, ended ones counting as zero",
}
_FOLLOWS_FROM = {"tv": "kl", "seq_tv": "seq_kl"}


@dataclass(frozen=True)
class Bound:
    """One bound on |J(θ) - J(rollout) - L'| for a reward in [0, 1]; float64, shaped like the inputs.

    `value` is the bound as published; `halved` the one that is proven here and meant to be used: a reward may be
    centred at ½, which halves every published bound; `linear`, `mixed_kl` and `mixed_tv` are proven to be smaller still
    ([4a], [6a]). Ours are stated centred: there both numbers are the same, and `published` is False.
    `inputs` are the numbers it was computed from and `assumptions` what must be true of them. `winners`, on the
    unified bound only, names the tightest bound for each element.
    """

    name: str
    value: Float[Tensor, "*shape"]
    halved: Float[Tensor, "*shape"]
    inputs: Mapping[str, Tensor]
    assumptions: tuple[str, ...]
    published: bool = False
    winners: tuple[str, ...] = ()

    @property
    def vacuous(self) -> Bool[Tensor, "*shape"]:
        """True where even the halved bound exceeds 1: J lies in [0, 1], so it says nothing about J."""
        return self.halved > 1

    @property
    def winner(self) -> str:
        """The tightest bound of a unified bound with one element."""
        return self.winners[0] if len(self.winners) == 1 else "several"

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers for JSON."""
        row: dict[str, Any] = {
            "name": self.name,
            "value": self.value.tolist(),
            "halved": self.halved.tolist(),
            "vacuous": self.vacuous.tolist(),
            "assumptions": list(self.assumptions),
        }
        return row | ({"winner": self.winner} if self.winners else {})


@dataclass(frozen=True)
class ByPosition:
    """Means over all rollouts at each position, ended rollouts counting as zero; shape [..., T], any may be missing.

    `tv` in [0, 1], `kl` = KL(rollout‖current) in nats, `chi2` = E_rollout[(ρ - 1)²].
    """

    tv: Number | None = None
    kl: Number | None = None
    chi2: Number | None = None


def table(
    horizon: int,
    *,
    kl: Number | None = None,
    tv: Number | None = None,
    seq_kl: Number | None = None,
    seq_tv: Number | None = None,
    chi2: Number | None = None,
    by_position: ByPosition | None = None,
    reward_sd: Number | None = None,
) -> dict[str, Bound]:
    """All bounds that these inputs allow, by name; none is computed from a guess.

    `kl`, `tv`, `chi2` are maxima over contexts: δ, ε and x. `seq_kl`, `seq_tv` are divergences of whole sequences: S
    and V. Any may be a tensor, they broadcast. Without `tv`, ε = min(1, √(kl/2)); without `seq_kl`, S is the sum of
    `by_position.kl`, or T·kl; without `seq_tv`, V = min(1, √(S/2)). `reward_sd` is the scatter of one prompt's rewards,
    √(E Var(R | prompt)) ≤ ½, for `martingale`.

    Raises DataError for a horizon below 1, a negative, NaN or infinite divergence, TV above 1, a `Divergence` that
    is an estimate or a lower bound, a `reward_sd` above ½, and for inputs that cannot be true together: kl < 2·tv²
    (Pinsker), seq_kl > T·kl, seq_tv > T·tv, seq_tv > √(seq_kl/2), chi2 < 4·tv².
    """
    given = {"kl": kl, "tv": tv, "seq_kl": seq_kl, "seq_tv": seq_tv, "chi2": chi2, "reward_sd": reward_sd}
    measured = _measured(horizon, given, by_position)
    known = _completed(measured)
    rows: dict[str, Bound] = {}
    for row in _ROWS:
        if row.name not in rows and all(need in known for need in row.needs):
            rows[row.name] = row.bound(horizon, known, measured)
    return rows


def unified(bounds: Mapping[str, Bound]) -> Bound:
    """The smallest of these bounds, element by element, and in `winners` which one it is (by the halved values).

    DataError where there is none to choose from.
    """
    if not bounds:
        raise DataError("no bound can be computed from these inputs: give at least kl or tv (maxima over contexts)")
    rows = list(bounds.values())
    halved = torch.stack(torch.broadcast_tensors(*(row.halved for row in rows)))
    value = torch.stack(torch.broadcast_tensors(*(row.value for row in rows)))
    winners = tuple(rows[i].name for i in halved.argmin(0).reshape(-1).tolist())
    chosen = [row for row in rows if row.name in winners]
    return Bound(
        name="unified",
        value=value.amin(0),
        halved=halved.amin(0),
        inputs={key: number for row in chosen for key, number in row.inputs.items()},
        assumptions=tuple(dict.fromkeys(text for row in chosen for text in row.assumptions)),
        winners=winners,
    )


@dataclass(frozen=True)
class _Row:
    """One way to compute one bound: what it needs, what it may use besides, and whether it is a published one.

    `proven` is what is proven of a published bound where that is less than half of it.
    """

    name: str
    needs: tuple[str, ...]
    compute: Callable[[int, Mapping[str, Tensor]], Tensor]
    uses: tuple[str, ...] = ()
    published: bool = False
    proven: Callable[[int, Mapping[str, Tensor]], Tensor] | None = None

    def bound(self, horizon: int, known: Mapping[str, Tensor], measured: Mapping[str, Tensor]) -> Bound:
        inputs = {key: known[key] for key in self.needs + self.uses if key in known}
        value = self.compute(horizon, known)
        assumptions = tuple(dict.fromkeys(_assumption(key, measured) for key in inputs))
        halved = self.proven(horizon, known) if self.proven else value / 2 if self.published else value
        return Bound(self.name, value, halved, inputs, assumptions, self.published)


def _assumption(key: str, measured: Mapping[str, Tensor]) -> str:
    """What must be true for an input: of itself if it was given, else of what it follows from."""
    return _ASSUMPTIONS[key if key in measured else _FOLLOWS_FROM[key]]


def _mixed(horizon: int, known: Mapping[str, Tensor]) -> Tensor:
    """[4a] with what is known of prefixes: V_t ≤ min(V, Σ_{s≤t} D̄_s, √(½ Σ_{s≤t} KL_s))."""
    parted = []
    if "tv_by_position" in known:
        parted.append(known["tv_by_position"].cumsum(-1))
    if "kl_by_position" in known:
        parted.append(formula.pinsker(known["kl_by_position"].cumsum(-1)))
    prefix = torch.stack(torch.broadcast_tensors(*parted)).amin(0) if parted else None
    return formula.mixed_prefixes(horizon, known["tv"], known["seq_tv"], prefix)


def _linear(sum_tv: Tensor, known: Mapping[str, Tensor]) -> Tensor:
    """[6a] with V where it is known, else Σ D̄."""
    return formula.linear_and_sequence(sum_tv, known.get("seq_tv", sum_tv))


def _any_tv(known: Mapping[str, Tensor]) -> Tensor:
    """The TV, or none at all: 1, in the shape of what is known."""
    return known["tv"] if "tv" in known else torch.ones_like(known["chi2"])


def _any_kl(known: Mapping[str, Tensor]) -> Tensor:
    """The KL, or any at all: infinity, in the shape of what is known."""
    return known["kl"] if "kl" in known else torch.full_like(known.get("tv", known.get("chi2")), torch.inf)  # pyright: ignore[reportArgumentType]


_PREFIXES = ("tv_by_position", "kl_by_position")
# The published bounds in the order of arXiv 2512.23075, then ours. Of several rows with one name, the first whose
# needs are known is used: measurements by position before maxima.
_ROWS = (
    _Row("classical", ("tv",), lambda T, k: formula.classical(T, k["tv"]), published=True),
    _Row("coupling", ("tv",), lambda T, k: formula.coupling(T, k["tv"]), published=True),
    _Row(
        "pinsker_marginal_kl",
        ("kl",),
        lambda T, k: formula.pinsker_marginal(T, formula.pinsker(k["kl"]), k["kl"]),
        published=True,
    ),
    _Row(
        "pinsker_marginal_tv",
        ("tv", "kl"),
        lambda T, k: formula.pinsker_marginal(T, k["tv"], k["kl"]),
        published=True,
    ),
    _Row(
        "mixed_kl",
        ("kl", "seq_kl"),
        lambda T, k: formula.mixed(T, formula.pinsker(k["kl"]), formula.pinsker(k["seq_kl"])),
        uses=_PREFIXES,
        published=True,
        proven=lambda T, k: _mixed(T, {**k, "tv": formula.pinsker(k["kl"]), "seq_tv": formula.pinsker(k["seq_kl"])}),
    ),
    _Row(
        "mixed_tv",
        ("tv", "seq_tv"),
        lambda T, k: formula.mixed(T, k["tv"], k["seq_tv"]),
        uses=_PREFIXES,
        published=True,
        proven=_mixed,
    ),
    _Row(
        "adaptive",
        ("tv_by_position", "tv"),
        lambda T, k: formula.adaptive(k["tv_by_position"], k["tv"], _any_kl(k)),
        uses=("kl",),
        published=True,
    ),
    _Row(
        "adaptive",
        ("tv",),
        lambda T, k: formula.adaptive_uniform(T, k["tv"], _any_kl(k)),
        uses=("kl",),
        published=True,
    ),
    _Row(
        "linear",
        ("tv_by_position",),
        lambda T, k: formula.linear(k["tv_by_position"].sum(-1)),
        uses=("seq_tv",),
        published=True,
        proven=lambda T, k: _linear(k["tv_by_position"].sum(-1), k),
    ),
    _Row(
        "linear",
        ("tv",),
        lambda T, k: formula.linear(T * k["tv"]),
        uses=("seq_tv",),
        published=True,
        proven=lambda T, k: _linear(T * k["tv"], k),
    ),
    _Row("path", ("tv",), lambda T, k: formula.path_uniform(T, k["tv"])),
    _Row(
        "survival",
        ("tv_by_position", "tv"),
        lambda T, k: formula.survival(k["tv_by_position"], k["tv"], _any_kl(k)),
        uses=("kl",),
    ),
    _Row("survival", ("tv",), lambda T, k: formula.survival_uniform(T, k["tv"], _any_kl(k)), uses=("kl",)),
    _Row(
        "cauchy_schwarz",
        ("chi2_by_position", "kl_by_position"),
        lambda T, k: formula.cauchy_schwarz(k["chi2_by_position"], k["kl_by_position"]),
    ),
    _Row(
        "cauchy_schwarz",
        ("chi2", "kl"),
        lambda T, k: formula.cauchy_schwarz_uniform(T, k["chi2"], k["kl"], k.get("seq_kl", T * k["kl"])),
        uses=("seq_kl",),
    ),
    _Row(
        "martingale",
        ("chi2",),
        lambda T, k: formula.martingale(T, k["chi2"], k.get("reward_sd", 0.5)),
        uses=("reward_sd",),
    ),
    _Row(
        "split",
        ("chi2",),
        lambda T, k: formula.split(T, k["chi2"], _any_tv(k), _any_kl(k)),
        uses=("tv", "kl"),
    ),
    _Row(
        "two_parts",
        ("chi2_by_position", "seq_tv"),
        lambda T, k: formula.two_parts(k["chi2_by_position"].sum(-1), k["seq_tv"]),
    ),
    _Row("two_parts", ("chi2", "seq_tv"), lambda T, k: formula.two_parts(T * k["chi2"], k["seq_tv"])),
    _Row("sequence_kl", ("seq_kl",), lambda T, k: formula.sequence_kl(k["seq_kl"])),
    _Row("sequence_kl", ("kl",), lambda T, k: formula.sequence_kl(T * k["kl"])),
)


def _measured(horizon: int, given: Mapping[str, Number | None], by_position: ByPosition | None) -> dict[str, Tensor]:
    """The inputs as float64 tensors, each checked alone and all together."""
    if isinstance(horizon, bool) or not isinstance(horizon, int) or horizon < 1:
        raise DataError(f"horizon is {horizon!r}, allowed is an integer from 1 on: the longest response in tokens")
    known = {name: _number(name, value) for name, value in given.items() if value is not None}
    for name, value in (vars(by_position) if by_position else {}).items():
        if value is not None:
            known[f"{name}_by_position"] = _number(f"{name}_by_position", value, horizon)
    if "seq_kl" not in known and "kl_by_position" in known:
        known["seq_kl"] = known["kl_by_position"].sum(-1)
    _check_together(horizon, known)
    return known


def _completed(measured: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inputs and what follows from them by Pinsker."""
    known = dict(measured)
    if "tv" not in known and "kl" in known:
        known["tv"] = formula.pinsker(known["kl"])
    if "seq_tv" not in known and "seq_kl" in known:
        known["seq_tv"] = formula.pinsker(known["seq_kl"])
    return known


def _number(name: str, value: Number, positions: int | None = None) -> Float[Tensor, "*shape"]:
    """One input as a float64 tensor on the CPU, finite, not negative, at most 1 where it is a TV."""
    if isinstance(value, Divergence):
        value = value.as_upper()
    number = torch.as_tensor(value, dtype=torch.float64).detach().cpu()
    bad = number[~(number.isfinite() & (number >= 0))]
    if bad.numel():
        raise DataError(
            f"{name} is {bad[0].item():g}, allowed are finite numbers from 0 on: a divergence is never less"
        )
    if name == "reward_sd" and bool((number > 0.5).any()):
        raise DataError(f"reward_sd is {number.max().item():g}, allowed is 0 to 0.5: rewards lie in [0, 1]")
    if name.startswith(("tv", "seq_tv")):
        if bool((number > _ROUNDING).any()):
            peak = number.max().item()
            raise DataError(f"{name} is {peak:g}, allowed is 0 to 1: TV is ½ Σ|p - q|, half the L1 distance")
        number = number.clamp(max=1)
    if positions is not None and (number.dim() == 0 or number.shape[-1] != positions):
        raise DataError(
            f"{name} has shape {list(number.shape)}, its last dimension must be the horizon, {positions}: "
            "pad with zeros up to the longest response allowed"
        )
    return number


def _check_together(horizon: int, known: Mapping[str, Tensor]) -> None:
    """Refuse inputs that no pair of policies can have; the message names both numbers and the inequality."""
    limits = (
        ("tv_by_position", "tv", lambda tv: tv[..., None], "a mean is at most the maximum"),
        ("kl_by_position", "kl", lambda kl: kl[..., None], "a mean is at most the maximum"),
        ("chi2_by_position", "chi2", lambda x: x[..., None], "a mean is at most the maximum"),
        ("tv", "kl", formula.pinsker, "kl ≥ 2·tv² (Pinsker)"),
        ("seq_tv", "seq_kl", formula.pinsker, "seq_kl ≥ 2·seq_tv² (Pinsker)"),
        ("seq_kl", "kl", lambda kl: horizon * kl, f"seq_kl ≤ horizon·kl, horizon = {horizon}"),
        ("seq_tv", "tv", lambda tv: horizon * tv, f"seq_tv ≤ horizon·tv, horizon = {horizon}"),
        ("tv", "chi2", lambda x: x.sqrt() / 2, "chi2 ≥ 4·tv² (Cauchy-Schwarz)"),
    )
    for small, large, limit, law in limits:
        if small in known and large in known:
            pair = torch.broadcast_tensors(known[small], limit(known[large]))
            if bool((pair[0] > pair[1] * _ROUNDING).any()):
                at = int((pair[0] > pair[1] * _ROUNDING).reshape(-1).int().argmax())
                raise DataError(
                    f"{small} = {pair[0].reshape(-1)[at].item():g} is impossible with this {large}: it can be at most "
                    f"{pair[1].reshape(-1)[at].item():g}, since {law}. Measure both on the same contexts, with the "
                    "same two policies"
                )
