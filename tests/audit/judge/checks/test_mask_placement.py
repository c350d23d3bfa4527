"""Masks beside what was sampled: by surprise against entropy, by what the engine logged, by the end token."""

import dataclasses

import numpy as np
import pytest

from holdfast.audit.judge.checks.credit.mask_placement import MaskPlacement
from holdfast.audit.measure.edges import NOTHING, OTHERS, OWN, stints_of
from holdfast.audit.measure.view import View
from holdfast.audit.read.columns import chunk_of
from holdfast.types import Rollout


def test_stints_are_cut_at_masks_turns_and_sequences():
    def rollout(mask, turns):
        n = len(mask)
        return Rollout((1,), tuple(range(n)), response_mask=tuple(map(bool, mask)), turn_ids=tuple(turns))

    found = stints_of(
        View(chunk_of([rollout([1, 1, 0, 1, 1], [0, 0, 1, 1, 2]), rollout([1, 1], [0, 0]), rollout([0, 1], [0, 0])]))
    )
    assert found.begins.tolist() == [0, 3, 4, 5, 8]
    assert found.ends.tolist() == [2, 4, 5, 7, 9]
    assert found.before.tolist() == [NOTHING, OTHERS, OWN, NOTHING, OTHERS]
    assert found.after.tolist() == [OTHERS, OWN, NOTHING, NOTHING, NOTHING]
    assert found.outside


@pytest.mark.parametrize("turns", [1, 3])
def test_healthy_masks_are_let_through(look, healthy, turns):
    run = healthy(turns=turns)
    assert look(MaskPlacement, run) == []
    prefilled = [
        dataclasses.replace(r, rollout_logprobs=tuple(v or -1.5 for v in r.rollout_logprobs), entropy=None) for r in run
    ]
    assert look(MaskPlacement, prefilled) == []  # the engine scores tool text too


@pytest.mark.parametrize("tokens", [1, 4, 8])
def test_tool_text_at_the_edge(look, faulty, tokens):
    (got,) = look(MaskPlacement, faulty("tool_text", float(tokens), turns=3))
    assert got.kind == "data"
    assert got.severity == "critical"
    assert got.invalidates
    assert got.headline.startswith("the mask holds text that the policy did not sample")
    assert got.evidence["mean surprise"] > 2 * got.evidence["mean entropy"]


def test_whole_tool_text_without_turns_is_found_by_stretches(look, healthy):
    rng = np.random.default_rng(0)

    def surprised(r):
        trainer = np.array(r.trainer_logprobs)
        trainer[32:64] = -rng.exponential(4.0, len(trainer[32:64]))
        own = (True,) * len(trainer)
        values = tuple(trainer.tolist())
        return dataclasses.replace(r, trainer_logprobs=values, rollout_logprobs=values, response_mask=own)

    run = [dataclasses.replace(surprised(r), turn_ids=None) for r in healthy(turns=1)]
    (got,) = look(MaskPlacement, run)
    assert "of its stretches of 16 tokens" in got.headline
    assert 32 <= got.where.positions[0][1] <= 64


def test_an_entropy_at_another_temperature_is_no_tool_text(look, healthy):
    run = [dataclasses.replace(r, entropy=tuple(h / 2 for h in r.entropy)) for r in healthy(turns=3)]
    assert look(MaskPlacement, run) == []


def test_an_inverted_mask_by_what_the_engine_logged(look, faulty):
    (got,) = look(MaskPlacement, faulty("inverted_mask", 1.0, turns=3))
    assert got.headline.startswith("the mask is inverted")
    assert got.evidence["logged inside"] == 0


def test_an_inverted_mask_by_surprise(look, faulty, healthy):
    prefilled = faulty("tool_text", 8.0, turns=3)
    # All tool tokens are in the mask and scored: turn it round where they stand.
    run = [
        dataclasses.replace(r, response_mask=tuple(not own for own in clean.response_mask))
        for r, clean in zip(prefilled, healthy(turns=3), strict=True)
    ]
    (got,) = look(MaskPlacement, run)
    assert got.headline.startswith("the mask is inverted")
    assert "nats inside" in got.headline


@pytest.mark.parametrize("name", ["late", "early"])
def test_a_mask_off_by_one(look, faulty, name):
    (got,) = look(MaskPlacement, faulty(f"{name}_mask", 1.0, turns=3))
    assert got.headline.startswith(f"the mask stands one token {name} at ")


def test_the_end_token(look, faulty, healthy):
    (got,) = look(MaskPlacement, faulty("no_end", 1.0, turns=1))
    assert got.severity == "warning"
    assert not got.invalidates
    assert got.headline.startswith("the last token of 100% of")
    assert look(MaskPlacement, faulty("no_end", 0.3, turns=1)) == []
    cut = [dataclasses.replace(r, finish_reason="length") for r in faulty("no_end", 1.0, turns=1)]
    assert look(MaskPlacement, cut) == []  # an end marker that the budget put there
    tools = [
        dataclasses.replace(r, response_mask=(*r.response_mask[:-3], False, False, False)) for r in healthy(turns=1)
    ]
    assert look(MaskPlacement, tools) == []  # ends in a tool's answer
