"""`holdfast audit`: exit codes, files, options; a page in the default place, JSON on request, no traceback."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from holdfast.audit.simulate import FAULTS, clean_run, demo
from holdfast.cli import dispatch
from holdfast.rollout.models import character_tokenizer, tiny_model
from holdfast.rollout.store import write_rollouts

DRIFTS = {"temperature_mismatch", "support_mismatch", "drift_with_depth", "drift_with_turn", "drift_with_age"}
DRIFTS |= {"drift_with_step", "drift_jump", "outlier_sequences", "drift_level", "drift_by_environment", "noise_floor"}
SMALL = {"steps": 3, "prompts": 6, "group_size": 4, "mean_length": 40}


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    path = tmp_path_factory.mktemp("clean") / "night.parquet"
    write_rollouts(path, clean_run(0, texts=True, **SMALL))
    return path


@pytest.fixture(scope="module")
def faulty(tmp_path_factory):
    path = tmp_path_factory.mktemp("faulty") / "night.parquet"
    fault = FAULTS["nan"]
    write_rollouts(path, fault.apply(clean_run(0, **SMALL), fault.strengths[-1], np.random.default_rng(0)))
    return path


@pytest.mark.slow
def test_a_page_and_json_beside_the_summary(clean, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert dispatch(["audit", str(clean), "--fail-on", "critical"]) == 0
    said = capsys.readouterr().out
    assert "Read: 72 sequences of 3 steps" in " ".join(said.split())
    assert "wrote audit-night/report.html" in said
    page = (tmp_path / "audit-night" / "report.html").read_text(encoding="utf-8")
    document = json.loads((tmp_path / "audit-night" / "report.json").read_text(encoding="utf-8"))
    assert "<h1>Audit of night.parquet</h1>" in page
    assert document["facts"]["sequences"] == 72


@pytest.mark.slow
def test_the_page_shows_texts_that_stay_in_the_file_until_then(clean, tmp_path):
    assert dispatch(["audit", str(clean), "--out", str(tmp_path), "--fail-on", "never"]) == 0
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    texts = {text for r in clean_run(0, texts=True, **SMALL) for text in r.token_texts}
    assert sum(f">{text}</span>" in page for text in texts) > 10
    assert ' class="id"' not in page


def test_quiet_leaves_the_exit_code_and_the_files(faulty, tmp_path, capsys):
    assert dispatch(["audit", str(faulty), "--quiet", "--out", str(tmp_path / "report")]) == 1
    assert capsys.readouterr() == ("", "")
    assert (tmp_path / "report" / "report.html").is_file()
    assert dispatch(["audit", str(faulty), "-q", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["findings"]


@pytest.mark.parametrize(("limit", "code"), [("critical", 1), ("info", 1), ("never", 0)])
def test_exit_codes_follow_the_severity(faulty, tmp_path, limit, code, capsys):
    assert dispatch(["audit", str(faulty), "--json", "--fail-on", limit]) == code
    found = json.loads(capsys.readouterr().out)
    assert found["findings"][0]["name"] == "invalid_logprobs"
    assert list(tmp_path.iterdir()) == []


def test_unusable_input_is_code_2(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("hello")
    for path in (tmp_path / "none", tmp_path / "notes.txt"):
        assert dispatch(["audit", str(path)]) == 2
    assert dispatch(["audit"]) == 2
    said = capsys.readouterr().err
    assert "does not exist" in said and "known format" in said and "--demo" in said
    assert "Traceback" not in said


def test_formats(capsys):
    assert dispatch(["audit", "--formats"]) == 0
    assert "NeMo-RL" in capsys.readouterr().out


def test_a_tokenizer_folder_without_one(clean, tmp_path, capsys):
    bare = tmp_path / "bare.parquet"
    write_rollouts(bare, [dataclasses.replace(r, token_texts=None) for r in clean_run(0, **SMALL)])
    assert dispatch(["audit", str(bare), "--out", str(tmp_path / "o"), "--tokenizer", str(tmp_path)]) == 2
    assert "no tokenizer there" in capsys.readouterr().err


def test_a_dump_of_texts_with_a_tokenizer_and_a_model(tmp_path, capsys):
    """verl's dump: refused without, read with a tokenizer, scored with a model, and never judged for its drift."""
    tokenizer = character_tokenizer("abcdefgh =+?")
    model = tmp_path / "model"
    tiny_model(tokenizer, hidden=16, layers=1, heads=2).save_pretrained(model)
    tokenizer.save_pretrained(model)
    dump = tmp_path / "1.jsonl"
    rows = [{"input": "a+b=?", "output": "abc" * 9, "score": float(i % 2), "step": 1 + i // 8} for i in range(64)]
    dump.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert dispatch(["audit", str(dump)]) == 2
    assert "--tokenizer DIR" in " ".join(capsys.readouterr().err.split())
    assert dispatch(["audit", str(dump), "--json", "--tokenizer", str(model), "--fail-on", "critical"]) == 3
    read = json.loads(capsys.readouterr().out)
    assert read["facts"]["sequences"] == 64
    assert "trainer_logprobs" not in read["facts"]["columns"]
    assert read["course"]["reward"]["values"] == [0.5] * 8
    scored = ["--model", str(model)]
    assert dispatch(["audit", str(dump), "--json", "--tokenizer", str(model), *scored, "--fail-on", "critical"]) == 3
    document = json.loads(capsys.readouterr().out)
    assert "trainer_logprobs" in document["facts"]["columns"]
    assert any("token ids were made by the tokenizer from the texts" in note for note in document["notes"])
    assert any("no log-probabilities of the engine" in why for why in document["unjudged"])


@pytest.mark.slow
def test_workers_have_the_tokenizer(clean, tmp_path, capsys):
    tokenizer = character_tokenizer("".join(chr(48 + i) for i in range(70)))
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("a", "b"):
        write_rollouts(folder / f"{name}.parquet", clean_run(ord(name), **SMALL))
    said = []
    for workers in ("1", "2"):
        options = ["--tokenizer", str(tmp_path / "tokenizer"), "--workers", workers, "--fail-on", "never"]
        assert dispatch(["audit", str(folder), "--json", *options]) == 0
        document = json.loads(capsys.readouterr().out)
        said.append([f["headline"] for f in document["findings"] if f["name"] == "retokenised"])
    assert said[0] == said[1] != []


def test_numbers_by_step_in_the_folder_are_judged_with_the_tokens(clean, tmp_path, capsys):
    run = tmp_path / "run"
    (run / "rollouts").mkdir(parents=True)
    shutil.copy(clean, run / "rollouts")
    rows = [
        {"step": s, "reward_mean": s / 40, "grad_norm": 1.0, "learning_rate": 0.0, "seconds": s} for s in range(1, 21)
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (run / "summary.json").write_text(json.dumps({"objective": "ppo", "seconds": 999, "learning_rate": 0.5}))
    (run / "ledger.jsonl").write_text("".join(json.dumps({"step": s, "seconds": -1.0}) + "\n" for s in range(9)))
    assert dispatch(["audit", str(run), "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    (found,) = (f for f in document["findings"] if f["severity"] != "info")
    assert found["name"] == "learning_rate"
    assert document["facts"]["sequences"] == 72
    assert len(document["course"]["reward"]["values"]) == 20  # the tokens are of three steps
    assert [path.rpartition("/")[2] for path in document["sources"]] == ["night.parquet", "metrics.jsonl"]
    assert "numbers by step are judged with the tokens: metrics.jsonl" in document["notes"]


def test_numbers_of_two_runs_beside_tokens_are_left_out(clean, tmp_path, capsys):
    shutil.copy(clean, tmp_path / "night.parquet")
    for name, reward in (("a", 0.1), ("b", 0.9)):
        rows = [{"step": s, "reward": reward, "learning_rate": 0.0, "frac_reward_zero_std": 0.0} for s in range(20)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert dispatch(["audit", str(tmp_path), "--json"]) == 0
    notes = json.loads(capsys.readouterr().out)["notes"]
    assert any("numbers by step beside the tokens were left out" in note and "2 runs" in note for note in notes)


def test_dumps_of_texts_beside_tokens_are_no_numbers(clean, tmp_path, capsys):
    shutil.copy(clean, tmp_path / "night.parquet")
    row = {"input": "q", "output": "a", "score": 0.0, "step": 1, "reward": 0.5}
    (tmp_path / "1.jsonl").write_text((json.dumps(row) + "\n") * 9)
    assert dispatch(["audit", str(tmp_path), "--json"]) == 0
    assert [path.rpartition("/")[2] for path in json.loads(capsys.readouterr().out)["sources"]] == ["night.parquet"]


def test_a_log_that_cannot_be_judged_ends_with_3(tmp_path, capsys):
    bare = tmp_path / "bare.parquet"
    write_rollouts(bare, [dataclasses.replace(r, trainer_logprobs=None, kl_exact=None) for r in clean_run(0, **SMALL)])
    assert dispatch(["audit", str(bare), "--json"]) == 3
    document = json.loads(capsys.readouterr().out)
    assert document["verdict"]["tone"] == "unjudged"
    assert len(document["unjudged"]) == 1
    assert dispatch(["audit", str(bare), "--json", "--allow-unjudged"]) == 0
    assert dispatch(["audit", str(bare), "--json", "--fail-on", "never"]) == 0


@pytest.mark.slow
def test_the_demo_links_a_report_per_fault(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "FAULTS", {name: FAULTS[name] for name in ("nan", "few_tokens")})
    assert dispatch(["audit", "--demo", "--out", str(tmp_path)]) == 0
    index = (tmp_path / "index.html").read_text(encoding="utf-8")
    for name in ("healthy", "nan", "few_tokens"):
        assert f'href="{name}/report.html"' in index
        assert (tmp_path / name / "report.html").is_file()
    assert "In 3 of them" in index
    said = capsys.readouterr().out
    assert "1 of 3: healthy: clean" in said and "3 of 3: few_tokens" in said


@pytest.mark.slow
def test_a_demo_in_which_something_is_missed_says_so(tmp_path, monkeypatch, capsys):
    deaf = dataclasses.replace(FAULTS["nan"], check="drift_level")
    monkeypatch.setattr(demo, "FAULTS", {"nan": deaf})
    assert dispatch(["audit", "--demo", "--out", str(tmp_path)]) == 1
    assert "not as expected: nan" in capsys.readouterr().out


@pytest.mark.parametrize("case", list(demo.cases()), ids=lambda case: case.name)
def test_the_demo_finds_every_fault(case):
    rollouts = case.make()
    audit = demo.audit_rollouts(rollouts, "made")
    assert demo._entry(case, audit, "").as_expected
    told = {f.name for f in (*audit.findings, *audit.withheld)}
    if case.check in DRIFTS and not case.name.startswith("raw"):  # real drift, with the exact KL that it has
        assert "exact_kl_contradicted" not in told


def _numbers(path, reward, **more):
    rows = [
        {"step": s, "data": {"critic/score/mean": r, "actor/entropy": 0.4, **{k: v[s] for k, v in more.items()}}}
        for s, r in enumerate(reward)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_log_of_numbers_is_judged_and_says_what_to_log(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rising = [0.2 + 0.01 * s for s in range(40)]
    sinking = [0.8 - 0.015 * s for s in range(40)]
    assert dispatch(["audit", str(_numbers(tmp_path / "good.jsonl", rising))]) == 3
    said = capsys.readouterr().out
    assert "Not judged: the log has no number that tells how far engine and trainer are apart" in " ".join(said.split())
    assert "actor_rollout_ref.rollout.calculate_log_probs=true" in said
    assert dispatch(["audit", str(_numbers(tmp_path / "bad.jsonl", sinking))]) == 1
    agreed = _numbers(tmp_path / "judged.jsonl", rising, **{"training/rollout_probs_diff_mean": [0.002] * 40})
    capsys.readouterr()
    assert dispatch(["audit", str(agreed), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["framework"] == "verl"
    assert document["course"]["reward"]["named"] == "critic/score/mean"
    assert document["facts"]["steps"] == list(range(40))


def test_the_page_of_a_log_of_numbers(tmp_path):
    path = _numbers(tmp_path / "log.jsonl", [0.8 - 0.015 * s for s in range(40)])
    assert dispatch(["audit", str(path), "--out", str(tmp_path / "out")]) == 1
    page = (tmp_path / "out" / "report.html").read_text()
    assert "The course of the run" in page
    assert "To know more, log this" in page
    assert "Drift could not be measured" not in page


@pytest.mark.slow
def test_two_workers_say_what_one_says(tmp_path, capsys):
    folder = tmp_path / "run"
    folder.mkdir()
    for step in range(2):
        write_rollouts(folder / f"step_{step}.parquet", clean_run(step, **SMALL))
    said = []
    for workers in ("1", "2"):
        code = dispatch(["audit", str(folder), "--json", "--fail-on", "never", "--workers", workers])
        said.append((code, capsys.readouterr().out))
    assert said[0] == said[1]
    assert said[0][0] == 0


def test_workers_are_a_number_and_score_nothing(clean, capsys):
    with pytest.raises(SystemExit) as stopped:
        dispatch(["audit", str(clean), "--workers", "0"])
    assert stopped.value.code == 2
    assert "'0' is no number of workers" in capsys.readouterr().err
    assert dispatch(["audit", str(clean), "--workers", "2", "--model", str(clean)]) == 2
    assert "leave out --workers and --ray, or --model" in capsys.readouterr().err
