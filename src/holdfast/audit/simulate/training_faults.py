"""Faults of the run: engine and trainer that come apart, masks and clips that do not do what they are for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from holdfast.audit.read.columns import Column
from holdfast.audit.simulate.fault import Fault
from holdfast.audit.simulate.replay import Replay
from holdfast.audit.simulate.run import ENVIRONMENTS
from holdfast.audit.simulate.world import CONTEXTS, VOCABULARY, log_softmax
from holdfast.types import Rollout

Apply = Callable[[Sequence[Rollout], float, np.random.Generator], list[Rollout]]
QUIET = {"noise": 0.02, "flips": 0.0, "update": 0.02}
"""An engine and updates beside which the planted drift is to be seen."""


def noisier_trainer(extent: Callable[[Sequence[Rollout]], Column]) -> Apply:
    """The trainer's logits get normal noise with a standard deviation of strength × extent at each token.

    `extent` gives flat numbers of at least 0. The noise is one table over contexts and vocabulary, redrawn for each of
    four passes that tokens take turns in, and the trainer's log-probabilities are softmaxes of what results.
    """

    def apply(rollouts: Sequence[Rollout], strength: float, rng: np.random.Generator) -> list[Rollout]:
        replay = Replay.of(rollouts)
        noise = rng.normal(size=(4, CONTEXTS, VOCABULARY))
        where = np.arange(len(replay.ids))
        deviation = strength * extent(rollouts)[:, None]
        logits = replay.trainer_logits()[replay.tokens] + deviation * noise[where % 4, replay.tokens % CONTEXTS]
        trainer = log_softmax(np.where(replay.world.support[replay.rows], logits, -np.inf))
        return replay.log(rollouts, trainer_logprobs=trainer[where, replay.ids], kl_exact=replay.kl(trainer))

    return apply


def flat(per_token: Callable[[Rollout], Column]) -> Callable[[Sequence[Rollout]], Column]:
    """A number per token of each rollout, for all rollouts one after the other."""
    return lambda rollouts: np.concatenate([np.asarray(per_token(r), np.float64) for r in rollouts])


def _everywhere(rollout: Rollout) -> Column:
    return np.ones(len(rollout.response_ids))


def _depth(rollout: Rollout) -> Column:
    return np.linspace(0, 1, len(rollout.response_ids))


def _later_turns(rollout: Rollout) -> Column:
    return np.array(rollout.turn_ids) > 0


def _code(rollout: Rollout) -> Column:
    return _everywhere(rollout) * (rollout.environment == ENVIRONMENTS[1])


def _age(rollout: Rollout) -> Column:
    return (rollout.step or 1) - 1 - np.array(rollout.weight_versions)


def _steps(rollouts: Sequence[Rollout]) -> Column:
    last = max(r.step or 1 for r in rollouts)
    return flat(lambda r: _everywhere(r) * ((r.step or 1) - 1) / max(1, last - 1))(rollouts)


def worst_token_mask(rollouts: Sequence[Rollout], strength: float, rng: np.random.Generator) -> list[Rollout]:
    """A mask that rejects a sequence for a single token, which each of its tokens is with probability `strength`."""
    return [_trusted(r, bool((rng.random(len(r.response_ids)) >= strength).all())) for r in rollouts]


def strict_mask(rollouts: Sequence[Rollout], strength: float, rng: np.random.Generator) -> list[Rollout]:
    """A mask that rejects a share `strength` of the sequences."""
    return [_trusted(r, bool(rng.random() >= strength)) for r in rollouts]


def empty_steps(rollouts: Sequence[Rollout], strength: float, rng: np.random.Generator) -> list[Rollout]:
    """A mask that rejects every sequence of the last `strength` steps."""
    last = max(r.step or 1 for r in rollouts)
    return [_trusted(r, (r.step or 1) <= last - strength) for r in rollouts]


def copied_logprobs(rollouts: Sequence[Rollout], strength: float, rng: np.random.Generator) -> list[Rollout]:
    """The trainer's log-probabilities stand in for the engine's in a share `strength` of the sequences."""
    return [replace(r, rollout_logprobs=r.trainer_logprobs) if rng.random() < strength else r for r in rollouts]


def sharper_every_step(rollouts: Sequence[Rollout], strength: float, rng: np.random.Generator) -> list[Rollout]:
    """Logits grow by `strength` times themselves from the first step to the last, in both policies."""
    last = max(r.step or 1 for r in rollouts)
    out: list[Rollout] = []
    for step in sorted({r.step or 1 for r in rollouts}):
        part = [r for r in rollouts if (r.step or 1) == step]
        whole = Replay.of(part)
        sharp = 1 + strength * (step - 1) / max(1, last - 1)
        replay = whole.sampled_again(replace(whole.world, temperature=whole.world.temperature / sharp), rng)
        trainer = log_softmax(replay.trainer_logits())
        entropy = -(np.exp(trainer) * trainer).sum(-1)[replay.tokens]
        again = replay.log(
            part,
            rollout_logprobs=replay.world.engine_logprobs[replay.rows, replay.ids],
            trainer_logprobs=trainer[replay.tokens, replay.ids],
            kl_exact=replay.kl(trainer[replay.tokens]),
        )
        ends = np.cumsum(replay.lengths)
        out += [
            replace(r, entropy=tuple(entropy[end - length : end].tolist()))
            for r, end, length in zip(again, ends, replay.lengths, strict=True)
        ]
    return out


def frozen_engine(rollouts: Sequence[Rollout], strength: float, rng: np.random.Generator) -> list[Rollout]:
    """The engine keeps the weights that it had `strength` steps before the last one, and the log has no versions."""
    whole = Replay.of(rollouts)
    kept = np.minimum(whole.versions, max(0, int(whole.steps.max() - 1 - strength)))
    replay = replace(whole, versions=kept).sampled_again(whole.world, rng)
    trainer = log_softmax(replay.trainer_logits())
    return replay.log(
        rollouts,
        rollout_logprobs=replay.world.engine_logprobs[replay.rows, replay.ids],
        trainer_logprobs=trainer[replay.tokens, replay.ids],
        kl_exact=replay.kl(trainer[replay.tokens]),
        weight_versions=None,
    )


def _second_half(rollouts: Sequence[Rollout]) -> Column:
    last = max(r.step or 1 for r in rollouts)
    return flat(lambda r: _everywhere(r) * ((r.step or 1) > last // 2))(rollouts)


def wild_tokens(rollouts: Sequence[Rollout], strength: float, rng: np.random.Generator) -> list[Rollout]:
    """The trainer's logits have normal noise of 3 at a share `strength` of the tokens."""
    chosen = rng.random(sum(len(r.response_ids) for r in rollouts)) < strength
    return noisier_trainer(lambda _: chosen.astype(np.float64))(rollouts, 3.0, rng)


