"""Answers inside records of somebody's own: what stands beside is read, and every kind of answer is found."""

import json

import numpy as np
import pytest

from dumps import load
from holdfast.audit.read.reading import Reading
from holdfast.audit.read.source import find_files, read_files

PROMPT, TOKENS, VALUES = [7, 8, 9], [4, 5, 6], [-0.5, -1.5, -0.25]


def chat():
    content = [{"token": f"token_id:{t}", "logprob": p} for t, p in zip(TOKENS, VALUES, strict=True)]
    choice = {"message": {"content": "x"}, "logprobs": {"content": content}, "finish_reason": "length"}
    return {"choices": [choice | {"token_ids": TOKENS}], "prompt_token_ids": PROMPT}


def sglang(**more):
    entries = [[p, t, None] for t, p in zip(TOKENS, VALUES, strict=True)]
    meta = {"output_token_logprobs": entries, "weight_version": "3", "finish_reason": {"type": "length"}}
    return {"text": "x", "output_ids": TOKENS, "meta_info": meta | more}


def response():
    logprobs = [{"token": t, "logprob": p, "top_logprobs": []} for t, p in zip("abc", VALUES, strict=True)]
    content = [{"type": "output_text", "text": "abc", "logprobs": logprobs}]
    return {"object": "response", "output": [{"type": "message", "content": content}], "status": "completed"}


def write(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.mark.parametrize("wrap", [lambda a: {"result": a}, lambda a: {"call": {"answers": [a]}}, lambda a: a])
@pytest.mark.parametrize("answer", [chat(), sglang(), response()], ids=["chat", "sglang", "responses"])
def test_reward_step_and_group_beside_a_wrapped_answer(tmp_path, answer, wrap):
    beside = {"score": 0.5, "global_step": 12, "uid": "17", "data_source": "math", "sampling_params": {"top_p": 0.9}}
    (rollouts, reading) = load(write(tmp_path / "a.jsonl", [wrap(answer) | beside]))
    assert reading.examples == []
    (rollout,) = rollouts
    assert (rollout.reward, rollout.step, rollout.group_id, rollout.environment) == (0.5, 12, 17, "math")
    assert rollout.top_p == pytest.approx(0.9)
    assert rollout.rollout_logprobs == tuple(VALUES)


def test_names_of_ones_own_and_a_guess_of_another_kind(tmp_path):
    line = chat() | {"step": {"a": 1}, "mine": {"points": 3}, "reward": 1.0}
    path = write(tmp_path / "a.jsonl", [line])
    reading = Reading(columns={"reward": "mine.points"})
    ((_, chunk),) = read_files(find_files(path), reading)
    assert chunk.rollout(0).reward == 3 and chunk.rollout(0).step is None
    assert any("step was not read" in note for note in reading.notes)
    reading = Reading(columns={"step": "mine"})
    assert list(read_files(find_files(path), reading)) == []
    assert reading.rejected == {"wrong type": 1}


def test_sglang(tmp_path):
    line = sglang(prompt_tokens=3, input_token_logprobs=[[None, 7, None], [-1.0, 8, None], [-1.0, 9, None]])
    wrong = [sglang() | {"output_ids": ids} for ids in ([4, 5], [4, 5, 7])]
    ((rollout, other), reading) = load(write(tmp_path / "a.jsonl", [line, *wrong, sglang() | {"input_ids": [1]}]))
    assert (rollout.prompt_ids, rollout.response_ids) == ((7, 8, 9), (4, 5, 6))
    assert (rollout.weight_versions, rollout.finish_reason) == ((3, 3, 3), "length")
    assert other.prompt_ids == (1,)
    assert reading.rejected == {"lengths differ": 1, "ids disagree": 1}


def turn(prompt, tokens, **more):
    values = [-0.1 * (i + 1) for i in range(len(tokens))]
    ids = {"prompt_token_ids": prompt, "generation_token_ids": tokens, "generation_log_probs": values}
    return {"type": "message", **ids, **more}


def gym(*output, **more):
    return {"response": {"object": "response", "output": list(output)}, "agent_ref": {"name": "shell"}, **more}


def test_nemo_gym_joins_turns_and_marks_what_the_tool_said(tmp_path):
    tool = {"type": "function_call_output", "output": "ok"}
    line = gym(turn([1, 2], [3]), tool, turn([1, 2, 3, 50, 51], [4, 5]), reward=2.0, _ng_task_index=9)
    ((rollout,), reading) = load(write(tmp_path / "r.jsonl", [line]))
    assert not reading.rejected
    assert (rollout.prompt_ids, rollout.response_ids) == ((1, 2), (3, 50, 51, 4, 5))
    assert rollout.response_mask == (True, False, False, True, True)
    assert rollout.turn_ids == (0, 0, 0, 1, 1)
    np.testing.assert_allclose(rollout.rollout_logprobs, [-0.1, np.nan, np.nan, -0.1, -0.2], rtol=1e-6)
    assert (rollout.reward, rollout.group_id, rollout.environment) == (2.0, 9, "shell")


def test_nemo_gym_a_turn_that_does_not_continue_begins_anew(tmp_path):
    line = gym(turn([1, 2], [3]), turn([1, 9, 3], [4]))
    (rollouts, reading) = load(write(tmp_path / "r.jsonl", [line, gym(turn([1], [2], generation_log_probs=[]))]))
    assert [r.prompt_ids for r in rollouts] == [(1, 2), (1, 9, 3)]
    assert any("does not begin with the turns before" in note for note in reading.notes)
    assert reading.rejected == {"lengths differ": 1}


def test_the_responses_api_says_what_it_lacks(tmp_path):
    silent = {"object": "response", "output": [{"type": "message", "content": [{"type": "output_text", "text": "a"}]}]}
    thinking = response()
    thinking["output"].insert(0, {"type": "reasoning", "summary": []})
    ((rollout,), reading) = load(write(tmp_path / "r.jsonl", [thinking, silent | {"logprobs": None}]))
    assert rollout.token_texts == ("a", "b", "c") and rollout.finish_reason == "stop"
    assert "include" in reading.examples[0].reason
    assert any("tokens of reasoning are not in this log" in note for note in reading.notes)
