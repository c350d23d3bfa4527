"""Whether new weights reach the engine: the trainer's are changed, synced, compared, and put back."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch

from holdfast.errors import EngineError
from holdfast.preflight.bench import Bench
from holdfast.preflight.gap import Change, Gap, change, gap_of
from holdfast.preflight.observe import Observation, observe
from holdfast.preflight.stability import Repeat, compare
from holdfast.rollout.models import copied

Verdict = Literal["synced", "nothing happened", "in part", "not tried", "failed"]
FIRST_NOISE, MOST_NOISE = 0.02, 1.0
"""Standard deviation of the change, relative to that of the weights of one tensor."""
APART, TIMES, MOST_APART = 0.2, 10.0, 1.0
"""How far the new weights must be from the old ones: nats a token, times the gap that was there before, and no more."""
FEW = 16
"""Responses that are compared."""
NEAR, ALIKE = 0.25, 1.25
"""Equal weights: a gap below this share of that to the other weights, or so many times the gap before the sync."""


@dataclass(frozen=True)
class SyncCheck:
    """What happened when the weights were changed.

    `before` is the gap at the weights that the engine began with. After the sync of changed weights, `to_new` is the
    gap to these and `to_old` that to the first ones. `after` is the gap once the first weights were synced back, and
    `restored` compares these responses with those before. `version` is the one that completions carried after the
    first sync, `noise` the size of the change.
    """

    verdict: Verdict
    said: str
    before: Gap | None = None
    to_new: Gap | None = None
    to_old: Gap | None = None
    after: Gap | None = None
    restored: Repeat | None = None
    noise: float = 0.0
    version: int | None = None
    before_view: Observation | None = None
    after_view: Observation | None = None


def check_sync(bench: Bench) -> SyncCheck:
    """Change, sync, compare, put back; the trainer's weights are the same bits afterwards, whatever happens."""
    if not bench.plan.sync:
        return SyncCheck("not tried", "left out by --no-sync")
    if bench.settings.kind == "server" and bench.settings.sync == "reload" and bench.plan.sync_folder is None:
        return SyncCheck(
            "not tried",
            "a running server's weights are left alone; to try it, give --sync-folder, a folder that this server can "
            "read, and nobody else may use the server meanwhile",
        )
    few = bench.asked.first(FEW)
    before = bench.observe("sampling before a sync", few)
    kept = copied(bench.model.state_dict(), lambda tensor: tensor.clone())
    changed = False
    try:
        noise = _change(bench, before, kept)
        engine = bench.running()
        bench.told("syncing changed weights", 0, 1)
        changed = True
        engine.sync(bench.model, 1)
        there = observe(engine, bench.trainer, few, bench.told, doing="sampling after a sync")
        _put(bench.model, kept)
        old = there.rescored(bench.trainer, few.reading)
        bench.told("syncing the first weights back", 0, 1)
        engine.sync(bench.model, 2)
        changed = False
        after = bench.observe("sampling after the first weights came back", few)
    except EngineError as error:
        return SyncCheck("failed", str(error).splitlines()[0], gap_of(before.view))
    finally:
        _put(bench.model, kept)
        if changed:  # whatever happened, an engine that others use is not left with noise
            with contextlib.suppress(EngineError):
                bench.running().sync(bench.model, 2)
    to_new, to_old = gap_of(there.view), gap_of(old.view)
    verdict, said = judged(gap_of(before.view), to_new, to_old)
    return SyncCheck(
        verdict,
        said,
        before=gap_of(before.view),
        to_new=to_new,
        to_old=to_old,
        after=gap_of(after.view),
        restored=compare("before the syncs and after", before.completions, after.completions),
        noise=noise,
        version=there.completions[0].policy_version,
        before_view=before,
        after_view=after,
    )


def weights_part(check: SyncCheck) -> Change | None:
    """The part of the gap that syncing the trainer's weights took away: what other weights the engine began with."""
    if check.before_view is None or check.after_view is None:
        return None
    return change(check.before_view.view, check.after_view.view)


def judged(before: Gap, to_new: Gap, to_old: Gap) -> tuple[Verdict, str]:
    """By which weights the engine sampled: the new ones, the old ones, or some of each.

    What sets the two apart at equal weights (a temperature, a penalty) is in all three gaps.
    """
    new, old, usual = to_new.size.value, to_old.size.value, ALIKE * before.size.value
    if new <= NEAR * old or new < min(old, usual):
        return "synced", "the engine samples with the weights that it was given"
    if old <= NEAR * new or old < min(new, usual):
        return "nothing happened", "the engine still samples with the weights from before the sync"
    return "in part", "the engine samples with neither the old weights nor the new ones: a part of them was left behind"


@torch.no_grad()
def _change(bench: Bench, before: Observation, kept: dict[str, torch.Tensor]) -> float:
    """Add noise to every weight, more until the policy is surely another one; returns its relative size."""
    wanted = min(max(APART, TIMES * gap_of(before.view).size.value), MOST_APART)
    reading = before.asked.reading
    was = before.rescored(bench.trainer, reading)
    noise = FIRST_NOISE
    while True:
        bench.told("changing the weights", 0, 1)
        generator = torch.Generator().manual_seed(bench.asked.seed + 1)
        for tensor, first in _pairs(bench.model, kept):
            spread = first.float().std() if first.numel() > 1 else first.float().abs().max()
            drawn = torch.randn(first.shape, generator=generator).to(first.device)
            tensor.copy_((first.float() + noise * spread * drawn).to(first.dtype))
        now = before.rescored(bench.trainer, reading)
        moved = was.moved(now)
        if moved >= wanted or noise >= MOST_NOISE:
            return noise
        noise *= 2


@torch.no_grad()
def _put(model: Any, kept: dict[str, torch.Tensor]) -> None:
    for tensor, first in _pairs(model, kept):
        tensor.copy_(first)


def _pairs(model: Any, kept: dict[str, torch.Tensor]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Each weight with its first value, tied ones once."""
    seen = set()
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and tensor.data_ptr() not in seen:
            seen.add(tensor.data_ptr())
            yield tensor, kept[name]
