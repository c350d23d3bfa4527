import codecs
import json
import sys

import pytest

from holdfast.errors import ConfigError, DataError
from holdfast.tasks import get_task
from holdfast.tasks.base import in_split


def write(path, records):
    path.write_text("\n".join(json.dumps(record) for record in records) + "\n", encoding="utf-8")
    return str(path)


@pytest.fixture
def questions(tmp_path):
    return write(tmp_path / "q.jsonl", [{"prompt": f"{i}+1?", "answer": i + 1} for i in range(200)])


def test_problems_are_drawn_without_repetition_until_the_file_is_used_up(questions):
    task = get_task("jsonl", path=questions)
    train, held_out = ({p.prompt for p in task.problems(0, 400, split)} for split in ("train", "eval"))
    assert not train & held_out
    assert len(train) + len(held_out) == 200
    first = [p.prompt for p in task.problems(0, len(train), "train")]
    assert len(set(first)) == len(train)
    assert first == [p.prompt for p in task.problems(0, len(train), "train")]
    assert first != [p.prompt for p in task.problems(1, len(train), "train")]


def test_answers_must_match_exactly(questions):
    task = get_task("jsonl", path=questions)
    problem = task.problems(0, 1, "train")[0]
    assert task.reward(problem, f" {problem.answer}\n") == 1.0
    assert task.reward(problem, f"It is {problem.answer}") == 0.0
    marked = get_task("jsonl", path=questions, marker="####")
    assert marked.reward(problem, f"so #### 7 no: #### {problem.answer}") == 1.0
    assert marked.reward(problem, problem.answer) == 0.0


def test_a_held_out_file_and_other_names(tmp_path):
    train = write(tmp_path / "a.jsonl", [{"q": "é?", "a": "x", "steps": "y x"}])
    held_out = write(tmp_path / "b.jsonl", [{"q": "z?", "a": "w"}])
    names = {"prompt_key": "q", "answer_key": "a", "solution_key": "steps"}
    task = get_task("jsonl", path=train, eval_path=held_out, **names)
    assert [p.solution for p in task.problems(0, 2, "train")] == ["y x", "y x"]
    assert [p.prompt for p in task.problems(0, 1, "eval")] == ["z?"]
    assert task.alphabet == " ?wxyzé"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no problems"),
        ('{"prompt": "a", "answer": "b"}\n{"prompt": "a"', "line 2: not JSON"),
        ('{"prompt": "a", "reply": "b"}', "line 1: no field 'answer' .found: prompt, reply.; set task.prompt_key"),
        ("[1]", "line 1: no field 'prompt' .found: list."),
        ('{"prompt": "a", "answer": null}', "line 1: field 'answer' is NoneType: text or a number is needed"),
        ('{"prompt": "a", "answer": "b"}\n  \n[1]', "line 3: no field 'prompt'"),
        ("[" * 200_000, "line 1: (cannot be read|not JSON)"),
        ("9" * 10_000, "line 1: cannot be read"),
    ],
)
def test_a_bad_file_names_the_line(tmp_path, text, message):
    path = tmp_path / "bad.jsonl"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        get_task("jsonl", path=str(path))


def test_other_encodings_name_the_line_and_a_byte_order_mark_is_none_of_the_text(tmp_path):
    row = '{"prompt": "é?", "answer": "x\u2028y"}\n'
    path = tmp_path / "table.jsonl"
    path.write_bytes(codecs.BOM_UTF8 + row.encode() * 2)
    assert [(p.prompt, p.answer) for p in get_task("jsonl", path=str(path)).pool("train")] in (
        [("é?", "x\u2028y")] * 2,
        [],
    )
    assert get_task("jsonl", path=str(path)).alphabet == "?xyé\u2028"
    path.write_bytes(b'{"prompt": "a", "answer": "b"}\n' + row.encode("latin-1", "replace"))
    with pytest.raises(DataError, match=r"line 2: not UTF-8 \(byte 13\): save the file as UTF-8"):
        get_task("jsonl", path=str(path))
    with pytest.raises(ConfigError, match=r"task.path = .* is a folder"):
        get_task("jsonl", path=str(tmp_path))


def test_what_cannot_be_done_says_why(tmp_path, questions):
    missing = str(tmp_path / "missing.jsonl")
    for key, paths in {
        "path": {"path": missing},
        "eval_path": {"path": questions, "eval_path": missing},
    }.items():
        with pytest.raises(ConfigError, match=rf"task\.{key} = .*there is no such file"):
            get_task("jsonl", **paths)
    task = get_task("jsonl", path=questions)
    with pytest.raises(ConfigError, match=r"no sloppy teacher: set warm_start.sloppy_steps = 0"):
        task.sloppy(task.problems(0, 1, "train")[0], 0, 0.1)


