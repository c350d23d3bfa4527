"""Streamed answers are one response each, however their chunks lie in a file."""

import json

import pytest

from holdfast.audit.read.reading import Reading
from holdfast.audit.read.source import find_files, read_files


def chunk(text, name="a", index=0, logprob=-0.5, finish=None, **more):
    said = {"content": [{"token": text, "logprob": logprob, "bytes": [], "top_logprobs": []}]} if text else None
    choice = {"index": index, "delta": {"content": text}, "logprobs": said, "finish_reason": finish, **more}
    return {"id": name, "object": "chat.completion.chunk", "choices": [choice]}


def read(path, lines, frame="{}\n"):
    path.write_text("".join(frame.format(json.dumps(line)) for line in lines))
    reading = Reading()
    files = find_files(path, note=reading.note)
    found = [part.rollout(i) for _, part in read_files(files, reading) for i in range(len(part))]
    return found, reading


def test_chunks_of_several_answers_between_each_other(tmp_path):
    lines = [chunk("a1"), chunk("b1", "b", logprob=-2.0), chunk("a2"), chunk("b2", "b", finish="stop"), chunk("a3")]
    found, reading = read(tmp_path / "s.jsonl", lines)
    assert not reading.rejected
    by_text = {r.response_text: r for r in found}
    assert set(by_text) == {"a1a2a3", "b1b2"}
    assert by_text["b1b2"].rollout_logprobs == (-2.0, -0.5)
    assert (by_text["b1b2"].finish_reason, by_text["a1a2a3"].finish_reason) == ("stop", None)


def test_choices_and_usage(tmp_path):
    usage = {"id": "a", "object": "chat.completion.chunk", "choices": [], "usage": {"completion_tokens": 4}}
    lines = [chunk("x"), chunk("y", index=1), chunk("x", finish="stop"), chunk("y", index=1, finish="length"), usage]
    found, _ = read(tmp_path / "s.jsonl", lines)
    assert [(r.response_text, r.finish_reason) for r in found] == [("xx", "stop"), ("yy", "length")]


def test_server_sent_events(tmp_path):
    found, reading = read(tmp_path / "s.jsonl", [chunk("a"), chunk("b", finish="stop")], frame="data: {}\n\n")
    assert [len(r.response_ids) for r in found] == [2]
    with (tmp_path / "s.jsonl").open("a") as file:
        file.write(": keep-alive\n\ndata: [DONE]\n\n")
    reading = Reading()
    again = [part for _, part in read_files(find_files(tmp_path / "s.jsonl", note=reading.note), reading)]
    assert sum(map(len, again)) == 1 and not reading.rejected


def test_completions_with_token_ids(tmp_path):
    def part(text, ids, finish=None):
        said = {"tokens": [text], "token_logprobs": [-1.0], "top_logprobs": [{text: -1.0}]}
        choice = {"index": 0, "text": text, "logprobs": said, "token_ids": ids, "finish_reason": finish}
        return {"id": "c", "object": "text_completion.chunk", "prompt_token_ids": [9, 8], "choices": [choice]}

    ((rollout,), _) = read(tmp_path / "s.jsonl", [part("u", [5]), part("v", [6], "stop")])
    assert (rollout.prompt_ids, rollout.response_ids) == ((9, 8), (5, 6))


def test_a_chunk_without_an_id_is_left_out_and_named(tmp_path):
    _, reading = read(tmp_path / "s.jsonl", [chunk("a", finish="stop"), {**chunk("b"), "id": None}])
    assert reading.rejected == {"streamed chunk without an id": 1}


@pytest.mark.parametrize("index", ["0", None])
def test_a_choice_without_a_number_is_left_out(tmp_path, index):
    _, reading = read(tmp_path / "s.jsonl", [chunk("a", finish="stop"), chunk("b", "b", index=index)])
    assert reading.rejected == {"wrong type": 1}