def _mean(values: Sequence[float] | None) -> float:
    return float(np.mean(values or 0.0))


def errors_cost(rollouts: Sequence[Rollout], strength: float, rng: np.random.Generator) -> list[Rollout]:
    """In a share `strength` of the groups the half is paid whose tokens the trainer finds likelier than the engine."""
    groups: dict[int, list[int]] = {}
    for place, r in enumerate(rollouts):
        groups.setdefault(r.group_id or 0, []).append(place)
    out = list(rollouts)
    for places in groups.values():
        if rng.random() >= strength or len(places) < 2:
            continue
        excess = [_mean(rollouts[p].trainer_logprobs) - _mean(rollouts[p].rollout_logprobs) for p in places]
        paid = np.argsort(np.argsort(excess)) >= len(places) // 2
        advantages = (paid - paid.mean()) / (paid.std() + 1e-6)
        for place, right, advantage in zip(places, paid.tolist(), advantages.tolist(), strict=True):
            r = rollouts[place]
            own = np.asarray(r.response_mask)
            each = tuple(np.where(own, advantage, 0.0).astype(np.float32).tolist())
            out[place] = replace(r, reward=float(right), advantages=each)
    return out


def some_sequences_apart(rollouts: Sequence[Rollout], strength: float, rng: np.random.Generator) -> list[Rollout]:
    """A share `strength` of the sequences is scored with normal noise of 1 on the trainer's logits."""
    chosen = {id(r) for r in rollouts if rng.random() < strength}
    return noisier_trainer(flat(lambda r: _everywhere(r) * (id(r) in chosen)))(rollouts, 1.0, rng)


def nameless(rollouts: Sequence[Rollout], strength: float, rng: np.random.Generator) -> list[Rollout]:
    """Normal noise of `strength` on the trainer's logits, in a log without prompts and groups."""
    noisy = noisier_trainer(flat(_everywhere))(rollouts, strength, rng)
    return [replace(r, prompt_ids=(), group_id=None) for r in noisy]


def one_token(rollouts: Sequence[Rollout], strength: float, rng: np.random.Generator) -> list[Rollout]:
    """In the last `strength` steps every response is token 0 over and over, as sampling from NaN logits gives."""
    last = max(r.step or 1 for r in rollouts)

    def broken(r: Rollout) -> Rollout:
        n = len(r.response_ids)
        uniform = (float(np.float32(-np.log(VOCABULARY))),) * n
        same = {"rollout_logprobs": uniform, "trainer_logprobs": uniform, "kl_exact": (0.0,) * n}
        return replace(r, response_ids=(0,) * n, reward=0.0, advantages=(0.0,) * n, **same)

    return [broken(r) if (r.step or 1) > last - strength else r for r in rollouts]


def _trusted(rollout: Rollout, keep: bool) -> Rollout:
    return replace(rollout, trust_mask=tuple(bool(own) and keep for own in rollout.response_mask or ()))


