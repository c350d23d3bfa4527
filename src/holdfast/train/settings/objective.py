"""The objective that a configuration asks for, and whether the configuration leaves it anything to learn from."""

from __future__ import annotations

from holdfast.errors import ConfigError
from holdfast.objectives.objective import Objective
from holdfast.objectives.parts.advantages import Group
from holdfast.objectives.presets import preset
from holdfast.train.settings.config import RunConfig


def objective_of(config: RunConfig) -> Objective:
    """The configured objective; a division by a fixed length is one by `sampling.max_tokens`, unless written otherwise.

    Raises:
        ConfigError: an unknown preset or setting, or a baseline over groups of one response, in which every advantage
            is zero whatever the reward.
    """
    options = config.objective.options
    objective = preset(config.objective.preset, **options)
    written = any(name == "normalize" or name.rpartition(".")[2] == "length" for name in options)
    if objective.normalize.reduction == "fixed_length" and not written:
        objective = objective.with_(**{"normalize.length": config.sampling.max_tokens})
    if "teacher_logprobs" in objective.needs:
        raise ConfigError(
            f"objective {objective.name!r} needs a teacher's log-probabilities, and this trainer has no teacher; call "
            "the objective from your own loop with Batch(teacher_logprobs=...)"
        )
    advantage = objective.advantage
    if advantage.beside:
        raise ConfigError(
            f"objective {objective.name!r} estimates its advantages from {advantage.beside} "
            f"({advantage.formula()}), which this trainer does not make; use an advantage of rewards alone, such as "
            "'group', or call the objective from your own loop"
        )
    if config.batch.group_size == 1 and isinstance(advantage, Group) and advantage.baseline != "step_mean":
        raise ConfigError(
            f"batch.group_size = 1: objective {objective.name!r} compares each response with the others to its prompt "
            f"({objective.advantage.formula()}), which is zero in a group of one, so nothing could be learned; nearest "
            'valid value: 2, or a baseline without groups: objective.advantage = {kind = "whiten"}'
        )
    return objective
