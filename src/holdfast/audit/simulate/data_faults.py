"""Faults of the log itself: numbers that are not what they are said to be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from holdfast.audit.read.columns import Column
from holdfast.audit.simulate.fault import Fault
from holdfast.audit.simulate.replay import Replay, floats
from holdfast.audit.simulate.world import VOCABULARY, log_softmax
from holdfast.types import Rollout

Apply = Callable[[Sequence[Rollout], float, np.random.Generator], list[Rollout]]


def some_sequences(change: Callable[[Rollout], Rollout]) -> Apply:
    """A fault that hits each sequence with a probability, its strength."""

    def apply(rollouts: Sequence[Rollout], strength: float, rng: np.random.Generator) -> list[Rollout]:
        return [change(r) if rng.random() < strength else r for r in rollouts]

    return apply


def some_tokens(field: str, value: float) -> Apply:
    """A fault that replaces each own token's value with a probability, its strength."""

    def apply(rollouts: Sequence[Rollout], strength: float, rng: np.random.Generator) -> list[Rollout]:
        def change(rollout: Rollout) -> Rollout:
            values = np.array(getattr(rollout, field))
            values[(rng.random(len(values)) < strength) & np.array(rollout.response_mask)] = value
            return replace(rollout, **{field: floats(values)})

        return [change(r) for r in rollouts]

    return apply


def _late(rollout: Rollout) -> Rollout:
    values = rollout.rollout_logprobs or ()
    return replace(rollout, rollout_logprobs=values[:1] + values[:-1])


def _early(rollout: Rollout) -> Rollout:
    values = rollout.rollout_logprobs or ()
    return replace(rollout, rollout_logprobs=values[1:] + values[-1:])


def _empty(rollout: Rollout) -> Rollout:
    return replace(rollout, rollout_logprobs=(0.0,) * len(rollout.response_ids))


def trainer_ignores_temperature(
    rollouts: Sequence[Rollout], strength: float, rng: np.random.Generator
) -> list[Rollout]:
    """The simulated logits are those at temperature `strength`; the trainer takes its softmax at 1."""
    replay = Replay.of(rollouts)
    trainer = log_softmax(replay.trainer_logits() * strength)
    return replay.log(
        rollouts, trainer_logprobs=trainer[replay.tokens, replay.ids], kl_exact=replay.kl(trainer[replay.tokens])
    )


def engine_logs_before_temperature(
    rollouts: Sequence[Rollout], strength: float, rng: np.random.Generator
) -> list[Rollout]:
    """The engine sampled at temperature `strength` and logs the softmax of its raw logits."""
    replay = Replay.of(rollouts)
    raw = log_softmax(replay.world.engine_logits.reshape(-1, VOCABULARY) * strength)
    return replay.log(rollouts, rollout_logprobs=raw[replay.rows, replay.ids])


def trainer_ignores_top_p(rollouts: Sequence[Rollout], strength: float, rng: np.random.Generator) -> list[Rollout]:
    """The engine samples within top-p and renormalises; the trainer's softmax runs over everything."""
    whole = Replay.of(rollouts)
    replay = whole.sampled_again(replace(whole.world, top_p=strength), rng)
    trainer = log_softmax(replay.trainer_logits())
    return replay.log(
        rollouts,
        rollout_logprobs=replay.world.engine_logprobs[replay.rows, replay.ids],
        trainer_logprobs=trainer[replay.tokens, replay.ids],
        kl_exact=replay.kl(trainer[replay.tokens]),
        top_p=strength,
    )


def engine_logs_before_top_p(rollouts: Sequence[Rollout], strength: float, rng: np.random.Generator) -> list[Rollout]:
    """The engine samples within top-p and logs the softmax over everything; the trainer renormalises."""
    whole = Replay.of(rollouts)
    replay = whole.sampled_again(replace(whole.world, top_p=strength), rng)
    kept = np.where(replay.world.support[replay.rows], replay.trainer_logits()[replay.tokens], -np.inf)
    trainer = log_softmax(kept)
    return replay.log(
        rollouts,
        rollout_logprobs=whole.world.engine_logprobs[replay.rows, replay.ids],
        trainer_logprobs=trainer[np.arange(len(replay.ids)), replay.ids],
        kl_exact=replay.kl(trainer),
        top_p=strength,
    )


def likeliest_recorded(rollouts: Sequence[Rollout], strength: float, rng: np.random.Generator) -> list[Rollout]:
    """The engine's log-probability of its likeliest token, on a share `strength` of the tokens."""
    replay = Replay.of(rollouts)
    top = replay.world.engine_logprobs.max(-1)[replay.rows]
    true = replay.world.engine_logprobs[replay.rows, replay.ids]
    return replay.log(rollouts, rollout_logprobs=np.where(rng.random(len(true)) < strength, top, true))


FORCED = 7