def test_numbers_and_marked_reference_answers(tmp_path):
    path = write(tmp_path / "q.jsonl", [{"prompt": "a", "answer": "first 3 + 4 = 7\n#### 1,007"}])
    task = get_task(
        "jsonl", path=path, verifier="numeric", marker="####", answer_marker="####", template="Q: {prompt}!"
    )
    (problem,) = task.problems(0, 1, "train")
    assert problem.prompt == "Q: a!" and problem.answer == "1,007"
    assert task.reward(problem, "so #### 1007.0") == 1.0 and task.reward(problem, "1007") == 0.0
    assert "#" in get_task("jsonl", path=path, answer_key="prompt", marker="####").alphabet
    with pytest.raises(DataError, match=r"line 1: no '@@' in 'answer'; set task.answer_marker"):
        get_task("jsonl", path=path, answer_marker="@@")


def test_a_table_too_small_to_hold_out_a_tenth(tmp_path):
    one = get_task("jsonl", path=write(tmp_path / "one.jsonl", [{"prompt": "1+1?", "answer": 2}]))
    assert one.problems(0, 1, "train") == one.problems(0, 1, "eval")
    prompts = [prompt for prompt in map(str, range(30)) if in_split(prompt, "train")][:9]
    few = get_task("jsonl", path=write(tmp_path / "few.jsonl", [{"prompt": p, "answer": 0} for p in prompts]))
    assert len(few.problems(0, 9, "train")) == 9
    with pytest.raises(DataError, match=r"no prompts for the eval split \(9 in all\).*task\.eval_path"):
        few.problems(0, 1, "eval")


@pytest.mark.parametrize(
    ("verifier", "judge"), [("exact", None), ("numeric", None), ("math-verify", "math-verify"), ("a.b:c", "a.b:c")]
)
def test_who_judges(questions, verifier, judge):
    assert get_task("jsonl", path=questions, verifier=verifier).judge == judge


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"verifier": "numerc"}, r"task.verifier = 'numerc': did you mean numeric"),
        ({"template": "Q"}, r"task.template = 'Q': write \{prompt\} where the prompt belongs"),
    ],
)
def test_unusable_settings_are_refused(questions, options, words):
    with pytest.raises(ConfigError, match=words):
        get_task("jsonl", path=questions, **options)


