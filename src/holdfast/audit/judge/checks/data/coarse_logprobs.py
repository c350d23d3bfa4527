"""Log-probabilities that were stored with too few digits: in bfloat16, or rounded to decimals."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from holdfast.audit.judge.checks.check import Facts
from holdfast.audit.judge.finding import Finding
from holdfast.audit.judge.fixes import settings
from holdfast.audit.measure.adding import Sampled
from holdfast.audit.measure.view import View
from holdfast.audit.read.columns import Column

ENOUGH, PER_CHUNK = 200_000, 1 << 14
"""Values after which one chunk in SPARE is looked at, and values of one chunk."""
FEWEST = 300
ALL = 0.995
LEAST = 0.05
"""Nats: values nearer 0 are left out, since rounded or not they are all alike."""
WORTH = 5e-4
"""Nats of mean rounding from which on it is worth a warning: a clip of 0.2 does not see less."""
FORMS = ("bfloat16", "1 decimal", "2 decimals", "3 decimals")
_SIDES = {"rollout_logprobs": "engine", "trainer_logprobs": "trainer"}


class CoarseLogprobs:
    """Looks at the digits of each side's values of LEAST nats and more.

    A float32 whose lower 16 bits are 0 is a bfloat16: of true float32 values one in 65,536 is. A value that times 10^k
    is whole to float32's precision was rounded to k decimals. Where ALL values are such, the column was rounded: by up
    to 0.4 % of the value, or half a unit of the last decimal, and the ratio by as much.
    """

    name = "coarse_logprobs"
    asks = "Were log-probabilities stored with enough digits?"
    needs = frozenset({"rollout_logprobs"})

    def __init__(self) -> None:
        self.sums = {name: Sampled[Column](ENOUGH) for name in _SIDES}
        """Of chunks: values looked at, of them those of each form, and their sum."""

    def update(self, view: View) -> None:
        """Look at values from the whole chunk, evenly."""
        for name in filter(view.has, _SIDES):
            if not self.sums[name].wants(view.key):
                continue
            stride = max(1, view.chunk.token_count // PER_CHUNK)
            values = view.tokens(name)[::stride]
            values = values[view.own[::stride] & np.isfinite(values) & (values < -LEAST)]
            sums = [len(values), *(int(form.sum()) for form in _forms(values)), float(np.abs(values).sum())]
            self.sums[name].add(view.key, len(values), np.array(sums))

    def findings(self, facts: Facts) -> Iterable[Finding]:
        """One finding for the side, or both."""
        found = {name: form for name in _SIDES if (form := self._form(name))}
        if not found or facts.logprob_resolution > 0:
            return
        errors = {name: self._error(name, form) for name, form in found.items()}
        worst = max(errors.values())
        whose = " and the ".join(f"{_SIDES[name]}'s" for name in found)
        forms = " and ".join(dict.fromkeys(found.values()))
        yield Finding(
            name=self.name,
            kind="data",
            severity="warning" if worst > WORTH else "info",
            headline=f"the {whose} log-probabilities are rounded ({forms}): each is off by {worst:.2g} nats on "
            "average, and ratios by as much",
            meaning="Drift below the rounding cannot be seen, and ratios near a clip or a threshold fall on either "
            "side by chance. If the loss reads the same rounded values, its weights are noise of that size.",
            fix="Compute log-softmax in float32 (cast the logits, not the result) and store float32; do not format "
            "log-probabilities as decimal text with few digits.",
            settings=settings("float32_logprobs"),
            evidence={f"mean rounding of the {_SIDES[name]}'s": error for name, error in errors.items()},
        )

    def _sums(self, name: str) -> Column:
        return np.sum([np.zeros(len(FORMS) + 2), *self.sums[name].values()], 0)

    def _form(self, name: str) -> str | None:
        count, *forms, _ = self._sums(name)
        if count < FEWEST:
            return None
        return next((form for form, k in zip(FORMS, forms, strict=True) if k >= ALL * count), None)

    def _error(self, name: str, form: str) -> float:
        """Mean rounding: a quarter of bfloat16's spacing, 2^-7 to 2^-8 of the value, or of the last decimal's unit."""
        if form == "bfloat16":
            return 0.25 * 2**-7.5 * float(self._sums(name)[-1] / self._sums(name)[0])
        return 0.25 * 10.0 ** -int(form[0])


def _forms(values: Column) -> list[Column]:
    """For each of FORMS which values have it."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    exact = values.astype(np.float64)
    out = [(bits & np.uint32(0xFFFF)) == 0]
    for decimals in (1, 2, 3):
        scaled = exact * 10**decimals
        out.append(np.abs(scaled - np.round(scaled)) <= np.abs(scaled) * 2.0**-23)
    return out
