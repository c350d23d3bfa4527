"""THE TABLE: every published objective is one row.

A row says what it `sets` (what makes it itself, and what composes) and what it uses when `alone` (filled in only where
no other row of a combination sets it). `preset("trm+sspo+kl_cov")` joins rows: lists add up, and two rows that set the
same field differently are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from holdfast.errors import ConfigError, nearest
from holdfast.objectives.advantages import Group
from holdfast.objectives.covariance import ClipCov
from holdfast.objectives.gates import Clip, LogArctan, Sigmoid
from holdfast.objectives.masks import TrmAvg, TrmMax
from holdfast.objectives.objective import Objective
from holdfast.objectives.penalties import EntropyBonus, KlCov
from holdfast.objectives.reduce import Normalize, Pool

_SEQUENCE = Normalize("sequence_mean_token_mean")
_GEOMETRIC = Pool("sequence_mean", "after")
_LISTS = ("masks", "weights", "penalties")


@dataclass(frozen=True)
class Row:
    """One published objective: where it is from, what it sets, and how our row differs from the source."""

    title: str
    paper: str
    equation: str
    defaults: str
    differs: str
    sets: Mapping[str, Any] = field(default_factory=dict)
    alone: Mapping[str, Any] = field(default_factory=dict)


TABLE: Mapping[str, Row] = {
    "ppo": Row(
        title="Proximal policy optimisation, clipped, with dual clip",
        paper="arXiv 1707.06347; dual clip arXiv 1912.09729",
        equation="eq. 7; dual clip eq. 5",
        defaults="ε = .2 and dual clip 3: both papers, and verl",
        differs="advantages are group-relative unless given; token mean over the whole optimiser step",
        sets={"gate": Clip(0.2, 0.2, dual=3.0)},
    ),
    "grpo": Row(
        title="Group relative policy optimisation",
        paper="arXiv 2402.03300",
        equation="eq. 3",
        defaults="ε = .2, A = (R − mean)/std: the paper",
        differs="no KL penalty unless one is added; 1e-4 in the standard deviation as in TRL",
        sets={"gate": Clip(0.2, 0.2), "normalize": _SEQUENCE, "advantage": Group()},
    ),
    "dapo": Row(
        title="Decoupled clip and dynamic sampling policy optimisation",
        paper="arXiv 2503.14476",
        equation="eq. 8",
        defaults="ε = .2 / .28, token mean: the paper",
        differs="dynamic sampling and overlong shaping belong to the data, not to the objective",
        sets={"gate": Clip(0.2, 0.28), "normalize": Normalize("token_mean")},
    ),
    "gspo": Row(
        title="Group sequence policy optimisation",
        paper="arXiv 2507.18071",
        equation="eq. 5 and 6",
        defaults="clip 3e-4 / 4e-4: section 5.1",
        differs="none",
        sets={"gate": Clip(3e-4, 4e-4), "pool": Pool("sequence_mean", "before"), "normalize": _SEQUENCE},
    ),
    "sapo": Row(
        title="Soft adaptive policy optimisation",
        paper="arXiv 2511.20347",
        equation="eq. 5 and 6",
        defaults="τ = 1.0 / 1.05: the paper",
        differs="none",
        sets={"gate": Sigmoid(1.0, 1.05), "normalize": _SEQUENCE},
    ),
    "sspo": Row(
        title="Soft sequence policy optimisation, arctan of the log-ratio",
        paper="arXiv 2602.19327",
        equation="the general form s_i = Π_t f(r_t)^(1/n_i)",
        defaults="the gate is the later versions' default; temperatures 1.0 / 1.05 are SAPO's, the paper's not settled",
        differs="temperatures, as said",
        sets={"gate": LogArctan(1.0, 1.05), "pool": _GEOMETRIC, "normalize": _SEQUENCE},
    ),
    "trm_max": Row(
        title="Trust region masking by the maximum divergence",
        paper="arXiv 2512.23075",
        equation="eq. 15",
        defaults="δ = .05 on k2: the paper's training runs",
        differs="divided by the step's tokens, not sequences, when alone: a positive factor per step",
        sets={"masks": (TrmMax(),), "denominator": "rollout"},
    ),
    "trm_avg": Row(
        title="Trust region masking by the mean divergence",
        paper="arXiv 2512.23075",
        equation="eq. 16",
        defaults="δ = .001 on k3: the paper's training runs",
        differs="as trm_max",
        sets={"masks": (TrmAvg(),), "denominator": "rollout"},
    ),
    "trm": Row(
        title="Trust region masking by maximum and mean together",
        paper="arXiv 2512.23075",
        equation="eq. 15 and 16",
        defaults="δ = .1 and δ_avg = .002: together stable where each alone collapsed",
        differs="as trm_max",
        sets={"masks": (TrmMax(0.1), TrmAvg(0.002)), "denominator": "rollout"},
    ),
    "clip_cov": Row(
        title="Entropy control by clipping high-covariance tokens",
        paper="arXiv 2505.22617",
        equation="eq. 11",
        defaults="r = 2e-4, 1 < Cov < 5: the paper",
        differs="statistics over the whole optimiser step; see ClipCov",
        sets={"masks": (ClipCov(),)},
        alone={"gate": Clip(0.2, 0.2)},
    ),
    "kl_cov": Row(
        title="Entropy control by a KL penalty on high-covariance tokens",
        paper="arXiv 2505.22617",
        equation="eq. 12",
        defaults="k = 2e-3, β = 1: the paper's 7B runs",
        differs="a smooth k2 instead of |log θ − log old|; see KlCov",
        sets={"penalties": (KlCov(),)},
    ),
    "entropy_bonus": Row(
        title="The classical entropy bonus",
        paper="arXiv 2604.09676 for its bias; the bonus is Williams and Peng (1991)",
        equation="L − α H",
        defaults="α = .001, common in practice",
        differs="the mean of H uses the objective's normaliser",
        sets={"penalties": (EntropyBonus(),)},
        alone={"gate": Clip(0.2, 0.2)},
    ),
}


def list_presets() -> list[str]:
    """The names of all rows, in the table's order."""
    return list(TABLE)


def preset(name: str, **overrides: Any) -> Objective:
    """The objective of one row, or of several joined with "+"; keywords replace settings (`Objective.with_`).

    `preset("trm+sspo+kl_cov", delta=0.05)`. Raises ConfigError for an unknown row (with the nearest names), for two
    rows that set the same field differently, and for overrides that do not fit.
    """
    names = [part.strip() for part in name.split("+")]
    for part in names:
        if part not in TABLE:
            raise ConfigError(f"unknown preset {part!r}: {nearest(part, TABLE)}")
    if len(set(names)) < len(names):
        raise ConfigError(f"preset {name!r} names a row twice")
    settings: dict[str, Any] = {}
    owner: dict[str, str] = {}
    for part in names:
        for key, value in TABLE[part].sets.items():
            if key in _LISTS:
                settings[key] = settings.get(key, ()) + value
            elif settings.get(key, value) != value:
                raise ConfigError(
                    f"presets {owner[key]!r} and {part!r} both set {key} ({settings[key]} and {value}): use one, "
                    f"and change it with .with_({key}=...)"
                )
            else:
                settings[key], owner[key] = value, part
    for part in names:
        settings = dict(TABLE[part].alone) | settings
    return Objective(name="+".join(names), **settings).with_(**overrides)
