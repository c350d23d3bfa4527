"""What is independent in a batch of rollouts: prompts. Means over them, and a split that keeps each on one side."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from holdfast.errors import ConfigError, DataError


class Units:
    """Independent units, numbered in the order of their first rollout: prompts where they are known, else rollouts.

    Where all rollouts are of one prompt, they are independent given that prompt, and units themselves. Raises DataError
    where `group_ids` does not name one prompt per rollout.
    """

    def __init__(self, group_ids: Int[Tensor, " B"] | None, rollouts: int) -> None:
        ids = torch.arange(rollouts) if group_ids is None else group_ids.detach().cpu()
        if ids.shape != (rollouts,):
            raise DataError(
                f"group_ids has {ids.numel()} entries for {rollouts} rollouts: give one per rollout, the same number "
                "to all rollouts of one prompt"
            )
        number: dict[int, int] = {}
        self.one_prompt = rollouts > 1 and len(ids.unique()) == 1
        ids = torch.arange(rollouts) if self.one_prompt else ids
        self.index = torch.tensor([number.setdefault(i, len(number)) for i in ids.tolist()], dtype=torch.long)
        self.sizes = self.index.bincount(minlength=len(number)).double()
        self.count = len(number)

    def mean(self, values: Float[Tensor, " B"]) -> Float[Tensor, " units"]:
        """The mean over each unit's rollouts."""
        return torch.zeros(self.count, dtype=torch.float64).index_add_(0, self.index, values.double()) / self.sizes

    def baseline(self, reward: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
        """The mean reward of the prompt's other rollouts, ½ where there is none: it never sees another unit.

        A mean over all other rollouts would tie the units to each other, and limits that take them as independent would
        be too short.
        """
        total, size = (self.mean(reward) * self.sizes)[self.index], self.sizes[self.index]
        return torch.where(size > 1, (total - reward) / (size - 1).clamp(min=1), torch.full_like(reward, 0.5))


def split_by_prompt(
    group_ids: Int[Tensor, " B"] | int, generator: torch.Generator, *, certify: float = 0.25
) -> tuple[Bool[Tensor, " B"], Bool[Tensor, " B"]]:
    """Which rollouts to train on, and which to hold back for the certificate: all rollouts of a prompt on one side.

    A certificate counts only if the policy does not depend on the rollouts behind it. `group_ids` numbers the prompts,
    one entry per rollout; an integer says how many rollouts there are, each with a prompt of its own. `certify` is the
    share of the prompts that is held back, rounded, at least one. Returns boolean flags [B], [B], each the other's
    complement.

    Raises ConfigError for a share outside (0, 1), DataError for fewer than two prompts.
    """
    if not 0 < certify < 1:
        raise ConfigError(f"certify is {certify}, allowed is a share between 0 and 1, both excluded: say 0.25")
    alone = isinstance(group_ids, int)
    units = Units(None if alone else group_ids, group_ids if alone else len(group_ids))
    if units.count < 2:
        raise DataError(f"{units.count} prompts cannot be split: at least 2 are needed, to train on and to certify on")
    held = min(max(round(certify * units.count), 1), units.count - 1)
    chosen = torch.randperm(units.count, generator=generator)[:held]
    held_back = torch.isin(units.index, chosen)
    return ~held_back, held_back
