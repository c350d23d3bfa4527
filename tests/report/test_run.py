import json
import random
import re
import shutil

import pytest

from holdfast.errors import DataError
from holdfast.report.run import duration, write_run_report


def rewrite(folder, change):
    """Apply a change to every row of metrics.jsonl."""
    path = folder / "metrics.jsonl"
    rows = [change(json.loads(line)) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def text_of(folder, parse):
    return parse(write_run_report(folder).read_text(encoding="utf-8")).text


@pytest.mark.slow
def test_the_page_of_a_whole_run(run_folder, parse):
    folder, rollouts = run_folder(steps=40)
    path = write_run_report(folder)
    document = path.read_text(encoding="utf-8")
    seen = parse(document)
    assert path == folder / "report.html"
    assert len(document.encode()) < 1_000_000
    headings = ["Learning", "Drift", "Trust region", "Rollouts", "Error bounds", "All curves", "Time", "Configuration"]
    assert re.findall("<h2>(.*?)</h2>", document) == headings
    assert len(seen.all("figure", "plot")) - len(seen.all("figure", "extra")) == 18
    assert len(seen.all("div", "viewer")) == 3
    assert "was not measured" not in seen.text
    assert "was not recorded" not in seen.text
    assert f"Of {len(rollouts)} logged sequences" in seen.text


@pytest.mark.slow
def test_the_headline_says_what_was_learned_drifted_masked_and_bounded(run_folder, parse):
    folder, _ = run_folder(steps=20)
    worst = {}

    def change(row):
        row |= {"kl_exact_mean": 0.002, "kl_exact_max": 0.1 + row["step"] / 100, "masked_sequences": 0.25}
        row["masked_by_length"] = [0.1, 0.2, 0.3, 0.4]
        row["bounds"] = {"mixed": 8.2, "martingale": 0.335, "unified": 0.335, "unified_name": "martingale"}
        return worst | row

    rewrite(folder, change)
    text = text_of(folder, parse).replace("\xa0", " ")
    # the first k of 64 problems are right at either end: 22 at step 1, 49 at step 20; 27 of 64 differ by 1
    assert "Mean reward on held-out problems rose from 0.344 to 0.766 in 20 steps (+0.42, standard error 0.062)" in text
    assert "34 % of the sampled answers were right at first, 77 % at the end." in text
    assert "0.002 nats of exact KL per token on average and by 0.3 at the worst token (step 20)." in text
    assert "The trust region masked 25 % of the sequences" in text
    assert "Acceptance falls with length: 90 % of the shortest quarter, 60 % of the longest." in text
    assert "Estimated on its last rollouts, the tightest bound on what the drift can cost is 0.34 (martingale)." in text
    assert "martingale tightest, below 1 0.335" in text
    assert "mixed vacuous 8.2" in text


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"masked_sequences": 1.0}, "at 5 steps it masked all of them and nothing was learned"),
        ({"masked_sequences": 0.0, "masked_tokens": 0.0}, "Nothing was masked."),
        ({"masked_sequences": 0.0, "masked_tokens": 0.03}, "No whole sequence was masked, but 3 % of the tokens were."),
        (
            {"bounds": {"mixed": 8.2, "martingale": float("inf")}},
            "none guarantees anything; the tightest is 8.2 (mixed)",
        ),
        ({"bounds": {"unified": 0.5, "unified_name": "path"}}, "can cost is 0.5 (path)."),
    ],
)
def test_the_headline_follows_the_numbers(run_folder, parse, change, said):
    folder, _ = run_folder(steps=5)
    rewrite(folder, lambda row: row | change)
    assert said in text_of(folder, parse).replace("\xa0", " ")


def test_only_the_steps_that_masked_everything_are_counted(run_folder, parse):
    folder, _ = run_folder(steps=4)
    rewrite(folder, lambda row: row | {"masked_sequences": 1.0 if row["step"] == 2 else 0.2})
    assert "at 1 step it masked all of them and nothing was learned" in text_of(folder, parse)


@pytest.mark.parametrize(
    ("final", "said"),
    [(2, "fell from 0.5 to 0.0312 in 5 steps"), (33, "no more than chance explains, so learning is not shown")],
)
def test_a_run_that_did_not_learn_is_not_praised(run_folder, evaluation_of, parse, final, said):
    folder, _ = run_folder(steps=5)
    ends = {1: evaluation_of(32, 64, random.Random(0)), 5: evaluation_of(final, 64, random.Random(0))}
    rewrite(folder, lambda row: row | ends.get(row["step"], {}))
    text = text_of(folder, parse).replace("\xa0", " ")
    assert said in text and "rose" not in text


