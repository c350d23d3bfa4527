"""One rank of the vocabulary-parallel test: `python two_ranks.py RANK FOLDER`; compares with the whole head."""

import sys
from pathlib import Path

import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from holdfast.errors import DataError
from holdfast.kernels import Chunked, Head, Tiling, VocabShard, lm_head_loss, lm_head_stats
from holdfast.kernels.head import make_problem

OUTPUTS = ("entropy", "sum_p2", "entropy_change", "kl_rollout", "tv_rollout", "chi2_rollout")
SPLIT, VOCABULARY = 130, 301


def main(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=2)
    g = torch.Generator().manual_seed(0)
    hidden, states = (torch.randn(21, 12, generator=g, dtype=torch.float64) for _ in range(2))
    weight = torch.randn(VOCABULARY, 12, generator=g, dtype=torch.float64)
    bias = torch.randn(VOCABULARY, generator=g, dtype=torch.float64)
    targets = torch.randint(VOCABULARY, (21,), generator=g)
    targets[:2] = torch.tensor([SPLIT - 1, SPLIT])
    ids = torch.randint(VOCABULARY, (21, 3), generator=g)
    part = slice(0, SPLIT) if rank == 0 else slice(SPLIT, VOCABULARY)
    coefficients = torch.randn(2, 21, generator=g, dtype=torch.float64)
    coefficients[:, ::4] = 0

    def run(rows: slice, shard: VocabShard | None, one_pass: bool) -> list[torch.Tensor]:
        h, w, b = (x.clone().requires_grad_() for x in (hidden, weight[rows], bias[rows]))
        head, rollout = Head(w, b, 0.9, 8.0, shard), (states, Head(weight[rows], bias[rows], 0.9, 8.0, shard))
        if one_pass:

            def token_loss(stats, part):
                return stats.logprobs * coefficients[0, part] + stats.entropy * coefficients[1, part]

            loss, stats = lm_head_loss(h, head, targets, token_loss, tiling=Tiling(8, 50))
            values = [stats.logprobs, stats.entropy]
        else:
            stats = lm_head_stats(
                h,
                head,
                targets,
                temperature=0.8,
                rollout=rollout,
                outputs=OUTPUTS,
                gather_ids=ids,
                implementation=Chunked(Tiling(8, 50)),
            )
            loss = (stats.logprobs * coefficients[0] + stats.entropy * coefficients[1]).sum()
            values = [stats.logprobs, stats.gathered_logprobs, *(getattr(stats, name) for name in OUTPUTS)]
        loss.backward()
        slices = (slice(None), slice(None)) if shard else (part, part)
        return [*values, h.grad, w.grad[slices[0]], b.grad[slices[1]]]

    for one_pass in (False, True):
        sliced = run(part, VocabShard(part.start, VOCABULARY), one_pass)
        whole = run(slice(None), None, one_pass)
        for index, (found, expected) in enumerate(zip(sliced, whole, strict=True)):
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12, msg=lambda m, i=index: f"value {i}: {m}")
    refuses_a_sharded_weight(hidden, weight, targets)
    distributed.destroy_process_group()


def refuses_a_sharded_weight(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> None:
    sharded = distribute_tensor(weight, init_device_mesh("cpu", (2,)), [Shard(0)])
    try:
        make_problem(hidden, Head(sharded), targets)
    except DataError as error:
        assert "weight is a DTensor" in str(error)
        assert "Partial" in str(error)
    else:
        raise AssertionError("a DTensor was taken for a whole weight")


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
