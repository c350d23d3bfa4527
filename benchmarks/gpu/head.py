"""Part 4: the speed of the LM head beside its GEMMs alone and released peers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress

import torch
from gpu.common import Check
from head_memory import FLOOR_ROWS, free_bytes, needed_bytes
from torch import Tensor

from holdfast.kernels import lm_head_loss, lm_head_stats

SHAPES = {"B": (16384, 1024, 151936), "A": (32768, 4096, 151936), "8192x2560": (8192, 2560, 151936)}
TINY = {"tiny": (64, 32, 1000)}


def head(check: Check) -> None:
    """Every contestant that fits at every shape: milliseconds, ratio to the floor measured here, extra memory."""
    for tag, size in (SHAPES if check.cuda else TINY).items():
        inputs, floors = Inputs(check.device, *size), {}
        for name, run in contestants(inputs):
            if check.left < 60:
                check.note("head", shape=tag, name=name, not_run="no time left")
                return
            need = needed_bytes(name, *size, inputs.weight.element_size())
            if need > free_bytes(check.device):
                check.note("head", shape=tag, name=name, not_run=f"needs about {need / 1e9:.0f} GB")
                continue
            _one(check, tag, name, run, floors, inputs)
        del inputs
        check.clear()


def _one(check: Check, tag: str, name: str, run: Callable[[], None], floors: dict[str, float], inputs: Inputs) -> None:
    try:
        timing = check.timed(run, repeats=5 if check.cuda else 1)
    except Exception as error:
        check.note("head", shape=tag, name=name, failed=f"{type(error).__name__}: {str(error)[:160]}")
        return
    finally:
        inputs.clear()
    if timing is None:
        check.note("head", shape=tag, name=name, not_run="out of memory")
        return
    if name.endswith(("GEMM", "GEMMs")):
        floors[name] = timing.seconds
    of = {"forward": "1 GEMM", "forward with exact KL": "2 GEMMs", "frozen head": "3 GEMMs"}.get(name, "4 GEMMs")
    ratio = timing.seconds / floors[of] if of in floors else None
    check.note(
        "head", shape=tag, name=name, ms=timing.seconds * 1e3, ratio=ratio, of=of, extra_mb=timing.peak / 1e6,
        first_s=timing.first,
    )  # fmt: skip


class Inputs:
    """Hidden states and weight that want gradients, with logits spread like those of a model."""

    def __init__(self, device: str, rows: int, width: int, vocabulary: int) -> None:
        g = torch.Generator(device).manual_seed(0)
        dtype = torch.bfloat16 if device == "cuda" else torch.float32
        self.hidden = torch.randn(rows, width, generator=g, device=device).to(dtype).requires_grad_()
        weight = torch.randn(vocabulary, width, generator=g, device=device) * (3 / width**0.5)
        self.weight = weight.to(dtype).requires_grad_()
        self.states = self.hidden.detach() + 0.01
        self.targets = torch.randint(vocabulary, (rows,), generator=g, device=device)
        self.advantages = torch.randn(rows, generator=g, device=device)

    def clear(self) -> None:
        """Forget the gradients."""
        self.hidden.grad = self.weight.grad = None

    def finish(self, logprobs: Tensor, entropy: Tensor | None) -> None:
        """The backward pass of a token-level loss."""
        loss = (logprobs * self.advantages).sum()
        (loss if entropy is None else loss + 0.01 * entropy.sum()).backward()
        self.clear()


def contestants(x: Inputs) -> Iterator[tuple[str, Callable[[], None]]]:
    """Floors first: GEMMs in pieces of rows, so that no [N, V] tensor is needed."""
    hidden, weight = x.hidden.detach(), x.weight.detach()

    def floor(count: int) -> None:
        pieces = hidden.split(FLOOR_ROWS)
        space = torch.full((len(pieces[0]), len(weight)), 0.5, device=weight.device, dtype=weight.dtype)
        for piece in pieces:
            logits = torch.mm(piece, weight.T, out=space[: len(piece)])
            if count >= 3:
                torch.mm(logits, weight)
                torch.mm(logits.T, piece)
            if count in (2, 4):
                torch.mm(piece, weight.T, out=space[: len(piece)])

    def stats(entropy: bool = True, frozen: bool = False, form: str = "auto") -> None:
        outputs = ("entropy",) if entropy else ()
        found = lm_head_stats(x.hidden, weight if frozen else x.weight, x.targets, outputs=outputs, implementation=form)  # pyright: ignore
        x.finish(found.logprobs, found.entropy)

    def forward(kl: bool) -> None:
        more = {"rollout": (x.states, weight), "outputs": ("entropy", "kl_rollout")} if kl else {}
        with torch.no_grad():
            lm_head_stats(hidden, weight, x.targets, **more)  # pyright: ignore

    def one_pass() -> None:
        def token_loss(found, rows):
            return found.logprobs * x.advantages[rows] + 0.01 * found.entropy

        lm_head_loss(x.hidden, x.weight, x.targets, token_loss)[0].backward()
        x.clear()

    for count, name in ((1, "1 GEMM"), (2, "2 GEMMs"), (3, "3 GEMMs"), (4, "4 GEMMs")):
        yield name, lambda count=count: floor(count)
    yield "forward", lambda: forward(False)
    yield "forward with exact KL", lambda: forward(True)
    yield "two passes", stats
    yield "two passes, logprob only", lambda: stats(entropy=False)
    yield "frozen head", lambda: stats(entropy=False, frozen=True)
    yield "two passes in torch", lambda: stats(form="chunked")
    yield "one pass", one_pass
    yield from peers(x)


def peers(x: Inputs) -> Iterator[tuple[str, Callable[[], None]]]:
    """Released heads that can be imported here."""
    with suppress(ImportError):
        from trl.kernels.chunked_logprob import ChunkedLogProbFunction

        def trl() -> None:  # with the chunk size of its trainer
            found = ChunkedLogProbFunction.apply(
                x.hidden, x.weight, None, x.targets, 1.0, 32768, None, 1.0, ("entropy",)
            )
            x.finish(found[0], found[1])

        yield "TRL chunked_logprob", trl
    with suppress(ImportError):
        from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

        def liger() -> None:
            loss = liger_fused_linear_cross_entropy(x.hidden, x.weight, x.targets, reduction="none")
            x.finish(-(loss[0] if isinstance(loss, tuple) else loss), None)

        yield "Liger fused linear cross entropy, no entropy", liger
