"""The browser over all rollouts: in the page where they are few, beside it where they are many, read once."""

import json
import os

import orjson
import pytest

from holdfast.report import browse as module
from holdfast.report.browse import FOLDER, browse, packed
from holdfast.report.run import write_run_report
from holdfast.rollout.store import write_rollouts
from holdfast.types import Rollout


def script(path):
    text = path.read_bytes()
    assert text.startswith(f'holdfastRollouts("{path.stem}",'.encode()) and text.endswith(b");\n")
    return orjson.loads(text.split(b",", 1)[1][: -len(b");\n")])


def embedded(markup, parse):
    (host,) = parse(markup).all("div", "browse")
    return json.loads(host["data-rollouts"])


def test_a_small_log_lies_in_the_page(run_folder, parse):
    folder, rollouts = run_folder(steps=3)
    log = embedded(browse(folder / "rollouts", folder), parse)
    rows = [row for file in log["files"] for row in file["rows"]]
    assert len(rows) == len(rollouts) == 12 and not (folder / FOLDER).exists()
    for (step, prompt, reward, verdict, tokens, worst, part, inside), rollout in zip(rows, rollouts, strict=True):
        file = log["files"][step - 1]
        assert file["prompts"][prompt] == "a5=31 b2=+4 c7=-9 ?h3"
        assert (step, reward, tokens) == (rollout.step, rollout.reward, len(rollout.response_ids))
        assert verdict == ("accepted" if rollout.trust_mask[0] else "rejected")
        gaps = [abs(t - e) for t, e in zip(rollout.trainer_logprobs, rollout.rollout_logprobs, strict=True)]
        assert worst == pytest.approx(max(gaps), abs=1e-4)
        assert "".join(log["parts"][file["parts"][part]][inside]["texts"]) == "".join(rollout.token_texts)


@pytest.mark.slow
def test_a_large_log_becomes_scripts_that_are_written_once(run_folder, monkeypatch):
    monkeypatch.setattr(module, "MOST_EMBEDDED", 100)
    monkeypatch.setattr(module, "_PART_TOKENS", 90)
    folder, rollouts = run_folder(steps=3)
    document = write_run_report(folder).read_text()
    assert f'data-folder="{FOLDER}"' in document and "'strict-dynamic'" in document
    files = script(folder / FOLDER / "index.js")["files"]
    parts = {name: script(folder / FOLDER / f"{name}.js") for file in files for name in file["parts"]}
    assert sum(map(len, parts.values())) == len(rollouts) and len(parts) > 3, "a file of many tokens is cut"
    seen = [parts[file["parts"][row[6]]][row[7]] for file in files for row in file["rows"]]
    assert ["".join(s["texts"]) for s in seen] == ["".join(r.token_texts) for r in rollouts]

    before = {path.name: path.stat().st_mtime_ns for path in (folder / FOLDER).glob("step*.js")}
    (folder / "rollouts" / "step_0001.parquet").unlink()
    write_rollouts(folder / "rollouts" / "step_0003.parquet", rollouts[:1])
    write_run_report(folder)
    after = {path.name: path.stat().st_mtime_ns for path in (folder / FOLDER).glob("step*.js")}
    assert {name: t for name, t in after.items() if "0002" in name} == {n: t for n, t in before.items() if "0002" in n}
    assert not [name for name in after if "0001" in name]
    assert [len(file["rows"]) for file in script(folder / FOLDER / "index.js")["files"]] == [4, 1]


def test_a_page_without_files_beside_it_may_load_none(run_folder):
    folder, _ = run_folder(steps=2)
    assert "strict-dynamic" not in write_run_report(folder).read_text()


def test_a_log_that_shrank_leaves_no_scripts(run_folder, monkeypatch):
    folder, _ = run_folder(steps=2)
    with monkeypatch.context() as patch:
        patch.setattr(module, "MOST_EMBEDDED", 100)
        browse(folder / "rollouts", folder)
    assert (folder / FOLDER).is_dir()
    browse(folder / "rollouts", folder)
    assert not (folder / FOLDER).exists()


def test_hostile_text_stays_text(tmp_path, parse):
    evil = "</script><img src=x onerror=alert(1)>'\"&\u202e\u2028\x07"
    rollout = Rollout(
        prompt_ids=(1,), response_ids=(2, 3), token_texts=(evil, "b\n"), prompt_text=evil, finish_reason=evil,
        environment=evil, mask_reason=evil, trust_mask=(False, True), extra={"answer": evil},
    )  # fmt: skip
    (tmp_path / "rollouts").mkdir()
    write_rollouts(tmp_path / "rollouts" / "step_0001.parquet", [rollout])
    markup = browse(tmp_path / "rollouts", tmp_path)
    assert parse(markup).all("img") == [] and "\u202e" not in markup and "\u2028" not in markup
    (sequence,) = embedded(markup, parse)["parts"]["step_0001-0"]
    shown = evil.replace("\u202e", "\\u202e").replace("\u2028", "\\u2028").replace("\x07", "\\x07")
    assert [sequence[key] for key in ("prompt", "finish", "environment", "answer")] == [shown] * 4
    assert sequence["texts"] == [shown, "b\n"] and shown in sequence["why"]


def test_what_was_not_logged_is_absent():
    bare = packed(Rollout(prompt_ids=(1,), response_ids=(7, 8), response_mask=(True, False)))
    assert bare == {"ids": (7, 8), "mask": "ng", "why": "no trust mask was recorded"}
    proven = Rollout(
        prompt_ids=(1,), response_ids=(7,), rollout_logprobs=(float("-inf"),), kl_lower=(0.1,), tv_lower=(0.1,),
        tv_upper=(0.2,), trust_mask=(True,),
    )  # fmt: skip
    found = packed(proven)
    assert (found["engine"], found["kl"], found["proven"], found["mask"]) == ([None], [0.1], True, "k")


def test_a_file_that_cannot_be_read_is_left_out(run_folder, parse):
    folder, _ = run_folder(steps=2)
    (folder / "rollouts" / "step_0001.parquet").write_bytes(b"PAR1 cut off")
    assert [file["name"] for file in embedded(browse(folder / "rollouts", folder), parse)["files"]] == [
        "step_0002.parquet"
    ]


def test_no_rollouts_are_no_browser(tmp_path):
    assert browse(tmp_path / "rollouts", tmp_path) == ""


def test_a_folder_that_cannot_be_written_is_said(run_folder, monkeypatch):
    folder, _ = run_folder(steps=1)
    monkeypatch.setattr(module, "MOST_EMBEDDED", 1)
    (folder / FOLDER).write_text("a file in the way")
    with pytest.raises(module.DataError, match="the page needs it beside itself"):
        browse(folder / "rollouts", folder)


@pytest.mark.slow
def test_pages_of_equal_runs_are_equal_whenever_they_ran(run_folder, monkeypatch):
    folder, _ = run_folder(steps=2)
    before = write_run_report(folder).read_bytes()
    for path in (folder / "rollouts").glob("*.parquet"):
        os.utime(path, (1, 1))
    assert write_run_report(folder).read_bytes() == before
    monkeypatch.setattr(module, "MOST_EMBEDDED", 100)
    write_run_report(folder)
    index = (folder / FOLDER / "index.js").read_bytes()
    os.utime(folder / "rollouts" / "step_0001.parquet", (2, 2))
    write_run_report(folder)
    assert (folder / FOLDER / "index.js").read_bytes() == index
