"""prime-rl's stream of traces, with what its annotations say of each."""

import json

import numpy as np
import pyarrow as pa
import pytest

from dumps import load


def episode(name, **work):
    prompt = {"message": {}, "sampled": False, "token_ids": [1, 2], "mask": [False, False], "logprobs": []}
    said = {"parent": 0, "sampled": True, "token_ids": [3, 4], "mask": [True, True], "logprobs": [-0.123456, -0.5]}
    trace = {"id": name, "agent": {"trainable": True}, "nodes": [prompt, said], "rewards": {"r": {"score": 1.0}}}
    return {"id": f"e-{name}", "run": {"type": "train", "work": {"step": 90, **work}}, "traces": [trace]}


def note(name, info=None, **columns):
    branches = [{"index": 0, **columns}] if columns else []
    return {"version": 1, "trace_id": name, "info": info or {}, "branches": branches}


def run(folder, episodes, packed=False, **producers):
    traces = folder / "monitors/file/traces"
    files = {"stream": episodes} | {f"annotations/{name}": lines for name, lines in producers.items()}
    for place, lines in files.items():
        (traces / place).mkdir(parents=True)
        data = "".join(json.dumps(line) + "\n" for line in lines).encode()
        if packed:
            (traces / place / "00000.jsonl.zst").write_bytes(pa.Codec("zstd").compress(data, asbytes=True))
        else:
            (traces / place / "00000.jsonl").write_bytes(data)
    (traces / "stream.index.jsonl").write_text('{"line": 1, "trace_ids": ["a"], "chunk": 0}\n')
    return folder


SHIPPED = {"older": {"step": 5, "subset": "effective"}, "newer": {"effective": True, "ship": {"step": 5, "time": 1.0}}}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("info", SHIPPED.values(), ids=SHIPPED)
def test_what_is_known_of_a_trace(tmp_path, info, packed):
    trainer = [
        note("a", trainer_logprobs=[None, None, -9.0, -9.0]),
        note("a", trainer_logprobs=[None, None, -0.25, -0.75], entropies=[None, None, 1.0, 2.0]),
        note("a", is_masked=[None, None, False, True]),
        note("elsewhere", trainer_logprobs=[-1.0]),
    ]
    orchestrator = [note("a", info, advantages=[None, None, 0.5, 0.5]), note("b", {"step": 5, "subset": "all"})]
    run(tmp_path, [episode("a"), episode("b")], packed, trainer=trainer, orchestrator=orchestrator)
    ((rollout,), reading) = load(tmp_path)
    assert not reading.rejected
    assert (rollout.prompt_ids, rollout.response_ids, rollout.step, rollout.reward) == ((1, 2), (3, 4), 5, 1.0)
    assert rollout.trainer_logprobs == (-0.25, -0.75) and rollout.entropy == (1.0, 2.0)
    assert rollout.trust_mask == (True, False) and rollout.advantages == (0.5, 0.5)
    np.testing.assert_allclose(rollout.rollout_logprobs, [-0.123456, -0.5], rtol=1e-6)
    assert any("1 traces of 00000.jsonl" in said for said in reading.notes)


def test_without_annotations_everything_is_read_and_said(tmp_path):
    rollouts, reading = load(run(tmp_path, [episode("a"), episode("b"), episode("c", type="eval")]))
    assert [r.step for r in rollouts] == [90, 90]
    assert any("no annotations beside it" in said for said in reading.notes)


def test_annotations_that_do_not_fit_are_named(tmp_path):
    bad = [note("a", trainer_logprobs=[-1.0]), {"trace_id": "b", "branches": [{"index": "x"}]}]
    rollouts, reading = load(run(tmp_path, [episode("a"), episode("b")], trainer=bad))
    assert [r.trainer_logprobs for r in rollouts] == [None]
    assert reading.rejected == {"lengths differ": 1, "wrong type": 1}
    assert "branch 0 has 4 tokens, its annotation trainer_logprobs 1" in reading.examples[1].reason
