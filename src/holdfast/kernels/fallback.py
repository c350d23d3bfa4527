"""Triton until one of its programs cannot be built or does not fit the device; from then on torch, said once."""

from __future__ import annotations

import functools
import subprocess
import warnings
from typing import Any

from torch import Tensor

from holdfast.kernels.chunked import Chunked
from holdfast.kernels.function import Gradients, Implementation, RowGradient
from holdfast.kernels.head import HeadStats, Problem
from holdfast.kernels.sums import Totals

# A compiler pass that fails and a missing C compiler come as plain RuntimeErrors; a launch that fails does, too,
# and must not pass for them.
_MESSAGES = ("PassManager", "C compiler", "ptxas")


class Guarded:
    """An implementation that `instead` replaces for good once a program of `first` cannot be built.

    Forward and backward share the sums of a row, so a backward may be torch's where the forward was Triton's. Other
    errors, out of memory among them, are raised. `failure` says what went wrong.
    """

    def __init__(self, first: Implementation, instead: Implementation | None = None) -> None:
        self.first, self.instead = first, instead or Chunked()
        self.failure: str | None = None

    def forward(self, problem: Problem, keep_hidden_grad: bool) -> tuple[HeadStats, Totals, Tensor | None]:
        """As `Implementation.forward`."""
        return self._run("forward", problem, keep_hidden_grad)

    def backward(self, problem: Problem, rows: RowGradient, wanted: tuple[bool, bool, bool]) -> Gradients:
        """As `Implementation.backward`."""
        return self._run("backward", problem, rows, wanted)

    def _run(self, name: str, *arguments: Any) -> Any:
        if self.failure is None:
            try:
                return getattr(self.first, name)(*arguments)
            except Exception as error:
                if not is_build_error(error):
                    raise
                self.failure = _in_a_line(error)
                warn_once(
                    f"Triton's programs for the LM head cannot be built for this device ({self.failure}); the chunked "
                    "torch implementation takes over. The results are right; log-probabilities may differ in the last "
                    "bit from those made before"
                )
        return getattr(self.instead, name)(*arguments)


def is_build_error(error: Exception) -> bool:
    """Whether Triton could not compile a program or load it onto the device."""
    if any(kind.__module__.partition(".")[0] == "triton" for kind in type(error).__mro__):
        return True
    if isinstance(error, subprocess.CalledProcessError):
        return True
    return type(error) is RuntimeError and any(part in str(error) for part in _MESSAGES)


@functools.cache
def warn_once(message: str) -> None:
    """A RuntimeWarning, once for a message and process."""
    warnings.warn(message, RuntimeWarning, stacklevel=4)


def _in_a_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1][:200]}" if lines else type(error).__name__
