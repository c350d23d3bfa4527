"""One of two ranks: `python sharded_head.py RANK FOLDER UNIT`; a sharded model's gradients against a whole one's.

UNIT says what FSDP2 shards as one: the head alone, the last norm and the head (as accelerate does), or all together.
"""

import copy
import sys
import warnings
from datetime import timedelta
from pathlib import Path

import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.modules.setdefault("vllm", None)  # pyright: ignore[reportArgumentType]
warnings.simplefilter("ignore")
torch.set_num_threads(1)

from trl.trainer.utils import add_fused_lm_head  # noqa: E402

from holdfast.integrations.trl.head import install  # noqa: E402
from integrations.trl import runs  # noqa: E402


def loss_of(model: torch.nn.Module, rank: int) -> torch.Tensor:
    """Each rank has sequences and weights of its own; one of them scores no token at all in its second call."""
    g = torch.Generator().manual_seed(rank)
    total = torch.zeros(())
    for call in range(2):
        ids = torch.randint(4, 14, (3, 6), generator=g)
        labels = ids.clone()
        labels[:, : 3 if call == 0 or rank == 0 else 6] = -100
        weights = torch.randn(3, 5, generator=g)
        out = model(input_ids=ids, labels=labels, fused_lm_head=True)
        total = total + (out.log_probs * weights).sum() + 0.1 * out.entropy.sum()
    return total


def main(rank: int, folder: Path, unit: str) -> None:
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=2, timeout=timedelta(minutes=10)
    )
    whole = runs.model()
    if unit != "tied":
        whole.config.tie_word_embeddings = False
        torch.manual_seed(0)
        whole = type(whole)(whole.config)
    add_fused_lm_head(whole, temperature=0.8, outputs=("log_probs", "entropy"))
    install(whole, 0.8)
    sharded = copy.deepcopy(whole)
    mesh = init_device_mesh("cpu", (2,))
    if unit == "head":
        fully_shard(sharded.lm_head, mesh=mesh)
    elif unit == "tail":  # a tied embedding would be of this unit, too
        fully_shard([sharded.model.norm, sharded.lm_head], mesh=mesh, reshard_after_forward=False)
    fully_shard(sharded, mesh=mesh)
    (sum(loss_of(whole, r) for r in range(2)) / 2).backward()  # FSDP averages over ranks
    loss_of(sharded, rank).backward()
    for (name, expected), (_, found) in zip(whole.named_parameters(), sharded.named_parameters(), strict=True):
        assert found.grad is not None, name
        assert expected.grad is not None, name
        off = (found.grad.full_tensor() - expected.grad).norm() / expected.grad.norm()  # pyright: ignore
        assert off < 1e-5, f"{name}: relative error {off:.2g}"
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
