"""An optimiser step as verl runs it, and the same step on the whole batch at once; processes of a step over ranks."""

import torch
import torch.distributed as dist

from holdfast import Batch, TokenStats, preset
from holdfast.integrations.verl.gather import plan_of
from holdfast.integrations.verl.step import ROW, StepLoss, batch_of, sequence_ids, stats_of
from holdfast.objectives.parts.penalties import EntropyBonus, Kl
from holdfast.objectives.parts.reduce import Normalize
from holdfast.objectives.whole_step import whole_step_parts
from integrations.verl import batches

OBJECTIVES = {
    "ppo": preset("ppo"),
    "trm+sspo+kl_cov": preset("trm+sspo+kl_cov", delta=0.3, delta_avg=0.06, share=0.2),
    "ppo+clip_cov": preset("ppo+clip_cov", clip_share=0.2, **{"clip_cov.low": -1.0}),
    "m2po": preset("m2po"),
    "accepted": preset("trm+grpo", delta=0.3, delta_avg=0.06, normalize=Normalize(over="accepted")),
    "penalties": preset("grpo+entropy_bonus", alpha=0.1, penalties=(EntropyBonus(0.1), Kl(0.05))),
}


def reference(objective, rows):
    """Value and gradient from the padded tensors of the whole step, built here and not by the adapter."""
    width = max(len(row.mask) for row in rows)

    def padded(name, kind=torch.float32):
        out = torch.zeros(len(rows), width, dtype=kind)
        for place, row in enumerate(rows):
            out[place, : len(row.mask)] = getattr(row, name)
        return out

    logprobs = padded("logprobs").requires_grad_()
    mask = padded("mask", torch.bool)
    ids = sequence_ids(batches.batch(rows))
    batch = Batch(
        advantages=torch.stack([row.advantage for row in rows]),
        response_mask=mask,
        old_logprobs=padded("old"),
        rollout_logprobs=padded("rollout"),
        ref_logprobs=padded("ref"),
        sequence_ids=ids,
    )
    out = objective(batch, TokenStats(logprobs=logprobs, entropy=padded("entropy")), plan=None)
    (gradient,) = torch.autograd.grad(out.loss, logprobs)
    return out, gradient


def in_micro_batches(objective, rows, split, ranks=1, group=None):
    """This rank's share: (loss, gradient per row's packed log-probabilities, merged metrics, StepLoss)."""
    data, output = batches.batch(rows), batches.outputs(rows)
    whole, stats = batch_of(data), stats_of(output, data)
    loss = StepLoss(
        objective,
        plan_of(objective, whole, stats if whole_step_parts(objective) else None, 0, group),
        ranks,
        recording=True,
    )
    total, gradients, merged = 0.0, {}, {}
    for part in split:
        chosen = [replace_logprobs(rows[number]) for number in part]
        micro = batches.batch(chosen)
        micro[ROW] = torch.tensor(part)
        value, metrics = loss(model_output=batches.outputs(chosen), data=micro)
        pieces = torch.autograd.grad(value, [row.logprobs for row in chosen])
        gradients |= dict(zip(part, pieces, strict=True))
        total += float(value.detach())
        for name, metric in metrics.items():
            merged.setdefault(name, metric.init_list()).append(metric)
    metrics = {name: float(metric.aggregate()) for name, metric in merged.items()}
    return total, gradients, metrics, loss


def replace_logprobs(row):
    copy = type(row)(**vars(row))
    copy.logprobs = row.logprobs.clone().requires_grad_()
    return copy


def one_rank(rank, port, name, folder):
    dist.init_process_group("gloo", rank=rank, world_size=2, init_method=f"tcp://127.0.0.1:{port}")
    rows = batches.sequences()[3 * rank : 3 * rank + 3]
    total, gradients, metrics, _ = in_micro_batches(
        OBJECTIVES[name], rows, [[2], [0, 1]], ranks=2, group=dist.group.WORLD
    )
    torch.save((total, gradients, metrics), f"{folder}/{rank}.pt")
    dist.destroy_process_group()
