"""GRPOConfig with the plug-in's own settings, and what a run says about itself: trackers, training_args.bin."""

from __future__ import annotations

import copyreg
import dataclasses
import functools
from collections.abc import Iterator, Mapping
from dataclasses import field
from typing import Any

from trl import GRPOConfig

from holdfast.errors import ConfigError
from holdfast.objectives.table import TABLE

REPLACED = {
    "loss_type": "the preset names the loss",
    "epsilon": "the gate's `low` and `high`",
    "epsilon_high": "the gate's `high`",
    "delta": "the gate's `dual`",
    "importance_sampling_level": "pool = Pool('sequence_mean'), as in preset 'gspo'",
    "sapo_temperature_neg": "preset 'sapo', `tau_neg`",
    "sapo_temperature_pos": "preset 'sapo', `tau_pos`",
    "vespo_k_pos": "preset 'vespo', `k_pos`",
    "vespo_lambda_pos": "preset 'vespo', `lambda_pos`",
    "vespo_k_neg": "preset 'vespo', `k_neg`",
    "vespo_lambda_neg": "preset 'vespo', `lambda_neg`",
    "scale_rewards": "advantage = Group(scale='none' or 'batch_std')",
    "multi_objective_aggregation": "advantages come from the weighted sum of the rewards",
    "top_entropy_quantile": "the mask TopEntropy(top=...) in `masks`",
    "off_policy_mask_threshold": "preset 'opsm' (engine as reference) or the mask Opsm(max_mean_k1=..., policy='old')",
    "use_adaptive_entropy": "preset 'adaptive_entropy'",
    "vllm_importance_sampling_mode": "preset 'tis' (token_truncate), 'mis' (sequence_truncate), 'icepop' (token_mask) "
    "or 'trm' (sequence_mask)",
    "vllm_importance_sampling_clip_max": "the `high` of preset 'tis', 'mis' or 'icepop'",
    "vllm_importance_sampling_clip_min": "the `low` of preset 'tis', 'mis' or 'icepop'",
}
"""GRPOConfig's settings that the objective replaces, and where they are now."""

DEFAULTS = {f.name: f.default for f in dataclasses.fields(GRPOConfig) if f.name in REPLACED}
"""Those of them that this TRL has, with TRL's values."""


def _left_out(name: str) -> tuple[str, Any, Any]:
    kind = next(kind for kind in (bool, int, float, str) if isinstance(DEFAULTS[name], kind) or kind is str)
    kind = float if DEFAULTS[name] is None else kind
    about = field(default=None, metadata={"help": f"Leave it out. The objective decides: {REPLACED[name]}."})
    return name, kind | None, about


class _Silent:
    """Refuses what is written where the objective decides; TRL's own checks see TRL's defaults there."""

    def __post_init__(self) -> None:
        refuse_replaced({name: value for name in DEFAULTS if (value := getattr(self, name)) is not None})
        vars(self).update(DEFAULTS)
        super().__post_init__()  # pyright: ignore[reportAttributeAccessIssue]
        # Silent again, so that the config shows what acts.
        vars(self).update(dict.fromkeys(DEFAULTS))


_OWN: list[tuple[str, Any, Any, str]] = [
    ("objective", str | None, None, "Preset, or several joined with '+': trm+sspo+kl_cov. See `holdfast presets`."),
    ("rollouts_every", int, 1, "Write the sequences of every Nth optimiser step for `holdfast audit`; 0: never."),
    ("lm_head", str, "trl", "Who makes log-probabilities of hidden states: 'trl' or 'holdfast'."),
    ("top_logprobs", int, 0, "The engine's K likeliest tokens, for bounds of KL and TV; 0: the sampled one alone."),
]
_own_fields = [(name, kind, field(default=value, metadata={"help": text})) for name, kind, value, text in _OWN]

# Not a class statement: which fields there are depends on the release of TRL.
HoldfastGRPOConfig: Any = dataclasses.make_dataclass(
    "HoldfastGRPOConfig",
    [*map(_left_out, DEFAULTS), *_own_fields],
    bases=(_Silent, GRPOConfig),
    namespace={"__module__": __name__},
)
HoldfastGRPOConfig.__doc__ = """GRPOConfig with the objective in it: for `TrlParser`, YAML files and one place for all.

`objective`, `rollouts_every`, `lm_head` and `top_logprobs` are the trainer's arguments of these names. What the
objective decides has no default here, so that writing it is refused even with TRL's default value:
`loss_type="dapo"` beside `objective="trm"` cannot be told from silence in a plain GRPOConfig.

Raises:
    ConfigError: a setting that the objective decides.
"""


def refuse_replaced(given: Mapping[str, Any]) -> None:
    """Raise ConfigError for settings that the objective replaces, with the row or part to use instead."""
    if given:
        lines = [f"{name} = {value!r} (now: {_instead(name, value)})" for name, value in given.items()]
        raise ConfigError(f"the objective replaces these settings of GRPOConfig, leave them out: {'; '.join(lines)}")


def _instead(name: str, value: Any) -> str:
    if name == "loss_type" and value == "bnpo":
        return "preset 'dapo' with high = 0.2, whose mean over tokens is one of the whole step"
    return f"objective = {value!r}" if name == "loss_type" and value in TABLE else REPLACED[name]


def telling(args: Any, about: Mapping[str, Any], given: Mapping[str, Any]) -> Any:
    """The same config for the run, which tells trackers and training_args.bin what trains.

    `about` is kept as `args.holdfast`; its numbers stand in `to_dict` as "holdfast/...", in the place of TRL's
    settings that do not act. `given` are values as the user wrote them, where the run needs others. What
    training_args.bin unpickles to is the user's own class, with `holdfast` and None where the objective decides.
    """
    told = object.__new__(_telling(type(args)))
    vars(told).update(vars(args))
    told.holdfast, told._given = dict(about), dict(given)
    return told


class _Telling:
    """Mixed into a GRPOConfig."""

    holdfast: dict[str, Any]
    _given: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        plain = super().to_dict()  # pyright: ignore[reportAttributeAccessIssue]
        acting = {name: value for name, value in plain.items() if name not in DEFAULTS and name not in self.holdfast}
        return acting | self._given | {f"holdfast/{name}": value for name, value in flat(self.holdfast)}

    def __reduce_ex__(self, protocol: Any) -> Any:
        state = {name: value for name, value in vars(self).items() if name != "_given"}
        plain = type(self).__mro__[2]
        # `__newobj__` would insist on this class.
        rebuild = copyreg._reconstructor  # pyright: ignore[reportAttributeAccessIssue]
        return rebuild, (plain, object, None), state | self._given | dict.fromkeys(DEFAULTS)


@functools.cache
def _telling(kind: type) -> type:
    return type(kind.__name__, (_Telling, kind), {"__module__": kind.__module__, "__doc__": kind.__doc__})


def flat(settings: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Plain data as (dotted name, number or word); parts in lists are named by their kind."""
    if isinstance(settings, Mapping):
        for name, value in settings.items():
            yield from flat(value, f"{prefix}.{name}" if prefix else str(name))
    elif isinstance(settings, list | tuple):
        for number, value in enumerate(settings):
            kind = value.get("kind", number) if isinstance(value, Mapping) else number
            yield from flat(value, f"{prefix}.{kind}")
    elif settings is not None:
        yield prefix, settings
