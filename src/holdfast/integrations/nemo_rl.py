"""NeMo-RL's `LossFunction`: in your run script, in place of its ClippedPGLossFn,

    from holdfast.integrations.nemo_rl import HoldfastLoss

    loss_fn = HoldfastLoss("trm+dapo", delta=0.3)

NeMo-RL hands over a micro-batch with the counts of the whole step, and adds the losses up, so means are exact under any
split. The old policy is the trainer's own, recomputed before the step (`prev_logprobs`), the engine's numbers are
`generation_logprobs`, the reference's `reference_policy_logprobs`, where the run computes them. Read at NeMo-RL of
August 2026; tested on its protocol, and not inside it. `records=` writes the sequences of every `records_every`-th
step for the audit; a step ends where NeMo-RL hands over new counts, so they are steps of the optimiser.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from holdfast.errors import DataError
from holdfast.integrations.doors import Door, batch_of, plain
from holdfast.integrations.records import Records, Sequences
from holdfast.objectives.objective import Objective
from holdfast.types import Batch, Counts, LossOutput, TokenStats

DOOR = Door("NeMo-RL", frozenset({"old_logprobs", "rollout_logprobs", "ref_logprobs"}), "part")
KEYS = {
    "old_logprobs": "prev_logprobs",
    "rollout_logprobs": "generation_logprobs",
    "ref_logprobs": "reference_policy_logprobs",
}
"""Our fields, and NeMo-RL's."""


class HoldfastLoss:
    """NeMo-RL's loss function of an objective; `settings` are the preset's.

    Raises:
        ConfigError: an objective that NeMo-RL cannot feed.
    """

    def __init__(
        self,
        objective: str | Objective,
        *,
        records: Path | str | None = None,
        records_every: int = 1,
        **settings: Any,
    ) -> None:
        self.objective = DOOR.objective(objective, settings)
        self._folder, self._every = records, records_every
        self._records: Records | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Without the files under way: NeMo-RL sends its loss to the workers, and each writes its own."""
        return self.__dict__ | {"_records": None}

    @property
    def loss_type(self) -> Any:
        """What the loss is divided by, NeMo-RL's `LossType`: tokens, or sequences."""
        from nemo_rl.algorithms.loss.interfaces import LossType  # pyright: ignore[reportMissingImports]

        tokens = self.objective.normalize.reduction == "token_mean"
        return LossType.TOKEN_LEVEL if tokens else LossType.SEQUENCE_LEVEL

    @property
    def input_type(self) -> Any:
        """NeMo-RL's `LossInputType`: log-probabilities of the next tokens."""
        from nemo_rl.algorithms.loss.interfaces import LossInputType  # pyright: ignore[reportMissingImports]

        return LossInputType.LOGPROB

    def __call__(
        self,
        next_token_logprobs: Float[Tensor, "B T"],
        data: Mapping[str, Any],
        global_valid_seqs: Tensor,
        global_valid_toks: Tensor,
        **others: Any,
    ) -> tuple[Tensor, dict[str, float]]:
        """This micro-batch's part of the step's loss, and of its metrics.

        `data` has [B, T + 1] per token, of which the first belongs to no prediction.

        Raises:
            DataError: a field that the objective needs and the step does not have.
        """
        mask = (data["token_mask"][:, 1:] * data["sample_mask"].unsqueeze(-1)).bool()
        given = {ours: data[theirs][:, 1:] for ours, theirs in KEYS.items() if data.get(theirs) is not None}
        if lacking := sorted(self.objective.needs & KEYS.keys() - given.keys()):
            raise DataError(
                f"NeMo-RL: {self.objective.name!r} needs {', '.join(KEYS[name] for name in lacking)}, which this step "
                f"has not computed (it has {', '.join(sorted(data.keys()))}): switch the computation on, or name an "
                "objective that does without"
            )
        batch = batch_of(mask, data["advantages"][:, 1:], **given)
        stats = TokenStats(logprobs=next_token_logprobs)
        counts = Counts(sequences=global_valid_seqs, tokens=global_valid_toks)
        plan = self.objective.prepare(batch, stats.detach(), counts=counts, validate=False)
        out = self.objective(batch, stats, plan=plan)
        if self._folder is not None:
            self._write(data, global_valid_toks, batch, next_token_logprobs, out)
        valid = float(torch.as_tensor(data["sample_mask"]).sum())
        return out.loss, {"loss": float(out.loss.detach()), "num_valid_samples": valid, **plain(out.metrics)}

    def _write(self, data: Mapping[str, Any], counts: Tensor, batch: Batch, current: Tensor, out: LossOutput) -> None:
        if self._records is None:
            assert self._folder is not None
            self._records = Records(self._folder, "nemo-rl", self._every)
        if data.get("input_ids") is None:
            raise DataError("NeMo-RL: records need input_ids, which this step does not have: leave `records` out")
        tokens = data["input_ids"]
        places = torch.arange(tokens.shape[1], device=tokens.device)
        ends = torch.as_tensor(data.get("input_lengths", [tokens.shape[1]] * len(tokens)), device=tokens.device)
        trainer = current if batch.old_logprobs is None else batch.old_logprobs
        sequences = Sequences(tokens, places < ends[:, None], trainer)
        self._records.add(self._records.counted(counts), sequences, batch, out)
