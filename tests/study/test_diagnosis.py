"""Which number spoke first: golden counts on runs small enough to follow by hand; the page follows from them."""

import json

import pytest
import tomli_w

from holdfast.errors import DataError
from holdfast.report.metrics import Metrics
from holdfast.study.diagnosis import (
    SIGNALS,
    diagnosed_runs,
    diagnosis_page,
    fall,
    hear,
    limit_for,
    read_diagnosis,
    write_diagnosis,
)
from holdfast.study.evidence import check_evidence, write_evidence
from holdfast.study.plan import plan_reporting
from holdfast.study.run import collect_study
from small_study import STUDY

BY_KEY = {signal.key: signal for signal in SIGNALS}
K3, ENTROPY, MASKED = BY_KEY["rollout_k3_mean"], BY_KEY["entropy"], BY_KEY["masked_sequences"]


def run(seed, collapsed=False, fell=None, cell=None, **courses):
    signals = {key: courses.get(key) for key in BY_KEY}
    return {
        "study": "small",
        "configuration": "a",
        "cell": cell or {},
        "seed": seed,
        "collapsed": collapsed,
        "fell": fell,
        "signals": signals,
    }


@pytest.fixture
def held():
    """Seven runs that held, seeds 2 to 8: k3 of .01 to .07, entropy of .2 to .8."""
    return [run(seed, rollout_k3_mean=[0.01 * (seed - 1)], entropy=[0.1 * seed]) for seed in range(2, 9)]


def test_a_range_leaves_the_runs_own_seed_out_and_needs_six_runs(held):
    assert limit_for(held, run(9), K3) == pytest.approx(0.07)
    assert limit_for(held, held[-1], K3) == pytest.approx(0.06), "its own seed had the highest"
    assert limit_for(held, run(9), ENTROPY) == pytest.approx(0.2), "entropy warns when it is low"
    assert limit_for(held[:5], run(9), K3) is None
    assert limit_for(held, run(9, cell={"lag": 4}), K3) is None, "another cell is another setting"
    assert limit_for([*held, run(10, collapsed=True, rollout_k3_mean=[9.0])], run(9), K3) == pytest.approx(0.07)


def test_leads_are_counted_from_the_first_step_beyond(held):
    early = run(9, True, 6, rollout_k3_mean=[0.01, 0.08, 0.01, 0.09, 0.0, 0.0])
    late = run(10, True, 2, rollout_k3_mean=[0.01, 0.08])
    silent = run(11, True, 2, rollout_k3_mean=[0.07, None])
    unseen = run(12, True, None, rollout_k3_mean=[0.09])
    heard = hear([*held, early, late, silent, unseen], K3, published=False)
    # seed 8 has the highest k3 of those that held (.07), beyond the .06 of the others: the one false alarm
    assert (heard.leads, heard.late, heard.silent, heard.collapsed) == ([4], 1, 1, 3)
    assert (heard.false_alarms, heard.healthy) == (1, 7)
    published = hear([*held, early], K3, published=True)
    assert (published.leads, published.false_alarms) == ([5], 7), "all are above .001 at step 1"
    assert hear([*held, early], MASKED, published=True).healthy == 0


def test_the_reward_has_fallen_when_its_mean_over_four_steps_is_below():
    rewards = [0.4, 0.4, 0.0, 0.0, 0.0, 0.3, 0.0, 0.0]
    rows = [{"step": 0, "eval_reward": 0.4}, *({"step": s, "reward_mean": r} for s, r in enumerate(rewards, 1))]
    # means of steps 1-4, 2-5, 3-6, 4-7: .2, .1, .075, .075
    assert fall(Metrics(tuple(rows)), 0.2) == 5
    assert fall(Metrics(tuple(rows)), 0.21) == 4
    assert fall(Metrics(tuple(rows)), 0.05) is None


@pytest.fixture
def finished(make_study, tmp_path):
    """Folders of a study's four finished runs; seed 2 of `b` ends below half its start. -> (study, their folder)."""
    study = make_study(seeds={"reporting": [2, 3]}, factor=[])
    for planned in plan_reporting(study, {}, "s"):
        broken = (planned.configuration, planned.seed) == ("b", 2)
        folder = tmp_path / "runs" / planned.folder
        folder.mkdir(parents=True)
        rows = [{"step": 0, "eval_reward": 0.5}]
        for step in range(1, 6):
            reward = 0.0 if broken else 0.5
            rows.append({"step": step, "reward_mean": reward, "rollout_k3_mean": 0.001 * step, "masked_sequences": 0.0})
        rows[-1]["eval_reward"] = 0.1 if broken else 0.5
        (folder / "config.toml").write_text("")
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / "summary.json").write_text('{"finished": true}')
    return study, tmp_path


def test_a_run_that_held_gives_extremes_and_one_that_collapsed_its_course(finished):
    study, out = finished
    runs = diagnosed_runs(study, "small", plan_reporting(study, {}, "s"), out)
    assert [(r["configuration"], r["seed"], r["collapsed"], r["fell"]) for r in runs] == [
        ("a", 2, False, None),
        ("b", 2, True, 4),
        ("a", 3, False, None),
        ("b", 3, False, None),
    ]
    assert runs[0]["signals"]["rollout_k3_mean"] == [0.005]
    assert runs[1]["signals"]["rollout_k3_mean"] == [0.001, 0.002, 0.003, 0.004, 0.005]
    assert {r["signals"]["masked_sequences"] for r in runs} == {None}, "nothing was masked: no acceptance to judge"


def test_the_page_follows_from_its_runs_and_the_runs_from_their_study(finished, tmp_path):
    study, out = finished
    evidence, studies = tmp_path / "evidence", tmp_path / "studies"
    studies.mkdir()
    evidence.mkdir()
    (studies / "small.toml").write_text(tomli_w.dumps(STUDY | {"seeds": {"reporting": [2, 3]}, "factor": []}))
    write_evidence(evidence, "small", study, collect_study(study, "s", out))
    runs = diagnosed_runs(study, "small", plan_reporting(study, {}, "s"), out)
    _, page = write_diagnosis(evidence, runs)
    assert check_evidence(evidence, studies) == []
    text = page.read_text()
    assert "4 finished runs of the studies [small](small.md): 1 had collapsed" in text
    assert "| small | b | 2 | 4 | none |" in text and text == diagnosis_page(
        read_diagnosis(evidence / "diagnosis.json")
    )
    page.write_text(text.replace("none", "entropy"))
    assert "diagnosis.md does not follow" in check_evidence(evidence, studies)[0]
    write_diagnosis(evidence, runs[:3])
    assert "has other runs of small than small.json" in check_evidence(evidence, studies)[0]
    (evidence / "diagnosis.json").write_text("[]")
    assert "is no diagnosis" in check_evidence(evidence, studies)[0]
    with pytest.raises(DataError, match="is no diagnosis"):
        read_diagnosis(evidence / "gone.json")
