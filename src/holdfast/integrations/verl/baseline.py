"""Rejected sequences out of the group baseline: an option of level 2, by verl's own advantage estimator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transfer_queue as tq
from jaxtyping import Bool
from torch import Tensor
from verl.utils import tensordict_utils as tu

from holdfast.objectives.objective import Objective
from holdfast.types import Batch, TokenStats


def rejected_rows(objective: Objective, batch: Batch, stats: TokenStats) -> Bool[Tensor, " B"]:
    """Sequences of which the masks keep no token, at the old policy and before any advantage is known.

    Masks that look at the sign of the advantage therefore reject nothing here.
    """
    masks = objective.with_(weights=(), penalties=())
    trusted = masks(batch, stats).trust_mask
    return batch.response_mask.any(dim=-1) & ~trusted.any(dim=-1)


def advantages_of_accepted(
    objective: Objective, keys: list[str], partition: str, estimate: Callable[[], Any], metrics: dict[str, Any]
) -> Any:
    """Run verl's estimator with every rejected sequence in a group of its own, then give it advantage 0.

    verl groups by `uid`: a rejected sequence gets another one for the time of the estimate.
    """
    store = {"keys": keys, "partition_id": partition}
    names = ["uid", "response_mask", "old_log_probs", "rollout_log_probs"]
    names += ["entropy"] if "entropy" in objective.needs else []
    data = tq.kv_batch_get(select_fields=names, **store)
    padded = {name: data[name].to_padded_tensor(0) for name in names if name != "uid"}
    mask = padded["response_mask"].bool()
    rejected = rejected_rows(
        objective,
        Batch(
            advantages=torch.zeros(mask.shape),
            response_mask=mask,
            old_logprobs=padded["old_log_probs"],
            rollout_logprobs=padded["rollout_log_probs"],
            turn_ids=torch.zeros(mask.shape, dtype=torch.long),
        ),
        TokenStats(logprobs=padded["old_log_probs"], entropy=padded.get("entropy")),
    ).tolist()
    metrics["actor/holdfast/out_of_baseline"] = sum(rejected) / len(rejected)
    uids = list(data["uid"])
    alone = [f"{uid}/{key}" if out else uid for uid, key, out in zip(uids, keys, rejected, strict=True)]
    tq.kv_batch_put(fields=tu.get_tensordict({"uid": alone}), **store)
    result = estimate()
    estimated = tq.kv_batch_get(select_fields=["advantages", "returns"], **store)
    fields = {
        name: torch.nested.as_nested_tensor(
            [row * (not out) for row, out in zip(estimated[name].unbind(), rejected, strict=True)], layout=torch.jagged
        )
        for name in ("advantages", "returns")
    }
    tq.kv_batch_put(fields=tu.get_tensordict(fields | {"uid": uids}), **store)
    return result