def forced_end(zero: bool) -> Apply:
    """The last token of a share `strength` of the responses is put there by the sampler."""

    def apply(rollouts: Sequence[Rollout], strength: float, rng: np.random.Generator) -> list[Rollout]:
        replay = Replay.of(rollouts)
        last = np.cumsum(replay.lengths) - 1
        last = last[rng.random(len(last)) < strength]
        ids = replay.ids.copy()
        ids[last] = FORCED
        engine, trainer = (floats_of(rollouts, name) for name in ("rollout_logprobs", "trainer_logprobs"))
        engine[last] = 0 if zero else replay.world.engine_logprobs[replay.rows[last], FORCED]
        trainer[last] = log_softmax(replay.trainer_logits())[replay.tokens[last], FORCED]
        return replace_ids(replay, ids).log(rollouts, rollout_logprobs=engine, trainer_logprobs=trainer)

    return apply


def floats_of(rollouts: Sequence[Rollout], name: str) -> Column:
    """Flat values of a token field."""
    return np.concatenate([np.asarray(getattr(r, name), np.float64) for r in rollouts])


def replace_ids(replay: Replay, ids: Column) -> Replay:
    """The same replay with other token ids in the log."""
    return replace(replay, ids=ids)


def few_tokens(rollouts: Sequence[Rollout], strength: float, rng: np.random.Generator) -> list[Rollout]:
    """On five in 10,000 uncertain tokens the trainer's log-probability is `strength` nats too low."""

    def change(rollout: Rollout) -> Rollout:
        values = np.array(rollout.trainer_logprobs)
        unsure = np.array(rollout.rollout_logprobs) < 0
        values[(rng.random(len(values)) < 5e-4) & unsure & np.array(rollout.response_mask)] -= strength
        return replace(rollout, trainer_logprobs=floats(values), kl_exact=None)

    return [change(r) for r in rollouts]


