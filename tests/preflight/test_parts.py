"""Judgements on numbers worked by hand: repetitions, syncs, and which engines are tried in an engine's place."""

import pytest
import torch

from holdfast.audit.measure.estimate import Estimate
from holdfast.preflight.gap import Gap
from holdfast.preflight.numerics import switches
from holdfast.preflight.stability import compare
from holdfast.preflight.sync import judged
from holdfast.rollout.engine import Completion
from holdfast.rollout.engines import EngineSettings


def completion(tokens, logprobs):
    return Completion(tuple(tokens), torch.tensor(logprobs), "stop", 0)


def test_only_tokens_behind_equal_tokens_are_compared():
    ours = [completion([1, 2, 3], [-1.0, -1.0, -1.0]), completion([4, 5], [-2.0, -2.0]), completion([6], [-1.0])]
    theirs = [
        completion([1, 9, 3], [-1.25, -7.0, -7.0]),
        completion([4, 5], [-2.0, -2.5]),
        completion([6, 7], [-1.0] * 2),
    ]
    found = compare("x", ours, theirs)
    assert (found.responses, found.same, found.first) == (3, 1, 1)
    assert found.largest == 0.5 and not found.exact
    assert compare("x", ours[2:], theirs[2:]).first == 1 == compare("x", theirs[2:], ours[2:]).first
    assert compare("x", ours, ours).exact and compare("x", ours, ours).first is None


def gap(size):
    return Gap(Estimate(size, size, size), Estimate(0.0, 0.0, 0.0), 1)


@pytest.mark.parametrize(
    ("before", "new", "old", "verdict"),
    [
        (0.001, 0.001, 0.3, "synced"),
        (0.001, 0.3, 0.001, "nothing happened"),
        (0.001, 0.2, 0.3, "in part"),
        (0.001, 0.3, 0.3, "in part"),
        # a wrong temperature is in all three
        (0.30, 0.32, 0.60, "synced"),
        (0.30, 0.60, 0.30, "nothing happened"),
        # other weights before, and the sync mends them
        (0.80, 0.001, 1.0, "synced"),
    ],
)
def test_a_sync_is_judged_by_the_weights_that_the_engine_then_has(before, new, old, verdict):
    assert judged(gap(before), gap(new), gap(old))[0] == verdict


def tried(**settings):
    found = switches(EngineSettings(**settings))
    return {name: changes if changes is not None else said for name, changes, said in found}


def test_the_embedded_engine_is_tried_with_each_part_in_float32():
    assert tried(precision="bfloat16") == {
        "head precision": {"precision": "bfloat16,head=float32"},
        "KV-cache precision": {"precision": "bfloat16,cache=float32"},
        "engine precision": {"precision": "float32"},
    }
    assert tried(precision="float32,head=bfloat16") == {
        "head precision": {"precision": "float32"},
        "KV-cache precision": "",
        "engine precision": {"precision": "float32"},
    }
    assert tried(precision="bfloat16,head=float32")["KV-cache precision"] == {
        "precision": "bfloat16,head=float32,cache=float32"
    }
    assert tried(precision="int8")["head precision"] == {"precision": "int8,head=float32"}
    assert set(tried(precision="float32").values()) == {""}
    assert "compiled" in tried(precision="bfloat16", compile=True)["head precision"]


def test_vllm_is_tried_with_the_switches_that_it_has():
    assert tried(kind="vllm", precision="bfloat16", options={"seed": 1}) == {
        "head precision": {"options": {"seed": 1, "hf_overrides": {"head_dtype": "float32"}}},
        "KV-cache precision": "vLLM keeps keys and values in the precision of its layers, and has no wider cache",
        "engine precision": {"precision": "float32"},
    }
    narrow = tried(kind="vllm", precision="float32", options={"kv_cache_dtype": "fp8"})
    assert narrow["KV-cache precision"] == {"options": {}} and narrow["head precision"] == ""
