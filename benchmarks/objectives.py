"""Time and memory of every preset's forward and backward against verl's `vanilla` policy loss, in one interleaved run.

    .venv-verl/bin/python benchmarks/objectives.py [--sequences 512] [--tokens 4096] [--rounds 5] [NAME ...]

The same float32 tensors on one CPU thread; a round times every contestant once, in turn, by process CPU time; the
figures are medians over rounds of the ratio to `vanilla` in the same round. Memory is the peak of what a call
allocates beyond its inputs, in tensors of the batch's shape. Both sides compute their metrics. A preset is called as
a trainer calls it on a micro-batch, with a Plan; `prepare` is timed apart. The values of `ppo` and `vanilla` are
compared first, and nothing is reported if they differ.
"""

import argparse
import statistics
import time
import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from holdfast import Batch, TokenStats, list_presets, preset


class PeakMemory(TorchDispatchMode):
    """Peak bytes of the storages that live at once among those allocated inside."""

    def __init__(self):
        super().__init__()
        self.live = self.peak = 0
        self.seen = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else (result,):
            if isinstance(value, torch.Tensor):
                self._count(value.untyped_storage())
        return result

    def _count(self, storage):
        key = storage._cdata
        if key in self.seen:
            return
        self.seen.add(key)
        size = storage.nbytes()
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._free, key, size)

    def _free(self, key, size):
        self.seen.discard(key)
        self.live -= size


def make(sequences, tokens):
    g = torch.Generator().manual_seed(0)
    shape = (sequences, tokens)
    lengths = torch.randint(tokens // 4, tokens + 1, (sequences,), generator=g)
    logprobs = -torch.rand(shape, generator=g) * 2 - 0.01
    old = (logprobs + 0.05 * torch.randn(shape, generator=g)).clamp(max=0)
    batch = Batch(
        advantages=torch.randn(sequences, generator=g)[:, None].expand(shape).contiguous(),
        response_mask=torch.arange(tokens)[None] < lengths[:, None],
        old_logprobs=old,
        rollout_logprobs=(old + 0.02 * torch.randn(shape, generator=g)).clamp(max=0),
        ref_logprobs=old,
        teacher_logprobs=old,
        sequence_ids=torch.arange(sequences),
        group_ids=torch.arange(sequences) // 8,
    )
    return batch, logprobs, torch.rand(shape, generator=g)


def vanilla(batch):
    from omegaconf import OmegaConf
    from verl.trainer.ppo.core_algos import get_policy_loss_fn

    config = OmegaConf.create(
        {"clip_ratio": 0.2, "clip_ratio_low": 0.2, "clip_ratio_high": 0.2, "clip_ratio_c": 3.0, "global_batch_info": {}}
    )
    loss = get_policy_loss_fn("vanilla")
    mask = batch.response_mask.float()

    def call(stats):
        return loss(
            old_log_prob=batch.old_logprobs,
            log_prob=stats.logprobs,
            advantages=batch.advantages,
            response_mask=mask,
            loss_agg_mode="token-mean",
            config=config,
        )[0]

    return call


def ours(name, batch, stats):
    objective = preset(name)
    plan = objective.prepare(batch, stats)
    return lambda stats: objective(batch, stats, plan=plan).loss


def fresh(logprobs, entropy):
    return TokenStats(logprobs=logprobs.clone().requires_grad_(), entropy=entropy.clone().requires_grad_())


def timed(call, logprobs, entropy):
    stats = fresh(logprobs, entropy)
    start = time.process_time()
    loss = call(stats)
    loss.backward()
    return time.process_time() - start, loss.detach()


def peak(call, logprobs, entropy):
    stats = fresh(logprobs, entropy)
    with PeakMemory() as memory:
        call(stats).backward()
    return memory.peak / (logprobs.numel() * logprobs.element_size())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=list_presets())
    parser.add_argument("--sequences", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    batch, logprobs, entropy = make(options.sequences, options.tokens)
    stats = fresh(logprobs, entropy).detach()
    reference = vanilla(batch)
    loss = timed(ours("ppo", batch, stats), logprobs, entropy)[1]
    torch.testing.assert_close(loss, timed(reference, logprobs, entropy)[1], rtol=1e-4, atol=1e-6)
    print(f"{options.sequences} x {options.tokens}, {options.rounds} rounds; loss of ppo and vanilla agree")
    print(f"vanilla: {peak(reference, logprobs, entropy):.1f} tensors of memory")
    print(f"{'preset':18}{'time / vanilla':>16}{'prepare / vanilla':>19}{'memory (tensors)':>18}")
    for name in options.names:
        call, objective = ours(name, batch, stats), preset(name)
        ratios, prepares = [], []
        for _ in range(options.rounds):
            base = timed(reference, logprobs, entropy)[0]
            ratios.append(timed(call, logprobs, entropy)[0] / base)
            start = time.process_time()
            objective.prepare(batch, stats)
            prepares.append((time.process_time() - start) / base)
        memory = peak(call, logprobs, entropy)
        time_ratio, prepare_ratio = statistics.median(ratios), statistics.median(prepares)
        print(f"{name:18}{time_ratio:16.2f}{prepare_ratio:19.2f}{memory:18.1f}", flush=True)


if __name__ == "__main__":
    main()
