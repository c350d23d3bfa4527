"""The simulation is what it says: its logs follow from its tables."""

import numpy as np
import pytest
from scipy import stats

from holdfast.audit.read.columns import as_rollouts, chunk_of
from holdfast.audit.simulate import FAULTS, clean_run
from holdfast.audit.simulate.replay import Replay
from holdfast.audit.simulate.run import TOOL_TOKENS, Plan, clean_chunks
from holdfast.audit.simulate.world import CONTEXTS, COPIES, VOCABULARY, World, log_softmax, top_p_set
from holdfast.errors import DataError
from holdfast.types import Rollout

SMALL = {"steps": 3, "prompts": 4, "group_size": 4, "mean_length": 60}


def flat(rollouts, name):
    return np.concatenate([np.asarray(getattr(r, name)) for r in rollouts])


def test_one_seed_one_run():
    assert clean_run(5, **SMALL) == clean_run(5, **SMALL)
    assert clean_run(5, **SMALL) != clean_run(6, **SMALL)


def test_sizes_and_identities():
    run = clean_run(5, **SMALL, age=2)
    assert len(run) == 48
    assert [r.sequence_id for r in run] == list(range(48))
    assert len({r.group_id for r in run}) == 12
    for rollout in run:
        assert len({len(getattr(rollout, n)) for n in ("response_ids", "rollout_logprobs", "entropy", "turn_ids")}) == 1
        same = [r.prompt_ids for r in run if r.group_id == rollout.group_id]
        assert set(same) == {rollout.prompt_ids}
    assert np.mean([len(r.response_ids) for r in run]) == pytest.approx(60, rel=0.25)


def test_ages_never_exceed_the_updates_so_far():
    run = clean_run(5, **SMALL, age=2)
    ages = {r.step: {r.step - 1 - v for v in set(r.weight_versions)} for r in run}
    assert set.union(*({r.step - 1 - v for v in set(r.weight_versions)} for r in run if r.step == 3)) == {0, 1, 2}
    assert ages[1] == {0}


def test_advantages_are_the_groups():
    run = clean_run(5, **SMALL)
    for group in {r.group_id for r in run}:
        rewards = np.array([r.reward for r in run if r.group_id == group])
        expected = (rewards - rewards.mean()) / (rewards.std() + 1e-6)
        assert [r.advantages[0] for r in run if r.group_id == group] == pytest.approx(expected, abs=1e-5)


def test_logs_are_the_tables():
    """Replay walks the tokens again; entropy and KL are summed over the vocabulary by hand."""
    run = clean_run(5, **SMALL, temperature=0.8, top_p=0.9, flips=0.1, age=2)
    replay, engine = Replay.of(run), flat(run, "rollout_logprobs")
    table = replay.world.engine_logprobs[replay.rows]
    assert table[np.arange(len(engine)), replay.ids] == pytest.approx(engine, abs=1e-6)
    kept = np.isfinite(table)
    trainer = log_softmax(np.where(kept, replay.trainer_logits()[replay.tokens], -np.inf))
    assert trainer[np.arange(len(engine)), replay.ids] == pytest.approx(flat(run, "trainer_logprobs"), abs=1e-5)
    p, q = np.exp(table), np.exp(trainer)
    assert (-(q * np.where(kept, trainer, 0)).sum(1)) == pytest.approx(flat(run, "entropy"), abs=1e-5)
    kl = (p * np.where(kept, table, 0)).sum(1) - (p * np.where(kept, trainer, 0)).sum(1)
    assert kl == pytest.approx(flat(run, "kl_exact"), abs=1e-5)


def test_tokens_are_drawn_from_the_engine():
    """χ² test of the sampled frequencies in each context that came up 120 times."""
    world = World(5, versions=1, flips=0.2)
    chunks = list(clean_chunks(Plan(world, steps=1, prompts=250, group_size=8, mean_length=100)))
    rows = Replay.of(list(as_rollouts(chunks[0]))).rows
    ids = chunks[0].tokens["response_ids"]
    p = []
    for row in np.flatnonzero(np.bincount(rows) >= 120):
        seen = np.bincount(ids[rows == row], minlength=VOCABULARY)
        expected = np.exp(world.engine_logprobs[row]) * seen.sum()
        common = expected > 5
        if common.sum() < 2:
            continue
        rest = [seen[~common].sum(), expected[~common].sum()]
        seen, expected = seen[common], expected[common]
        seen[-1] += rest[0]
        expected[-1] += rest[1]
        p.append(stats.chisquare(seen, expected).pvalue)
    assert len(p) >= 5
    assert min(p) > 1e-3 / len(p)