@pytest.mark.slow
def test_a_run_folder_without_held_out_rewards_is_drawn(run_folder, parse):
    folder, _ = run_folder(steps=40)
    new = ("eval_reward", "eval_rewards", "eval_reward_se", "eval_greedy_reward", "reward_quartiles")
    rewrite(folder, lambda row: {k: v for k, v in row.items() if k not in new})
    seen = parse(write_run_report(folder).read_text(encoding="utf-8"))
    assert len(seen.all("figure", "plot")) - len(seen.all("figure", "extra")) == 16
    assert "Mean reward of the training rollouts rose from" in seen.text
    assert "The distribution of the held-out rewards was not recorded." in seen.text


ABSENT = {
    "reward_quartiles": "The distribution of the training rewards was not recorded.",
    "eval_rewards": "The distribution of the held-out rewards was not recorded.",
    "entropy": "Entropy was not measured.",
    "drift_by_position": "Drift against position was not measured.",
    "masked_by_length": "Acceptance against length was not measured.",
    "bounds": "No error bound was computed in this run.",
    "time_split": "The split of time was not measured.",
    "tokens_per_cpu_second": "Tokens per CPU-second were not measured.",
}


@pytest.mark.parametrize("key", ABSENT)
def test_what_was_not_measured_is_said_and_nothing_is_made_up(run_folder, parse, key):
    folder, _ = run_folder(steps=5)
    rewrite(folder, lambda row: {k: v for k, v in row.items() if k != key})
    text = text_of(folder, parse)
    assert ABSENT[key] in text
    assert [other for other in ABSENT if ABSENT[other] in text] == [key]


def test_any_subset_of_keys_gives_a_page(run_folder, parse):
    folder, _ = run_folder(steps=3)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    shutil.rmtree(folder / "rollouts")
    for key in rows[0]:
        part = [{"step": r["step"]} | ({key: r[key]} if key in r else {}) for r in rows]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
        text_of(folder, parse)


def test_wrong_kinds_of_values_do_not_stop_the_page(run_folder, parse):
    folder, _ = run_folder(steps=3)
    shutil.rmtree(folder / "rollouts")
    for junk in (None, "text", [], [None, "x"], {}, {"edges": [0, 1], "kl_exact_mean": "x"}, True, -1, 1e308):
        rewrite(folder, lambda row, junk=junk: {k: (v if k == "step" else junk) for k, v in row.items()})
        text_of(folder, parse)


def test_an_empty_folder_gives_a_page_that_says_so(tmp_path, parse):
    text = text_of(tmp_path, parse)
    assert "No training step was completed" in text
    assert "No rollouts were logged." in text
    assert "config.toml was not found." in text


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(DataError, match="give the folder that `holdfast train` wrote"):
        write_run_report(tmp_path / "nowhere")


def test_hostile_text_in_a_run_stays_text(run_folder, parse):
    folder, _ = run_folder(steps=3)
    hostile = "<script>alert(1)</script>"
    rewrite(folder, lambda row: row | {"warnings": [hostile], "bounds": {hostile: 0.5}, "time_split": {hostile: 1.0}})
    (folder / "summary.json").write_text(json.dumps({"objective": hostile, "formula": hostile, hostile: hostile}))
    (folder / "config.toml").write_text(hostile)
    seen = parse(write_run_report(folder).read_text(encoding="utf-8"))
    assert len(seen.all("script")) == 1
    assert seen.text.count(hostile) >= 8


@pytest.mark.slow
def test_warnings_and_torn_lines_reach_the_reader(run_folder, parse):
    folder, _ = run_folder(steps=10)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 11, "accur')
    text = text_of(folder, parse)
    assert "acceptance falls with length: 83 %" in text
    assert "(3 steps, first 8, last 10)" in text
    assert "1 lines of metrics.jsonl could not be read" in text


@pytest.mark.slow
def test_a_long_run_stays_under_a_megabyte(run_folder, parse):
    folder, _ = run_folder(steps=30)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    with (folder / "metrics.jsonl").open("w") as file:
        for step in range(300):
            file.write(json.dumps(rows[step % 30] | {"step": step}) + "\n")
    assert write_run_report(folder).stat().st_size < 1_000_000


@pytest.mark.slow
def test_the_same_run_gives_the_same_page(run_folder):
    folder, _ = run_folder(steps=5)
    first = write_run_report(folder).read_bytes()
    assert write_run_report(folder).read_bytes() == first


@pytest.mark.parametrize(
    ("seconds", "written"), [(4.25, "4.2 s"), (59, "59 s"), (60, "1 min"), (214.7, "3 min 35 s"), (7500, "2 h 5 min")]
)
def test_durations(seconds, written):
    assert duration(seconds) == written
