"""Prompts as units: their means, baselines that see no other unit, and the split that holds rollouts back."""

import pytest
import torch

from holdfast.core.units import Units, split_by_prompt
from holdfast.errors import ConfigError, DataError


def test_means_and_baselines_by_hand():
    units = Units(torch.tensor([9, 4, 9, 9, 7]), 5)
    values = torch.tensor([1.0, 5.0, 2.0, 6.0, 4.0]).double()
    assert units.mean(values).tolist() == [3.0, 5.0, 4.0]  # in the order of their first rollout
    # Others of prompt 9: (2 + 6)/2, (1 + 6)/2, (1 + 2)/2; prompts with one rollout: ½.
    assert units.baseline(values).tolist() == [4.0, 0.5, 3.5, 1.5, 0.5]
    assert Units(None, 3).mean(torch.arange(3.0)).tolist() == [0, 1, 2]


def test_one_prompt_makes_its_rollouts_the_units():
    units = Units(torch.tensor([3, 3, 3]), 3)
    assert units.one_prompt and units.count == 3 and units.baseline(torch.ones(3).double()).tolist() == [0.5] * 3
    assert not Units(torch.tensor([3]), 1).one_prompt


def test_a_split_keeps_every_prompt_on_one_side():
    groups = torch.arange(80) // 8
    train, held = split_by_prompt(groups, torch.Generator().manual_seed(0))
    assert (train ^ held).all() and held.sum() == 16  # a quarter of 10 prompts, rounded: 2 of 8 rollouts each
    assert not set(groups[train].tolist()) & set(groups[held].tolist())
    again = split_by_prompt(groups, torch.Generator().manual_seed(0))[1]
    assert torch.equal(again, held)
    others = [split_by_prompt(groups, torch.Generator().manual_seed(s))[1] for s in range(40)]
    assert torch.stack(others).double().mean(0).min() > 0.05 and len({tuple(o.tolist()) for o in others}) > 10
    alone = split_by_prompt(8, torch.Generator().manual_seed(1), certify=0.5)[1]
    assert alone.shape == (8,) and alone.sum() == 4
    assert split_by_prompt(2, torch.Generator(), certify=0.01)[1].sum() == 1
    assert split_by_prompt(2, torch.Generator(), certify=0.99)[1].sum() == 1


def test_bad_splits_are_named():
    with pytest.raises(ConfigError, match=r"certify is 1\.0"):
        split_by_prompt(8, torch.Generator(), certify=1.0)
    with pytest.raises(DataError, match="1 prompts cannot be split"):
        split_by_prompt(1, torch.Generator())
    with pytest.raises(DataError, match="group_ids has 2 entries for 3 rollouts"):
        Units(torch.tensor([1, 2]), 3)
