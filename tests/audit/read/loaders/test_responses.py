"""The engine's likeliest tokens in saved answers: read where a model is at hand to make bounds of them."""

import json
import math

import numpy as np
import pytest

from holdfast.audit.read.reading import Reading
from holdfast.audit.read.source import find_files, read_files

# two places, K = 2; the second sampled token, 9, is not among the likeliest and was added
SAMPLED = (5, 9)
TABLES = ({6: -2.0, 5: -0.5}, {9: -3.0, 7: -0.25, 8: -9999.0})
TOP_IDS, TOP_LOGPROBS = [[5, 6], [7, 9]], [[-0.5, -2.0], [-0.25, -3.0]]


def named(table):
    return {f"token_id:{token}": value for token, value in table.items()}


def completion(tables=TABLES, rename=named):
    """A completion by return_tokens_as_token_ids."""
    logprobs = {
        "tokens": [f"token_id:{token}" for token in SAMPLED],
        "token_logprobs": [table[token] for token, table in zip(SAMPLED, TABLES, strict=True)],
        "top_logprobs": tables and [rename(table) for table in tables],
    }
    return {"choices": [{"logprobs": logprobs, "finish_reason": "length", "prompt_token_ids": [1, 2]}]}


def chat():
    content = [
        {
            "token": f"token_id:{token}",
            "logprob": table[token],
            "top_logprobs": [{"token": name, "logprob": value} for name, value in named(table).items()],
        }
        for token, table in zip(SAMPLED, TABLES, strict=True)
    ]
    return {"choices": [{"logprobs": {"content": content}}], "prompt_token_ids": [1, 2]}


def request_output():
    entries = [{str(token): {"logprob": value} for token, value in table.items()} for table in TABLES]
    return {"prompt_token_ids": [1, 2], "outputs": [{"token_ids": list(SAMPLED), "logprobs": entries}]}


def read(tmp_path, *answers, likeliest=True):
    path = tmp_path / "answers.jsonl"
    path.write_text("".join(json.dumps(answer) + "\n" for answer in answers))
    reading = Reading(likeliest=likeliest)
    return [chunk for _, chunk in read_files(find_files(path), reading)], reading


@pytest.mark.parametrize("answer", [completion, chat, request_output])
def test_as_many_tokens_as_every_place_has_likeliest_first(tmp_path, answer):
    (chunk,), _ = read(tmp_path, answer())
    (found,) = chunk.likeliest
    np.testing.assert_array_equal(found.top_ids, TOP_IDS)
    np.testing.assert_array_equal(found.top_logprobs, TOP_LOGPROBS)
    assert chunk.rollout(0).response_ids == SAMPLED


def test_without_a_model_they_are_not_read(tmp_path):
    (chunk,), _ = read(tmp_path, completion(), likeliest=False)
    assert chunk.likeliest == ()


def test_what_can_never_be_sampled_is_minus_infinity(tmp_path):
    (chunk,), _ = read(tmp_path, completion(({5: 0.0, 6: -9999.0}, {9: 0.0, 7: -9999.0})))
    np.testing.assert_array_equal(chunk.likeliest[0].top_logprobs, [[0.0, -math.inf]] * 2)


@pytest.mark.parametrize(
    "answer",
    [
        completion(None),
        completion([]),
        completion([{5: -0.5}, {9: -3.0, 7: -0.25}]),  # of the first place the sampled token alone
        completion(rename=lambda table: {f" {token}": value for token, value in table.items()}),  # texts
    ],
)
def test_logs_without_ids_or_without_others_have_none(tmp_path, answer):
    (chunk,), reading = read(tmp_path, answer)
    assert (chunk.likeliest, len(chunk), sum(reading.rejected.values())) == ((), 1, 0)


def test_a_place_in_the_chunk_for_answers_without(tmp_path):
    (chunk,), _ = read(tmp_path, completion(None), completion())
    assert [found is not None for found in chunk.likeliest] == [False, True]


@pytest.mark.parametrize(
    ("tables", "kind", "says"),
    [
        (TABLES[:1], "lengths differ", "top_logprobs has 1 entries, the response 2"),
        ([{5: 0.5, 6: -2.0}] * 2, "impossible log-probability", "missing or above 0"),
        ([{5: None, 6: -2.0}] * 2, "impossible log-probability", "missing or above 0"),
        ([{5: "x", 6: -2.0}] * 2, "wrong type", "top_logprobs holds"),
    ],
)
def test_a_broken_report_leaves_the_answer_out(tmp_path, tables, kind, says):
    chunks, reading = read(tmp_path, completion(tables))
    assert chunks == [] and reading.rejected == {kind: 1}
    assert says in reading.examples[0].reason
