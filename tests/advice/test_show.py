"""Advice in words and as JSON: every figure with its page, every difference, and the exit code."""

import json

import pytest

from advice.test_advising import GSPO, ROLLOUT, STALE, advise, seen
from holdfast.advice.advising import Reader
from holdfast.advice.setting import Setting
from holdfast.advice.show import Fitted, advised_dict, exit_code, in_words
from holdfast.core.advise import Recommendation, SweepPoint

PPO = {"preset": "ppo"}
POINT = SweepPoint(0.1, 0.9, (0.9,) * 4, 0.1, 0.2)
MASK = Recommendation("trm_max", {"delta": 0.1}, POINT, True, 0.8, "TRM-Max: set it")


def said(advised, table=PPO, setting=STALE, fitted=None, framework="Holdfast"):
    return "\n".join(in_words("run.toml", Reader(setting, table), advised, fitted, framework))


def test_a_change_comes_with_figures_page_and_lines_to_paste():
    text = said(advise(PPO, [seen(8, "shown")]))
    assert text.startswith("run.toml: ppo; int8 engine, 8 updates behind, 1 optimiser step a rollout batch, up to 48")
    assert "CHANGE: Take the ratio to the rollout policy (shown)\n" in text
    assert "up to 48 tokens [docs/evidence/s.md]:\n    at 8." in text
    assert text.endswith('To write into the run:\n[objective]\npreset = "ppo"\ndenominator = "rollout"')


def test_what_is_not_measured_here_is_called_the_nearest():
    setting = Setting(8, 1, "int8", 4096)
    text = said(advise(PPO, [seen(8, "shown")], setting), setting=setting)
    assert "CHANGE, by the nearest measurement: Take" in text
    assert "  Yours was not measured: up to 4,096 tokens (48 there)" in text


def test_the_nearest_setting_and_the_nearest_judged_one_are_shown():
    figures = [seen(8, "too few seeds"), seen(4, "shown"), seen(2, "shown")]
    text = said(advise(PPO, figures))
    assert "at 8." in text and "at 4." in text and "at 2." not in text
    assert "Measured at 1 more setting: docs/choosing.md" in text


def test_a_run_that_follows_the_lines_is_left_alone():
    table = {"preset": "ppo", "denominator": "rollout"}
    advised = advise(table, [seen(8, "shown")])
    text = said(advised, table)
    assert "Already so: Take" in text and text.endswith("Nothing to change by what was measured.")
    assert exit_code(advised, None) == 0


def test_nothing_measured_is_said_and_not_passed_over():
    advised = advise(PPO, [seen(8, "too few seeds")])
    text = said(advised)
    assert "Not judged here: Take" in text and text.endswith("Nothing measured decides this run.")
    assert exit_code(advised, None) == exit_code(advise(PPO, [], Setting(lag=0)), None) == 3


def test_what_a_log_does_not_say_is_asked_for():
    setting = Setting(lag=8)
    advised = advise(None, [seen(8, "shown")], setting)
    text = said(advised, None, setting)
    assert "objective not known" in text
    assert "--batch.minibatches N" in text and "--objective.preset NAME" in text
    assert "On that depend:\n  Take the ratio to the rollout policy (shown)" in text
    assert exit_code(advised, None) == 3


def test_a_framework_gets_its_own_lines():
    advised = advise(PPO, [seen(8, "shown")])
    text = said(advised, framework="verl")
    assert "The same in verl:" in text and "policy_loss.settings.denominator=rollout" in text
    assert "bypass_mode=true" in text
    assert "bypass_mode" not in said(advise(PPO, [seen(8, "shown")], given=(ROLLOUT, GSPO)), framework="verl")


@pytest.mark.parametrize(("masks", "code"), [({}, 3), ({"trm_max": MASK}, 1)])
def test_a_mask_that_pays_is_a_finding(masks, code):
    fitted = Fitted("Nothing wrong was found.", None, masks, {"trm_max": "delta = 0.1"}, ("certificates: no reward.",))
    advised = advise(PPO, [], Setting(lag=0))
    assert exit_code(advised, fitted) == code
    text = said(advised, setting=Setting(lag=0), fitted=fitted)
    assert "The audit of these rollouts: Nothing wrong was found." in text
    assert "Not given: certificates: no reward." in text and "What sets trm_max:\n    delta = 0.1" in text


def test_json_has_all_of_it():
    setting = Setting(8, 1, "int8", 4096)
    advised = advise(PPO, [seen(8, "shown")], setting)
    found = json.loads(json.dumps(advised_dict("run.toml", Reader(setting, PPO), advised, None, "TRL")))
    (line,) = found["lines"]
    assert (line["id"], line["verdict"], line["status"]) == ("rollout", "change", "shown")
    assert line["figures"][0]["page"] == "docs/evidence/s.md" and line["figures"][0]["setting"]["lag"] == 8
    assert line["not_measured"] == ["up to 4,096 tokens (48 there)"]
    assert found["propose"] == {"preset": "ppo", "denominator": "rollout"} and found["exit_code"] == 1
    assert "HoldfastGRPOTrainer" in found["lines_to_set"] and found["thresholds"] is None
