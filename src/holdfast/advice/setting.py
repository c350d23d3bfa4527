"""A setting, measured or a reader's: how stale, how often reused, which numerics, how long; how far two are apart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from holdfast.advice.lines import Where
from holdfast.train.settings.config import RunConfig

Known = TypeVar("Known", int, float, str)
KEYS = (
    *("engine.lag", "async.staleness", "batch.minibatches", "batch.epochs", "engine.precision"),
    *("sampling.max_tokens", "optimizer.learning_rate", "model.source"),
)
"""Keys of a run that its setting tells."""
SCRATCH = "made from scratch"
KNOWN_BY = {
    "lag": ("how many updates the engine is behind", "--engine.lag N"),
    "updates": ("how many optimiser steps a rollout batch gets", "--batch.minibatches N"),
    "precision": ("the engine's numerics", "--engine.precision P"),
    "tokens": ("the longest response", "--sampling.max_tokens N"),
    "objective": ("the objective", "--objective.preset NAME"),
}
"""What a log may not tell: in words, and the option that says it."""
_PRECISION = 2.0
"""Other numerics count as much as four times the staleness: an engine in step is another thing than a stale one."""
_LENGTH = 0.1
"""A doubling of the length beside one of the staleness: it orders settings that are alike otherwise."""


@dataclass(frozen=True)
class Setting:
    """None is what is not known. `kl` is the exact KL or the mean k3 per token between engine and trainer, in nats."""

    lag: int | None = None
    updates: int | None = None
    precision: str | None = None
    tokens: int | None = None
    rate: float | None = None
    model: str | None = None
    kl: float | None = None

    @property
    def words(self) -> str:
        """What is known, in words."""
        said = []
        if self.precision is not None:
            said.append(f"{self.precision} engine")
        if self.lag is not None:
            said.append("in step" if not self.lag else f"{counted(self.lag, 'update')} behind")
        if self.updates is not None:
            said.append(f"{counted(self.updates, 'optimiser step')} a rollout batch")
        if self.tokens is not None:
            said.append(f"up to {self.tokens:,} tokens")
        if self.rate is not None:
            said.append(f"learning rate {plain(self.rate)}")
        return ", ".join(said)


def setting_of(config: RunConfig, written: bool = False) -> Setting:
    """The setting of a run's file; with `written` only what stands in it, nothing that is a default."""

    def known(table: str, *keys: str) -> bool:
        return not written or bool(getattr(config, table).model_fields_set & set(keys))

    lag = config.asynchronous.staleness or config.engine.lag
    return Setting(
        lag=lag if known("engine", "lag") or known("asynchronous", "staleness") else None,
        updates=config.batch.updates if known("batch", "minibatches", "epochs") else None,
        precision=config.engine.precision if known("engine", "precision") else None,
        tokens=config.sampling.max_tokens if known("sampling", "max_tokens") else None,
        rate=config.optimizer.learning_rate if known("optimizer", "learning_rate") else None,
        model=(config.model.source or SCRATCH) if known("model", "source", "hidden") else None,
    )


def common(settings: Sequence[Setting]) -> Setting:
    """What several have in common; None in place of the rest. The drift is their mean."""
    kl = [one.kl for one in settings if one.kl is not None]
    return Setting(
        lag=_shared([one.lag for one in settings]),
        updates=_shared([one.updates for one in settings]),
        precision=_shared([one.precision for one in settings]),
        tokens=_shared([one.tokens for one in settings]),
        rate=_shared([one.rate for one in settings]),
        model=_shared([one.model for one in settings]),
        kl=float(f"{sum(kl) / len(kl):.2g}") if kl else None,
    )


def _shared(values: Sequence[Known | None]) -> Known | None:
    return values[0] if len(set(values)) == 1 else None


def fits(where: Where, reader: Setting) -> tuple[bool, list[str]]:
    """Whether nothing known lies outside, and which keys would have to be known to be sure."""
    unknown = []
    for key in ("lag", "updates", "tokens"):
        span, value = getattr(where, key), getattr(reader, key)
        if span is not None and value is None:
            unknown.append(key)
        elif span is not None and not span[0] <= value <= span[1]:
            return False, []
    if where.precision is not None:
        if reader.precision is None:
            unknown.append("precision")
        elif not reader.precision.startswith(tuple(where.precision)):
            return False, []
    return True, unknown


def distance(measured: Setting, reader: Setting) -> float:
    """How far apart, in doublings: of 1 + lag, of the optimiser steps, and lightly of the length; other numerics add 2.

    What either does not know counts nothing.
    """
    total = 0.0
    for key, weight, shift in (("lag", 1.0, 1), ("updates", 1.0, 0), ("tokens", _LENGTH, 0)):
        one, other = getattr(measured, key), getattr(reader, key)
        if one is not None and other is not None:
            total += weight * abs(math.log2((one + shift) / (other + shift)))
    if None not in (measured.precision, reader.precision) and measured.precision != reader.precision:
        total += _PRECISION
    return total


def differences(measured: Setting, reader: Setting) -> list[str]:
    """What of the reader's setting was not measured there, one phrase each: "4,096 tokens (48 there)"."""
    found = []
    if None not in (measured.lag, reader.lag) and measured.lag != reader.lag:
        found.append(f"{counted(reader.lag or 0, 'update')} behind ({measured.lag} there)")
    if None not in (measured.updates, reader.updates) and measured.updates != reader.updates:
        found.append(f"{counted(reader.updates or 0, 'optimiser step')} a rollout batch ({measured.updates} there)")
    if None not in (measured.precision, reader.precision) and measured.precision != reader.precision:
        found.append(f"a {reader.precision} engine ({measured.precision} there)")
    if measured.tokens is not None and reader.tokens is not None and reader.tokens > measured.tokens:
        found.append(f"up to {reader.tokens:,} tokens ({measured.tokens:,} there)")
    if measured.rate is not None and reader.rate is not None and not math.isclose(measured.rate, reader.rate):
        found.append(f"learning rate {plain(reader.rate)} ({plain(measured.rate)} there)")
    if measured.kl is not None and reader.kl is not None and not 0.5 <= reader.kl / max(measured.kl, 1e-30) <= 2:
        found.append(f"{reader.kl:.2g} nats of KL a token (up to {measured.kl:.2g} there)")
    if None not in (measured.model, reader.model) and measured.model != reader.model:
        there = f"a tiny model {SCRATCH}" if measured.model == SCRATCH else measured.model
        found.append(f"the model {reader.model} ({there} there)")
    return found


def counted(number: int, noun: str) -> str:
    """With its plural.

    >>> counted(1, "update"), counted(8, "update")
    ('1 update', '8 updates')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def plain(value: float) -> str:
    """A learning rate as people write it.

    >>> plain(3e-4), plain(1e-06)
    ('3e-4', '1e-6')
    """
    mantissa, _, exponent = f"{value:e}".partition("e")
    return f"{float(mantissa):g}e{int(exponent)}"
