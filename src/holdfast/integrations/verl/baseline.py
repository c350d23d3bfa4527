"""Rejected sequences out of the group baseline: an option of level 2, by verl's own advantage estimators."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import transfer_queue as tq
from jaxtyping import Bool, Float
from tensordict import TensorDict
from torch import Tensor
from verl.trainer.ppo import core_algos

from holdfast.errors import DataError
from holdfast.integrations.turns import turn_ids
from holdfast.integrations.verl.levels import BASELINE_ESTIMATORS
from holdfast.objectives.objective import Objective
from holdfast.types import Batch, TokenStats


def rejected_rows(objective: Objective, batch: Batch, stats: TokenStats) -> Bool[Tensor, " B"]:
    """Sequences of which the masks keep no token, at the old policy and before any advantage is known.

    Masks that look at the sign of the advantage therefore reject nothing here.
    """
    masks = _masks_of(objective)
    trusted = masks(batch, stats).trust_mask
    return batch.response_mask.any(dim=-1) & ~trusted.any(dim=-1)


def advantages_of_accepted(
    objective: Objective, keys: Sequence[str], partition: str, algorithm: Any, where: str
) -> dict[str, float]:
    """Replace the advantages that verl estimated by those among accepted sequences; returns the metrics.

    verl's estimator sees the accepted sequences only. A rejected sequence gets advantage 0, and so does the only
    accepted one of its group: there is nothing to compare it with, and verl's own advantage of a group of one is the
    raw reward. The returns that verl estimated, which a critic learns from, stay.

    Raises:
        DataError: a session with several outputs, whose reward belongs to the last of them only.
    """
    require_single_outputs(keys, where)
    store = {"keys": list(keys), "partition_id": partition}
    needs = _masks_of(objective).needs
    rewards = "token_level_rewards" if algorithm.use_kl_in_reward else "rm_scores"
    optional = {"entropy": "entropy", "ref_logprobs": "ref_log_prob"}
    names = ["uid", "response_mask", "old_log_probs", "rollout_log_probs", rewards]
    names += [theirs for ours, theirs in optional.items() if ours in needs]
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
            ref_logprobs=padded.get("ref_log_prob"),
            turn_ids=turn_ids(mask),
        ),
        TokenStats(logprobs=padded["old_log_probs"], entropy=padded.get("entropy")),
    )
    uids = np.array([str(uid) for uid in data["uid"]], dtype=object)
    advantages, alone = among_accepted(padded[rewards], padded["response_mask"], uids, rejected, algorithm)
    lengths = data["response_mask"].offsets().diff().tolist()
    ragged = [row[:length] for row, length in zip(advantages, lengths, strict=True)]
    fields = {"advantages": torch.nested.as_nested_tensor(ragged, layout=torch.jagged)}
    tq.kv_batch_put(fields=TensorDict(fields, batch_size=len(keys)), **store)
    present = mask.any(dim=-1)
    count = max(int(present.sum()), 1)
    return {
        "actor/holdfast/out_of_baseline": int(rejected.sum()) / count,
        "actor/holdfast/without_baseline": int((alone & present).sum()) / count,
    }


def among_accepted(
    rewards: Float[Tensor, "B T"],
    mask: Tensor,
    uids: np.ndarray,
    rejected: Bool[Tensor, " B"],
    algorithm: Any,
) -> tuple[Float[Tensor, "B T"], Bool[Tensor, " B"]]:
    """(advantages, accepted sequences alone in their group): verl's estimate over accepted sequences, 0 elsewhere."""
    name = str(getattr(algorithm.adv_estimator, "value", algorithm.adv_estimator))
    assert name in BASELINE_ESTIMATORS, name
    kept = ~rejected
    chosen = uids[kept.numpy()]
    sizes = Counter(chosen)
    alone = torch.zeros_like(kept)
    alone[kept] = torch.tensor([sizes[uid] == 1 for uid in chosen], dtype=torch.bool)
    advantages = torch.zeros(mask.shape)
    if bool(kept.any()):
        options = {"norm_adv_by_std_in_grpo": algorithm.get("norm_adv_by_std_in_grpo", True)} if name == "grpo" else {}
        estimate = core_algos.get_adv_estimator_fn(name)
        advantages[kept] = estimate(
            token_level_rewards=rewards[kept], response_mask=mask[kept], index=chosen, config=algorithm, **options
        )[0].float()
    return advantages.masked_fill(alone[:, None], 0), alone


def require_single_outputs(keys: Sequence[str], where: str) -> None:
    """Raise DataError if a session has several outputs; verl's keys are `{uid}_{session}_{output}`."""
    sessions = Counter(key.rpartition("_")[0] for key in keys)
    session, count = max(sessions.items(), key=lambda item: item[1])
    if count > 1:
        raise DataError(
            f"{where}: session {session} has {count} outputs, and policy_loss.baseline=accepted knows one output a "
            "session only: whether a session is accepted could not be said. Set baseline=all"
        )


def _masks_of(objective: Objective) -> Objective:
    return objective.with_(weights=(), penalties=())
