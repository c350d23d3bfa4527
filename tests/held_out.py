"""Rollouts as a brake holds them out of an update, their numbers chosen by hand."""

import torch

from holdfast.tasks.base import Problem
from holdfast.train.sampling.data import Prompts, Rollouts, pack
from holdfast.train.sampling.episodes import Episode
from holdfast.train.settings.configfile import build_config
from holdfast.train.update import Updater
from holdfast.types import TokenStats


def brake_config(kind="certificate", guard=None, **tables):
    """Eight prompts of two responses, seven of them held out."""
    plain = {"batch": {"prompts": 8, "group_size": 2}}
    return build_config(plain | tables | {"guard": {"brake": kind, "brake_share": 0.875} | (guard or {})})


def updater_of(parameters, optimizer=None, objective=None):
    """What an update changes, and nothing else of an updater."""
    updater = object.__new__(Updater)
    updater.parameters, updater.optimizer, updater.objective, updater.moved = parameters, optimizer, objective, False
    return updater


def rollouts_of(rewards, groups):
    """One token of log-probability -1 each, and a row of padding."""
    count = len(rewards)
    return Rollouts(
        prompts=Prompts((Problem("?", "!", None, "test"),) * count, ((1,),) * count),
        episodes=tuple(Episode(i, Problem("?", "!", None, "test"), (1,)) for i in range(count)),
        texts=("",) * count,
        sequences=pack([[1]] * count, [[2, 3]] * count, 0, [[True, False]] * count),
        rollout_logprobs=torch.full((count, 2), -1.0),
        rewards=torch.tensor(rewards),
        group_ids=torch.tensor(groups),
        sequence_ids=torch.arange(count),
        turn_ids=torch.zeros(count, 2, dtype=torch.long),
        versions=torch.zeros(count, 2, dtype=torch.long),
    )


def seen_by(log_ratios, padding=5.0):
    """A policy that is e^`log_ratios` times as likely to write them as the one that did."""
    return TokenStats(torch.tensor([[ratio - 1, padding] for ratio in log_ratios]))


def held_out(rewards, ratios, groups):
    """Such rollouts, and the policy before the update, which is `ratios` times as likely to write them."""
    return rollouts_of(rewards, list(groups)), seen_by(torch.tensor(ratios).log().tolist())