def few_prompts(rollouts: Sequence[Rollout], strength: float, rng: np.random.Generator) -> list[Rollout]:
    """The log-ratio of one prompt in a hundred (at least of one) is `strength` times as large."""
    groups = sorted({r.group_id or 0 for r in rollouts})
    chosen = set(rng.choice(groups, max(1, len(groups) // 100), replace=False).tolist())

    def change(rollout: Rollout) -> Rollout:
        engine, trainer = np.array(rollout.rollout_logprobs), np.array(rollout.trainer_logprobs)
        apart = np.where(engine < 0, strength, 1) * (trainer - engine)
        values = floats(np.minimum(engine + apart, np.minimum(trainer, -1e-4)))
        return replace(rollout, trainer_logprobs=values, kl_exact=None)

    return [change(r) if r.group_id in chosen else r for r in rollouts]


def batch_again(rollouts: Sequence[Rollout], strength: float, rng: np.random.Generator) -> list[Rollout]:
    """A share `strength` of the last step's rollouts are those of the step before, trained on again."""
    last = max(r.step or 0 for r in rollouts)
    before = [r for r in rollouts if r.step == last - 1]
    out = [r for r in rollouts if r.step != last]
    for old, new in zip(before, (r for r in rollouts if r.step == last), strict=True):
        out.append(replace(old, step=last, sequence_id=new.sequence_id) if rng.random() < strength else new)
    return out


def one_seed(rollouts: Sequence[Rollout], strength: float, rng: np.random.Generator) -> list[Rollout]:
    """In a share `strength` of the groups all responses are the first one."""
    first: dict[int | None, Rollout | None] = {}
    out = []
    for r in rollouts:
        if r.group_id not in first:
            first[r.group_id] = r if rng.random() < strength else None
        source = first[r.group_id]
        out.append(r if source is None else replace(source, sequence_id=r.sequence_id))
    return out


def order_again(rollouts: Sequence[Rollout], strength: float, rng: np.random.Generator) -> list[Rollout]:
    """The last `strength` steps take the prompts of the first ones, in their order."""
    steps = sorted({r.step or 0 for r in rollouts})
    again = dict(zip(steps[-int(strength) :], steps, strict=False))
    prompts = {s: [r.prompt_ids for r in rollouts if r.step == s] for s in steps}
    seen = dict.fromkeys(steps, 0)
    out = []
    for r in rollouts:
        step = r.step or 0
        if step in again:
            r = replace(r, prompt_ids=prompts[again[step]][seen[step]])
            seen[step] += 1
        out.append(r)
    return out


def coarse_engine(rollouts: Sequence[Rollout], strength: float, rng: np.random.Generator) -> list[Rollout]:
    """The engine's logits have noise of this standard deviation at equal weights."""
    whole = Replay.of(rollouts)
    replay = whole.sampled_again(replace(whole.world, noise=strength), rng)
    trainer = log_softmax(replay.trainer_logits())
    return replay.log(
        rollouts,
        rollout_logprobs=replay.world.engine_logprobs[replay.rows, replay.ids],
        trainer_logprobs=trainer[replay.tokens, replay.ids],
        kl_exact=replay.kl(trainer[replay.tokens]),
    )


def wrong_at_the_end(rollouts: Sequence[Rollout], strength: float, rng: np.random.Generator) -> list[Rollout]:
    """The engine logs about -12 on the last three tokens of a share `strength` of the responses, whatever it drew."""

    def change(rollout: Rollout) -> Rollout:
        values = np.array(rollout.rollout_logprobs)
        values[-3:] = -12 - rng.normal(size=len(values[-3:]))
        return replace(rollout, rollout_logprobs=floats(values), finish_reason="length")

    return [change(r) if rng.random() < strength else r for r in rollouts]


def other_kl(rollouts: Sequence[Rollout], strength: float, rng: np.random.Generator) -> list[Rollout]:
    """The recorded exact KL is `strength` times what it should be."""
    return [replace(r, kl_exact=floats(np.array(r.kl_exact) * strength)) for r in rollouts]


def _faults(check: str, *named: tuple[str, str, tuple[float, ...], Apply]) -> tuple[Fault, ...]:
    return tuple(Fault(name, check, describe, strengths, apply) for name, describe, strengths, apply in named)


_SHARES = (0.02, 0.1, 1.0)
_RARE = (0.0005, 0.005, 0.05)
DATA_FAULTS = (
    *_faults(
        "invalid_logprobs",
        (
            "nan",
            "{strength:.2%} of the engine's log-probabilities are NaN",
            _RARE,
            some_tokens("rollout_logprobs", np.nan),
        ),
        ("positive", "{strength:.2%} of the trainer's are +0.5", _RARE, some_tokens("trainer_logprobs", 0.5)),
    ),
    *_faults(
        "zero_filled",
        ("zero_tokens", "{strength:.2%} of the engine's are 0", _RARE, some_tokens("rollout_logprobs", 0.0)),
        ("zero_sequences", "{strength:.0%} of the sequences have only zeros", _SHARES, some_sequences(_empty)),
    ),
    *_faults(
        "shifted_by_one",
        ("one_late", "{strength:.0%} of the sequences log one token late", _SHARES, some_sequences(_late)),
        ("one_early", "{strength:.0%} of the sequences log one token early", _SHARES, some_sequences(_early)),
    ),
    *_faults(
        "temperature_mismatch",
        (
            "trainer_temperature",
            "sampled at {strength:g}, the trainer computes at 1",
            (0.95, 0.9, 0.7, 0.5, 1.2),
            trainer_ignores_temperature,
        ),
        (
            "raw_temperature",
            "sampled at {strength:g}, the engine logs before it is applied",
            (0.95, 0.9, 0.7, 0.5, 1.2),
            engine_logs_before_temperature,
        ),
    ),
    *_faults(
        "support_mismatch",
        (
            "trainer_support",
            "sampled with top_p {strength:g}, the trainer over all tokens",
            (0.99, 0.95, 0.8),
            trainer_ignores_top_p,
        ),
        (
            "raw_support",
            "sampled with top_p {strength:g}, the engine logs before it is applied",
            (0.99, 0.95, 0.8),
            engine_logs_before_top_p,
        ),
    ),
    *_faults(
        "wrong_token",
        (
            "likeliest_token",
            "{strength:.0%} of the tokens log the likeliest token's value",
            (0.03, 0.1, 0.3, 1.0),
            likeliest_recorded,
        ),
    ),
    *_faults(
        "forced_tokens",
        (
            "forced_end",
            "{strength:.0%} of the responses end in a forced token",
            (0.1, 0.3, 1.0),
            forced_end(zero=False),
        ),
        (
            "forced_zero",
            "{strength:.0%} of the responses end in a forced token that is logged as certain",
            (0.1, 0.3, 1.0),
            forced_end(zero=True),
        ),
    ),
    *_faults(
        "impossible_ratios",
        (
            "wrong_at_the_end",
            "{strength:.0%} of the responses log about -12 for their last three tokens",
            (0.02, 0.1, 0.3),
            wrong_at_the_end,
        ),
    ),
    *_faults(
        "exact_kl_contradicted",
        ("other_kl", "the recorded exact KL is {strength:g} times the true one", (0.5, 3.0, 1e-6), other_kl),
    ),
    *_faults(
        "repeated_data",
        ("batch_again", "{strength:.0%} of the last step is the step before", (0.05, 0.25, 1.0), batch_again),
        ("one_seed", "{strength:.0%} of the groups are copies of one response", (0.05, 0.25, 1.0), one_seed),
        ("order_again", "the last {strength:g} steps take the first steps' prompts", (1.0, 2.0, 3.0), order_again),
    ),
    *_faults(
        "noise_floor",
        (
            "coarse_engine",
            "the engine's logits are off by {strength:g} at equal weights",
            (0.2, 0.3, 0.5),
            coarse_engine,
        ),
    ),
    *_faults(
        "few_tokens_dominate",
        ("few_tokens", "5 tokens in 10,000 are off by {strength:g} nats", (4.0, 6.0, 10.0), few_tokens),
    ),
    *_faults(
        "few_prompts_dominate",
        ("few_prompts", "1 % of the prompts drift {strength:g} times as much", (10.0, 30.0, 100.0), few_prompts),
    ),
)