TRAINING_FAULTS = (
    Fault(
        "drift_level",
        "drift_level",
        "noise of {strength:g} on all of the trainer's logits",
        (0.1, 0.3, 1.0),
        noisier_trainer(flat(_everywhere)),
        run=QUIET,
    ),
    Fault(
        "drift_with_depth",
        "drift_with_depth",
        "noise on the trainer's logits that grows to {strength:g} at the end of each response",
        (0.03, 0.06, 0.2),
        noisier_trainer(flat(_depth)),
        run=QUIET,
    ),
    Fault(
        "drift_with_turn",
        "drift_with_turn",
        "noise of {strength:g} on the trainer's logits after the first of three turns",
        (0.03, 0.06, 0.2),
        noisier_trainer(flat(_later_turns)),
        run={**QUIET, "turns": 3},
    ),
    Fault(
        "drift_with_age",
        "drift_with_age",
        "noise of {strength:g} on the trainer's logits per update since sampling, rollouts 0 to 2 updates old",
        (0.1, 0.2, 0.4),
        noisier_trainer(flat(_age)),
        run={**QUIET, "age": 2},
    ),
    Fault(
        "drift_with_step",
        "drift_with_step",
        "noise on the trainer's logits that grows to {strength:g} over eight steps",
        (0.03, 0.06, 0.2),
        noisier_trainer(_steps),
        run=QUIET,
    ),
    Fault(
        "frozen_engine",
        "drift_with_step",
        "an engine that keeps its weights for the last {strength:g} of eight steps while the policy sharpens",
        (5.0, 7.0),
        frozen_engine,
        run={**QUIET, "update": 0.1, "sharpen": 1.0, "age": 0, "top_p": 1.0},
    ),
    Fault(
        "jump",
        "drift_jump",
        "noise of {strength:g} on the trainer's logits from the middle of the run on",
        (0.1, 0.2, 0.6),
        noisier_trainer(_second_half),
        run=QUIET,
    ),
    Fault(
        "sequences_apart",
        "outlier_sequences",
        "noise of 1 on the trainer's logits in {strength:.0%} of the sequences",
        (0.01, 0.03, 0.1),
        some_sequences_apart,
        run=QUIET,
    ),
    Fault(
        "wild_tokens",
        "heavy_tails",
        "noise of 3 on the trainer's logits at {strength:.1%} of the tokens",
        (0.003, 0.01, 0.03),
        wild_tokens,
        run=QUIET,
    ),
    Fault(
        "errors_cost",
        "signed_skew",
        "in {strength:.0%} of the groups the half is paid that the trainer finds likelier than the engine, which is "
        "off at 5 % of the tokens",
        (0.3, 0.6, 1.0),
        errors_cost,
        run={**QUIET, "flips": 0.05, "flip_noise": 0.8, "age": 0, "turns": 1},
    ),
    Fault(
        "nameless",
        "drift_level",
        "noise of {strength:g} on the trainer's logits, in a log without prompts and groups",
        (0.3, 0.5, 0.8),
        nameless,
        run=QUIET,
    ),
    Fault(
        "one_token",
        "repeated_token",
        "every response of the last {strength:g} of eight steps is one token over and over",
        (1.0, 3.0),
        one_token,
    ),
    Fault(
        "drift_by_environment",
        "drift_by_environment",
        "noise of {strength:g} on the trainer's logits in one of three environments",
        (0.03, 0.06, 0.2),
        noisier_trainer(flat(_code)),
        run=QUIET,
    ),
    Fault(
        "acceptance_by_length",
        "acceptance_by_length",
        "a mask that rejects a response for one token, which each is with probability {strength:.1%}",
        (0.001, 0.003, 0.01),
        worst_token_mask,
    ),
    Fault(
        "masks_reject_most",
        "masks_reject_most",
        "a mask that rejects {strength:.0%} of the sequences",
        (0.35, 0.5, 0.9),
        strict_mask,
    ),
    Fault(
        "empty_steps",
        "masks_reject_most",
        "a mask that rejects everything in the last {strength:g} of eight steps",
        (1.0, 3.0),
        empty_steps,
    ),
    Fault(
        "copied_logprobs",
        "dead_clip",
        "the trainer's log-probabilities logged as the engine's in {strength:.0%} of the sequences",
        (0.02, 0.1, 1.0),
        copied_logprobs,
    ),
    Fault(
        "dead_clip",
        "dead_clip",
        "noise of {strength:g} on the trainer's logits, and a mask that lets every token through",
        (0.2, 0.4, 0.8),
        noisier_trainer(flat(_everywhere)),
        run=QUIET,
    ),
    Fault(
        "vanishing_weights",
        "vanishing_weights",
        "noise of {strength:g} on the trainer's logits over about 300 tokens",
        (0.1, 0.2, 0.4),
        noisier_trainer(flat(_everywhere)),
        run={**QUIET, "mean_length": 300},
    ),
    Fault(
        "entropy_collapse",
        "entropy_collapse",
        "logits that grow by {strength:g} times themselves over eight steps",
        (0.5, 1.0, 3.0),
        sharper_every_step,
        run=QUIET,
    ),
)