def test_flips_use_the_far_copy_as_often_as_said():
    copies = World(5, flips=0.2).copies(np.arange(20_000), 3)
    assert np.mean(copies == COPIES - 1) == pytest.approx(0.2, abs=0.01)
    assert np.bincount(copies, minlength=COPIES)[:-1] / 20_000 == pytest.approx(0.16, abs=0.01)
    assert not (World(5).copies(np.arange(1000), 3) == COPIES - 1).any()


def test_top_p_keeps_the_likeliest_until_their_mass_is_reached():
    logits = np.log([[0.15, 0.5, 0.3, 0.05]])
    assert top_p_set(logits, 0.79).tolist() == [[False, True, True, False]]
    assert top_p_set(logits, 0.81).tolist() == [[True, True, True, False]]
    assert top_p_set(logits, 0.3).tolist() == [[False, True, False, False]]
    assert top_p_set(logits, 1.0).all()


def test_healthy_noise_is_like_that_of_real_engines():
    """verl calls a mean probability difference below 0.005 normal; healthy KL is 2e-4 (dense) to 2e-3 (experts)."""
    dense, experts = clean_run(5), clean_run(5, flips=0.02)
    p, q = (np.exp(flat(dense, n)) for n in ("rollout_logprobs", "trainer_logprobs"))
    assert 5e-4 < np.abs(p - q).mean() < 5e-3
    assert 5e-5 < flat(dense, "kl_exact").mean() < 1e-3
    assert 5e-4 < flat(experts, "kl_exact").mean() < 4e-3
    assert np.mean(flat(dense, "rollout_logprobs") > -0.05) > 0.3


def test_turns_start_with_tool_output():
    run = clean_run(5, **SMALL, turns=3)
    for rollout in run:
        assert set(rollout.turn_ids) == {0, 1, 2}
        tool = ~np.array(rollout.response_mask)
        assert not tool[np.array(rollout.turn_ids) == 0].any()
        assert (np.array(rollout.rollout_logprobs)[tool] == 0).all()
        assert tool.sum() <= 2 * TOOL_TOKENS
    assert any(not all(r.response_mask) for r in run)


def test_chunks_and_rollouts_agree():
    plan = Plan(World(5, versions=2), steps=2, prompts=2, group_size=2, mean_length=30)
    for chunk in clean_chunks(plan):
        again = chunk_of(list(as_rollouts(chunk)))
        for name, values in chunk.tokens.items():
            np.testing.assert_array_equal(values, again.tokens[name])
        for name, values in chunk.numbers.items():
            np.testing.assert_array_equal(values, again.numbers[name])
        assert len(set(chunk.prompt_hashes.tolist())) == 2


def test_replay_refuses_other_rollouts():
    with pytest.raises(DataError, match=r"simulate\.clean_run"):
        Replay.of([Rollout((1,), (2,))])


@pytest.mark.parametrize("name", list(FAULTS))
@pytest.mark.slow
def test_a_fault_changes_the_run_and_keeps_it_whole(name):
    fault = FAULTS[name]
    run = clean_run(5, **{**SMALL, "prompts": 8, **fault.run})
    broken = fault.apply(run, fault.strengths[0], np.random.default_rng(0))
    kept = 0.9 if "are dropped" in fault.describe else 1.0
    parts = fault.run.get("turns", 1) if "next turn's prompt" in fault.describe else 1  # a sequence for each turn
    assert kept * len(run) <= len(broken) <= parts * len(run)
    assert broken != run
    for rollout in broken:
        mask = rollout.response_mask or (True,) * len(rollout.response_ids)  # without one all are the policy's own
        for values in (rollout.rollout_logprobs, rollout.trainer_logprobs, mask):
            assert len(values) == len(rollout.response_ids)
    assert fault.describe.format(strength=fault.strengths[0])


def test_contexts_are_all_reached():
    replay = Replay.of(clean_run(5))
    assert len(np.unique(replay.rows % CONTEXTS)) > 0.8 * CONTEXTS
