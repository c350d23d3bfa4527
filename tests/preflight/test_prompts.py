"""Prompts from files, as both sides read them, and what is wrong with a file."""

import json

import pytest

from holdfast.errors import ConfigError, DataError
from holdfast.preflight.prompts import BUILT_IN, FEWEST, encode_prompts, first_difference, read_prompts

LINES = [f"question number {i}" for i in range(FEWEST)]


def test_texts_objects_and_chats_are_prompts(tmp_path):
    plain, rows = tmp_path / "p.txt", tmp_path / "p.jsonl"
    plain.write_text("\n".join([*LINES, "", LINES[0]]), encoding="utf-8")
    assert read_prompts(plain) == LINES
    chat = [{"role": "user", "content": "hi"}]
    objects = [LINES[0], {"question": LINES[1]}, {"messages": chat}, {"prompt": chat[:1] * 2}, *LINES[2:6]]
    rows.write_text("\n".join(json.dumps(row) for row in objects), encoding="utf-8")
    assert read_prompts(rows) == [LINES[0], LINES[1], chat, chat * 2, *LINES[2:6]]
    assert read_prompts(None) == list(BUILT_IN) and len(set(BUILT_IN)) == len(BUILT_IN) >= 32


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("one.txt", "a single prompt", "holds 1 prompt: intervals are over prompts and need at least 8"),
        ("same.txt", "\n".join(["again"] * 20), "holds 1 prompt"),
        ("bad.jsonl", '{"prompt": "a"}\n{"prompt"', "line 2 is not JSON"),
        ("odd.jsonl", '{"answer": "a"}', "line 1 holds no prompt"),
    ],
)
def test_a_file_without_enough_prompts_is_refused(tmp_path, name, text, message):
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        read_prompts(tmp_path / name)


def test_files_that_cannot_be_read_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="No such file"):
        read_prompts(tmp_path / "absent")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not UTF-8"):
        read_prompts(tmp_path / "bytes")


def test_both_sides_read_the_same_tokens_unless_the_engine_has_a_template(tokenizer):
    plain = encode_prompts(LINES, tokenizer, chat=False, most=99)
    assert all(prompt.same for prompt in plain)
    assert plain[0].trainer_ids == tuple(tokenizer.encode(LINES[0]))
    other = encode_prompts(LINES, tokenizer, chat=False, most=99, engine_template="A: {{ messages[0]['content'] }}")
    assert other[0].trainer_ids == plain[0].trainer_ids
    assert tokenizer.decode(other[0].engine_ids) == f"A: {LINES[0]}"
    assert first_difference(other[0]) == 0
    assert first_difference(plain[0]) == len(plain[0].engine_ids)


def test_a_chat_is_made_with_the_tokenizer_s_template(tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "chat_template", "B: {{ messages[0]['content'] }} A:", raising=False)
    found = encode_prompts(LINES, tokenizer, chat=True, most=99)
    assert tokenizer.decode(found[0].trainer_ids) == f"B: {LINES[0]} A:"
    assert found[0].chat == ({"role": "user", "content": LINES[0]},) and found[0].text == LINES[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chat": True}, "no chat template"),
        ({"chat": False, "engine_template": "{{ broken"}, "the chat template fails"),
    ],
)
def test_templates_that_fail_are_said(tokenizer, options, message):
    with pytest.raises(ConfigError, match=message):
        encode_prompts(LINES, tokenizer, most=99, **options)


def test_prompts_that_are_too_long_are_left_out_or_refused(tokenizer):
    long = [*LINES, "x" * 80]
    assert len(encode_prompts(long, tokenizer, chat=False, most=50)) == FEWEST
    with pytest.raises(DataError, match="0 of 9 prompts fit into 5 tokens"):
        encode_prompts(long, tokenizer, chat=False, most=5)
    with pytest.raises(ConfigError, match="has no tokens"):
        encode_prompts([*LINES, ""], type("Empty", (), {"encode": lambda self, text: [], "eos_token_id": 2})(),
                       chat=False, most=5)  # fmt: skip
