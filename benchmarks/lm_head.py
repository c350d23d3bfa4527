"""Cost of the LM head as a ratio to its GEMMs alone, in one interleaved run, with correctness checked first.

    OMP_NUM_THREADS=1 python benchmarks/lm_head.py                      # CPU: 4096 x 512 x 32000, float32
    python benchmarks/lm_head.py --device cuda --shape 32768x4096x151936

On a CPU the time is that of the process (CPU seconds), so that other jobs on the machine weigh little; on CUDA that
of events. Each figure is a median over repetitions, in which every contestant takes its turn. Peers run where they
can be imported (TRL, Liger). Extra memory is the peak beyond inputs and gradients.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import torch
from head_memory import FLOOR_ROWS, free_bytes, needed_bytes
from torch import Tensor

from holdfast.kernels import choose, lm_head_loss, lm_head_stats
from holdfast.kernels.head import Head

Run = Callable[[], float | None]
"""What is timed; one that returns seconds was timed by itself, and only in part."""


class Shape:
    """Inputs of one size: hidden states and weight want gradients, and logits spread like those of a model."""

    def __init__(self, rows: int, width: int, vocabulary: int, device: str) -> None:
        g = torch.Generator(device).manual_seed(0)
        dtype = torch.float32 if device == "cpu" else torch.bfloat16

        def normal(*size: int, scale: float = 1.0) -> Tensor:
            return (torch.randn(*size, generator=g, device=device) * scale).to(dtype)

        self.hidden = normal(rows, width).requires_grad_()
        self.weight = normal(vocabulary, width, scale=3 / width**0.5).requires_grad_()
        self.states = (self.hidden + normal(rows, width, scale=1e-3)).detach()
        self.targets = torch.randint(vocabulary, (rows,), generator=g, device=device)
        self.advantages = torch.randn(rows, generator=g, device=device)

    def clear(self) -> None:
        self.hidden.grad = self.weight.grad = None


def contestants(shape: Shape) -> Iterator[tuple[str, Run]]:
    """Everything that is timed; the first is the floor of forward and backward, the second that of a forward."""
    hidden, weight = shape.hidden.detach(), shape.weight.detach()
    # In pieces, so that a floor needs no [N, V] tensor that a large shape leaves no room for.
    pieces = hidden.split(FLOOR_ROWS)

    def wide(rows: int) -> Tensor:
        return torch.full((rows, len(weight)), 0.5, device=hidden.device, dtype=hidden.dtype)

    def forward_gemm() -> None:
        space = wide(len(pieces[0]))
        for piece in pieces:
            torch.mm(piece, weight.T, out=space[: len(piece)])

    def three_gemms() -> None:
        space = wide(len(pieces[0]))
        for piece in pieces:
            logits = torch.mm(piece, weight.T, out=space[: len(piece)])
            torch.mm(logits, weight)
            torch.mm(logits.T, piece)

    def finish(logprobs: Tensor, entropy: Tensor | None, live: float = 1.0) -> None:
        kept = torch.arange(len(logprobs), device=logprobs.device) % 100 < 100 * live
        loss = (logprobs * shape.advantages * kept).sum()
        (loss if entropy is None else loss + 0.01 * (entropy * kept).sum()).backward()
        shape.clear()

    def naive() -> None:
        logp = torch.log_softmax((shape.hidden @ shape.weight.T).float(), dim=1)
        finish(logp.gather(1, shape.targets[:, None])[:, 0], -(logp.exp() * logp).sum(dim=1))

    def ours(entropy: bool = True, live: float = 1.0, frozen: bool = False) -> None:
        head = weight if frozen else shape.weight
        outputs = ("entropy",) if entropy else ()
        stats = lm_head_stats(shape.hidden, head, shape.targets, outputs=outputs)
        finish(stats.logprobs, stats.entropy, live)

    def backward(live: float) -> float:
        stats = lm_head_stats(shape.hidden, shape.weight, shape.targets, outputs=("entropy",))
        return seconds(lambda: finish(stats.logprobs, stats.entropy, live), shape.hidden.device.type)

    def one_pass() -> None:
        def token_loss(stats, rows):
            return stats.logprobs * shape.advantages[rows] + 0.01 * stats.entropy

        lm_head_loss(shape.hidden, shape.weight, shape.targets, token_loss)[0].backward()
        shape.clear()

    def exact_kl() -> None:
        with torch.no_grad():
            rollout = (shape.states, weight)
            lm_head_stats(hidden, weight, shape.targets, rollout=rollout, outputs=("entropy", "kl_rollout"))

    def forward() -> None:
        with torch.no_grad():
            lm_head_stats(hidden, weight, shape.targets)

    yield "three GEMMs", three_gemms
    yield "one GEMM", forward_gemm
    yield "forward", forward
    yield "forward with exact KL", exact_kl
    yield "two-pass", ours
    yield "two-pass, logprob only", lambda: ours(entropy=False)
    yield "backward alone", lambda: backward(1.0)
    yield "backward alone, 50 % of rows", lambda: backward(0.5)
    yield "backward alone, 10 % of rows", lambda: backward(0.1)
    yield "frozen head, logprob only", lambda: ours(entropy=False, frozen=True)
    yield "separable", one_pass
    yield "naive torch", naive
    yield from peers(shape, finish)


def peers(shape: Shape, finish: Callable[..., None]) -> Iterator[tuple[str, Run]]:
    """Released packages that can be imported here."""
    with suppress(ImportError):
        from trl.kernels.chunked_logprob import ChunkedLogProbFunction

        def trl() -> None:  # with the chunk size of its trainer
            found = ChunkedLogProbFunction.apply(
                shape.hidden, shape.weight, None, shape.targets, 1.0, 32768, None, 1.0, ("entropy",)
            )
            finish(found[0], found[1])

        yield "TRL chunked_logprob", trl
    with suppress(ImportError):
        from liger_kernel.chunked_loss import fused_linear_ppo as liger

        def selective() -> None:
            hidden, weight, targets = shape.hidden.detach(), shape.weight.detach(), shape.targets
            _, log_z = liger._selective_logprob_forward(hidden, weight, targets)
            chunk = liger._SELECTIVE_LOGPROB_VOCAB_CHUNK_SIZE
            liger._selective_logprob_backward(hidden, weight, targets, None, log_z, shape.advantages, 1.0, chunk)

        yield "Liger selective logprob, no entropy", selective
    with suppress(ImportError):
        head = _verl_head()

        def verl() -> None:
            finish(*head(shape.hidden[None], shape.weight, shape.targets[None]))

        yield "verl FusedLinearForPPO", verl
    with suppress(ImportError):
        from cut_cross_entropy import linear_cross_entropy

        how = "cce" if shape.hidden.is_cuda else "torch_compile"

        def cce() -> None:
            finish(-linear_cross_entropy(shape.hidden, shape.weight, shape.targets, reduction="none", impl=how), None)

        yield "CCE, no entropy", cce


def _verl_head() -> Callable[..., tuple[Tensor, Tensor]]:
    """verl's chunked head in torch, from its own file: importing the package starts half a cluster."""
    package = importlib.util.find_spec("verl")
    if package is None or package.origin is None:
        raise ImportError("verl")
    path = Path(package.origin).parent / "utils" / "experimental" / "torch_functional.py"
    spec = importlib.util.spec_from_file_location("verl_torch_functional", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    fused = module.FusedLinearForPPO()

    def head(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        logprobs, entropy = fused(hidden, weight, targets)
        return logprobs[0], entropy[0]

    return head


def check(device: str) -> None:
    """Refuse to time what is wrong: values and gradients of a ragged small case against float64."""
    shape = Shape(517, 64, 5003, device)
    exact = [x.detach().double().requires_grad_() for x in (shape.hidden, shape.weight)]
    logp = torch.log_softmax(exact[0] @ exact[1].T, dim=1)
    entropy = -(logp.exp() * logp).sum(dim=1)
    logprobs = logp.gather(1, shape.targets[:, None])[:, 0]
    (logprobs * shape.advantages + 0.01 * entropy).sum().backward()
    log_r = torch.log_softmax(shape.states.double() @ exact[1].detach().T, dim=1)
    kl = (log_r.exp() * (log_r - logp)).sum(dim=1)
    stats = lm_head_stats(
        shape.hidden,
        shape.weight,
        shape.targets,
        rollout=(shape.states, shape.weight),
        outputs=("entropy", "kl_rollout"),
    )
    (stats.logprobs * shape.advantages + 0.01 * stats.entropy).sum().backward()
    stats, logprobs, entropy, kl = stats.detach(), logprobs.detach(), entropy.detach(), kl.detach()
    limit = 1e-5 if device == "cpu" else 1e-2
    figures = {
        "logprob": ((stats.logprobs - logprobs).abs().max(), 1e-5),
        "entropy": ((stats.entropy - entropy).abs().max(), 1e-5),
        "KL, relative": (((stats.kl_rollout - kl).abs() / kl).max(), 1e-2),
        "hidden gradient, relative": (_relative(shape.hidden.grad, exact[0].grad), limit),
        "weight gradient, relative": (_relative(shape.weight.grad, exact[1].grad), limit),
    }
    alone = lm_head_stats(shape.hidden[7:8], shape.weight, shape.targets[7:8]).logprobs
    same = torch.equal(alone, stats.logprobs[7:8])
    print("against float64: " + ", ".join(f"{name} {float(value):.1e}" for name, (value, _) in figures.items()))
    print(f"a row alone and in a batch: {'equal to the last bit' if same else 'DIFFERENT'}")
    if not same or not all(float(value) < bound for value, bound in figures.values()):
        sys.exit("wrong results: not timed")


def check_rows(sizes: tuple[int, int, int], device: str, rows: int = 128) -> None:
    """A shape too large for float64: values and hidden gradients of some rows, which depend on no other row."""
    shape = Shape(*sizes, device)
    stats = lm_head_stats(
        shape.hidden,
        shape.weight,
        shape.targets,
        rollout=(shape.states, shape.weight),
        outputs=("entropy", "kl_rollout"),
    )
    (stats.logprobs * shape.advantages + 0.01 * stats.entropy).sum().backward()
    some = torch.linspace(0, sizes[0] - 1, rows, device=device).long()
    hidden, weight = shape.hidden.detach()[some].double().requires_grad_(), shape.weight.detach().double()
    logp = torch.log_softmax(hidden @ weight.T, dim=1)
    entropy = -(logp.exp() * logp).sum(dim=1)
    logprobs = logp.gather(1, shape.targets[some][:, None])[:, 0]
    (logprobs * shape.advantages[some] + 0.01 * entropy).sum().backward()
    log_r = torch.log_softmax(shape.states[some].double() @ weight.T, dim=1)
    kl = (log_r.exp() * (log_r - logp)).sum(dim=1).detach()
    assert shape.hidden.grad is not None
    assert stats.entropy is not None
    assert stats.kl_rollout is not None
    print(
        f"{'x'.join(map(str, sizes))}, {rows} rows against float64: "
        f"logprob {(stats.logprobs[some] - logprobs).abs().max():.1e}, "
        f"entropy {(stats.entropy[some] - entropy).abs().max():.1e}, "
        f"KL, relative {((stats.kl_rollout[some] - kl).abs() / kl).max():.1e} (least KL {kl.min():.1e}), "
        f"hidden gradient, relative {_relative(shape.hidden.grad[some], hidden.grad):.1e}"
    )


def _relative(found: Tensor | None, expected: Tensor | None) -> Tensor:
    assert found is not None
    assert expected is not None
    return (found.double() - expected).norm() / expected.norm()


def seconds(run: Run, device: str) -> float:
    """CPU seconds of the process, or seconds between CUDA events."""
    if device == "cpu":
        start = time.process_time()
        part = run()
        return time.process_time() - start if part is None else part
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    first.record()
    part = run()
    last.record()
    torch.cuda.synchronize()
    return part if part is not None else first.elapsed_time(last) / 1000


def peak_megabytes(name: str, run: Run, shape: Shape, arguments: argparse.Namespace) -> float:
    """Peak beyond what was there before and the gradients that the run leaves or must make; it warms up, too."""
    if arguments.device == "cpu":
        run()
        command = [sys.executable, __file__, "--shape", arguments.shape, "--memory", name]
        return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    return (torch.cuda.max_memory_allocated() - before - _gradients(name, shape)) / 2**20


def own_megabytes(name: str, arguments: argparse.Namespace) -> float:
    """The same on a CPU, for the only contestant of this process."""
    torch.set_num_threads(1)
    shape = Shape(*_sizes(arguments), "cpu")
    run = dict(contestants(shape))[name]
    small = Shape(64, 64, 512, "cpu")
    dict(contestants(small))[name]()  # what is loaded or compiled at the first call is not the contestant's memory
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = _status("VmRSS")
    run()
    return (_status("VmHWM") - before) / 1024 - _gradients(name, shape) / 2**20


def _gradients(name: str, shape: Shape) -> int:
    if name == "one GEMM" or name.startswith("forward"):
        return 0
    tensors = (shape.hidden,) if name.startswith("frozen") else (shape.hidden, shape.weight)
    return sum(x.numel() * x.element_size() for x in tensors)


def _sizes(arguments: argparse.Namespace) -> tuple[int, int, int]:
    rows, width, vocabulary = (int(n) for n in arguments.shape.split("x"))
    return rows, width, vocabulary


def _status(field: str) -> int:
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(field))
    return int(line.split()[1])


def measure(shape: Shape, arguments: argparse.Namespace) -> None:
    """Every contestant in turn: its memory as it is known, then rounds of times; who does not fit is left out, said."""
    device, runs, memory = arguments.device, {}, {}
    for i, (name, run) in enumerate(contestants(shape)):
        if i >= 2 and arguments.only not in name:
            continue
        need, free = needed_bytes(name, *_sizes(arguments), shape.weight.element_size()), free_bytes(device)
        if need > free:
            print(f"{name:38s} not run: needs about {need / 1e9:.0f} GB, {free / 1e9:.0f} GB are free", flush=True)
            continue
        try:
            memory[name] = peak_megabytes(name, run, shape, arguments)
            first = seconds(run, device)
        except torch.OutOfMemoryError:
            shape.clear()
            print(f"{name:38s} not run: out of memory", flush=True)
            continue
        runs[name] = run
        print(f"{name:38s} {first:8.3f} s at first, {max(memory[name], 0):7.0f} MB extra", flush=True)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(arguments.repeat):
        for name, run in list(runs.items()):
            try:
                times[name].append(seconds(run, device))
            except torch.OutOfMemoryError:
                shape.clear()
                print(f"{name:38s} out of memory in a later round: left out", flush=True)
                del runs[name]
    report({name: statistics.median(times[name]) for name in runs}, memory)


def report(median: dict[str, float], memory: dict[str, float]) -> None:
    """A line each; ratios where the floor itself could be run."""
    print(f"\n{'median':38s}")
    for name in median:
        unit = "one GEMM" if name.startswith("forward") else "three GEMMs"
        ratio = f"{median[name] / median[unit]:5.2f} x {unit:12s}" if unit in median else f"{'no floor':>20s}"
        print(f"{name:38s} {median[name]:8.3f} s   {ratio} {max(memory[name], 0):7.0f} MB extra")


def main() -> None:
    """Check, then time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--shape", default="4096x512x32000", help="rows x width x vocabulary")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--only", default="", help="contestants whose name contains this, besides the floors")
    parser.add_argument("--check-rows", action="store_true", help="only check some rows of this shape against float64")
    parser.add_argument("--memory", default="", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory:
        print(own_megabytes(arguments.memory, arguments))
        return
    if arguments.device == "cpu":
        torch.set_num_threads(1)
    if arguments.check_rows:
        check_rows(_sizes(arguments), arguments.device)
        return
    check(arguments.device)
    shape = Shape(*_sizes(arguments), arguments.device)
    choice = choose(Head(shape.weight))
    print(f"{arguments.shape} {shape.weight.dtype} on {arguments.device}: {choice.name} ({choice.reason})", flush=True)
    measure(shape, arguments)


if __name__ == "__main__":
    main()