def test_parquet(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "q.parquet"
    pq.write_table(pa.table({"question": ["1+1?", "2+2?"], "answer": [2, 4], "more": [[1], [2]]}), path)
    task = get_task("parquet", path=str(path), prompt_key="question")
    found = {p.prompt: p.answer for split in ("train", "eval") for p in task._pools[split]}
    assert found == {"1+1?": "2", "2+2?": "4"} and task.name == "parquet"
    with pytest.raises(DataError, match=r"row 1: no field 'prompt' \(found: question, answer, more\)"):
        get_task("parquet", path=str(path))
    with pytest.raises(DataError, match=r"row 1: field 'more' is list: text or a number is needed"):
        get_task("parquet", path=str(path), prompt_key="question", answer_key="more")
    pq.write_table(pa.table({"prompt": ["a", None], "answer": [1, 2]}), tmp_path / "holes.parquet")
    with pytest.raises(DataError, match=r"row 2: field 'prompt' is NoneType"):
        get_task("parquet", path=str(tmp_path / "holes.parquet"))
    (tmp_path / "no.parquet").write_text("{}")
    with pytest.raises(DataError, match="is not a parquet file"):
        get_task("parquet", path=str(tmp_path / "no.parquet"))


def test_a_hugging_face_dataset_from_a_folder(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = {"question": [f"{i}?" for i in range(20)], "answer": [f"because\n#### {i}" for i in range(20)]}
    table = datasets.Dataset.from_dict(rows)
    datasets.DatasetDict({"train": table.select(range(15)), "test": table.select(range(15, 20))}).save_to_disk(tmp_path)
    options = {"path": str(tmp_path), "prompt_key": "question", "answer_marker": "####", "eval_split": "test"}
    task = get_task("huggingface", **options)
    assert {p.prompt for p in task.problems(0, 5, "eval")} == {f"{i}?" for i in range(15, 20)}
    assert {p.answer for p in task.problems(0, 15, "train")} == {str(i) for i in range(15)}
    with pytest.raises(DataError, match=r"split train, row 1: no field 'prompt' \(found: question, answer\)"):
        get_task("huggingface", path=str(tmp_path))
    with pytest.raises(ConfigError, match=r"split 'dev' cannot be loaded"):
        get_task("huggingface", **(options | {"eval_split": "dev"}))
    with pytest.raises(ConfigError, match=r"set task\.eval_split instead"):
        get_task("huggingface", **options, eval_path="x")


def test_a_missing_package_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError, match="needs the package datasets"):
        get_task("huggingface", path=str(tmp_path))
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(ConfigError, match="needs the package reasoning-gym"):
        get_task("reasoning_gym", dataset="chain_sum")


def test_reasoning_gym():
    pytest.importorskip("reasoning_gym")
    task = get_task("reasoning_gym", dataset="chain_sum", options='{"min_terms": 2, "max_terms": 2}', marker="#")
    problems = task.problems(0, 12, "train")
    assert problems == task.problems(0, 12, "train") and len(problems) == 12
    assert not {p.prompt for p in problems} & {p.prompt for p in task.problems(0, 12, "eval")}
    for problem in problems:
        assert task.reward(problem, f"thinking #{problem.answer}") == task.reward(problem, problem.solution) == 1.0
        assert task.reward(problem, f"#{int(problem.answer) + 1}") < 0.5
    with pytest.raises(ConfigError, match=r"reasoning-gym refuses task.dataset = 'chain_some'"):
        get_task("reasoning_gym", dataset="chain_some")


def test_a_reference_answer_that_no_number_can_equal_is_refused(tmp_path):
    rows = [{"prompt": "a", "answer": "7 apples"}, {"prompt": "b", "answer": "seven"}]
    path = write(tmp_path / "q.jsonl", rows)
    with pytest.raises(DataError, match=r"line 2: the answer 'seven' holds no number .* task\.verifier = \"exact\""):
        get_task("jsonl", path=path, verifier="numeric")
    assert get_task("jsonl", path=path)


def test_csv_and_tabs(tmp_path):
    (tmp_path / "a.csv").write_bytes(codecs.BOM_UTF8 + b'prompt,answer,level\n"1,5+1",2.5,007\n"two\nlines",x,\n')
    problems = get_task("csv", path=str(tmp_path / "a.csv"), eval_path=str(tmp_path / "a.csv")).pool("train")
    assert [(p.prompt, p.answer, p.row) for p in problems] == [
        ("1,5+1", "2.5", {"level": "007"}),
        ("two\nlines", "x", {"level": ""}),
    ]
    (tmp_path / "a.tsv").write_text("prompt\tanswer\na,b\tc\n")
    assert get_task("csv", path=str(tmp_path / "a.tsv")).pool("train")[0].prompt == "a,b"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"prompt,answer\na,b,c\n", "line 2: more fields than the first line names: quote"),
        (b"prompt,answer\na\n", "line 2: field 'answer' is NoneType"),
        (b"question,answer\na,b\n", "no field 'prompt' .found: question, answer."),
        (b"prompt,answer\n\xff,b\n", "not UTF-8 .byte 15."),
        (b"prompt,answer\n" + b"a" * 200_000 + b",b\n", "line 1: field larger than field limit"),
        (b"", "holds no problems"),
    ],
)
def test_a_bad_csv_is_a_sentence(tmp_path, text, message):
    (tmp_path / "a.csv").write_bytes(text)
    with pytest.raises(DataError, match=message):
        get_task("csv", path=str(tmp_path / "a.csv"))


def test_prompts_may_be_chat_messages(tmp_path):
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    rows = [{"prompt": talk, "answer": "d", "id": 7}, {"prompt": "plain", "answer": "e"}]
    path = write(tmp_path / "a.jsonl", rows)
    first, second = get_task("jsonl", path=path, eval_path=path, template="<{prompt}>").pool("train")
    assert first.prompt == "a\n\nb\n\n<c>" and first.row == {"id": 7}
    assert first.messages == (("user", "a"), ("assistant", "b"), ("user", "<c>"))
    assert (second.prompt, second.messages) == ("<plain>", None)


def test_a_system_prompt_goes_in_front_where_a_row_has_none_of_its_own(tmp_path):
    own = [{"role": "system", "content": "mine"}, {"role": "user", "content": "a"}]
    path = write(tmp_path / "a.jsonl", [{"prompt": own, "answer": "d"}, {"prompt": "b", "answer": "e"}])
    first, second = get_task("jsonl", path=path, eval_path=path, system="yours").pool("train")
    assert (first.prompt, first.messages) == ("a", (("system", "mine"), ("user", "a")))
    assert (second.prompt, second.messages) == ("b", (("system", "yours"), ("user", "b")))


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([], "the prompt is an empty list: chat messages look like"),
        (["a"], "'a' is no chat message"),
        ([{"role": "user", "content": [{"type": "text"}]}], "is no chat message"),
        (
            [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
            "ends with a message of the assist",
        ),
    ],
)
def test_bad_chat_messages_are_a_sentence(tmp_path, prompt, message):
    with pytest.raises(DataError, match=message):
        get_task("jsonl", path=write(tmp_path / "a.jsonl", [{"prompt": prompt, "answer": "d"}]))
