"""Which lines speak to a run, by the nearest setting in which anything was judged, and what they change."""

from dataclasses import replace

import pytest

from holdfast.advice.advising import Reader, advise_reader
from holdfast.advice.lines import parse_lines
from holdfast.advice.measured import Figure, Measured, Outcome
from holdfast.advice.setting import Setting
from holdfast.advice.traits import key_of
from holdfast.objectives.presets import preset

TOPIC = [{"name": "t", "title": "T"}]
ROLLOUT = {
    "id": "rollout",
    "topic": "t",
    "say": "Take the ratio to the rollout policy",
    "where": {"lag": [1, 64], "updates": [1, 1]},
    "only": ["clip"],
    "does": ["ratio to the rollout policy"],
    "change": {"set": {"denominator": "rollout"}},
    "remedy": "clip_on_rollout",
    "evidence": [{"study": "s", "ahead": "b", "behind": "a"}],
}
GSPO = ROLLOUT | {
    "id": "gspo",
    "say": "Take GSPO",
    "does": ["sequence ratio", "ratio to the rollout policy"],
    "change": {"loss": "gspo", "set": {"denominator": "rollout"}},
    "remedy": "",
}
STALE = Setting(lag=8, updates=1, precision="int8", tokens=48)


def lines(*given):
    return parse_lines({"topic": TOPIC, "line": list(given)})


def seen(lag, support, study="s"):
    return Figure(study, "Title", f"lag {lag}", f"at {lag}.", support, Setting(lag, 1, "int8", 48))


def advise(table, figures, setting=STALE, given=(ROLLOUT,), outcomes=()):
    measured = Measured({line["id"]: tuple(figures) for line in given}, tuple(outcomes))
    return advise_reader(lines(*given), measured, Reader(setting, table))


def test_a_change_is_proposed_and_its_opposite_kept():
    found = advise({"preset": "ppo"}, [seen(8, "shown")])
    assert [one.verdict for one in found.spoken] == ["change"] and found.changes and found.judged
    assert found.objective == {"preset": "ppo", "denominator": "rollout"} and found.remedies == ("clip_on_rollout",)
    found = advise({"preset": "ppo", "denominator": "rollout"}, [seen(8, "shown")])
    assert [one.verdict for one in found.spoken] == ["kept"] and found.objective is None
    assert found.judged and not found.changes


@pytest.mark.parametrize(
    "setting",
    [Setting(lag=0, updates=1), Setting(lag=65, updates=1), Setting(lag=8, updates=2), Setting(lag=0)],
)
def test_a_line_says_nothing_outside_its_limits(setting):
    found = advise({"preset": "ppo"}, [seen(8, "shown")], setting)
    assert found.spoken == () and not found.judged


def test_only_the_objectives_that_it_speaks_of():
    assert advise({"preset": "reinforce"}, [seen(8, "shown")]).spoken == ()


@pytest.mark.parametrize(
    ("figures", "lag", "verdict"),
    [
        ([seen(8, "not separated")], 8, "not judged"),
        ([seen(8, "too few seeds")], 8, "not judged"),
        ([seen(8, "not run")], 8, "not judged"),
        # What was judged nearest decides: shown at lag 4, not separated at lag 16.
        ([seen(4, "shown"), seen(16, "not separated")], 5, "change"),
        ([seen(4, "shown"), seen(16, "not separated")], 12, "not judged"),
        # A nearer setting with too few seeds decides nothing.
        ([seen(4, "shown"), seen(16, "too few seeds")], 12, "change"),
        ([seen(8, "shown"), seen(8, "not separated")], 8, "change"),
    ],
)
def test_the_nearest_judged_setting_decides(figures, lag, verdict):
    found = advise({"preset": "ppo"}, figures, Setting(lag, 1, "int8", 48))
    assert [one.verdict for one in found.spoken] == [verdict]
    assert found.changes == (verdict == "change") and (found.objective is None) == (verdict != "change")


@pytest.mark.parametrize(("kl", "verdict"), [(0.011, "change"), (0.009, "not judged"), (None, "change")])
def test_what_was_seen_at_far_more_drift_decides_nothing(kl, verdict):
    figure = replace(seen(8, "shown"), setting=replace(STALE, kl=0.1))
    assert [one.verdict for one in advise({"preset": "ppo"}, [figure], replace(STALE, kl=kl)).spoken] == [verdict]


def test_figures_come_nearest_first_with_what_is_not_measured_there():
    setting = Setting(12, 1, "bfloat16", 4096)
    (line,) = advise({"preset": "ppo"}, [seen(2, "shown"), seen(16, "shown"), seen(8, "shown")], setting).spoken
    assert [figure.setting.lag for figure in line.figures] == [16, 8, 2]
    assert line.elsewhere == (
        "12 updates behind (16 there)",
        "a bfloat16 engine (int8 there)",
        "up to 4,096 tokens (48 there)",
    )
    (line,) = advise({"preset": "ppo"}, [seen(8, "shown")]).spoken
    assert line.elsewhere == ()


def test_what_is_not_known_is_asked_for():
    (line,) = advise({"preset": "ppo"}, [seen(8, "shown")], Setting(lag=8)).spoken
    assert line.verdict == "depends" and line.unknown == ("updates",)
    found = advise(None, [seen(8, "shown")], STALE)
    assert found.spoken[0].unknown == ("objective",) and not found.changes and not found.judged


def test_changes_build_on_each_other():
    found = advise({"preset": "ppo", "low": 0.1}, [seen(8, "shown")], given=(ROLLOUT, GSPO))
    assert [one.verdict for one in found.spoken] == ["change", "change"]
    assert found.objective == {"preset": "gspo", "denominator": "rollout", "low": 0.1}
    # GSPO's line has no remedy in other frameworks, so the first one's does not say it all.
    assert found.remedies == ()
    both = advise({"preset": "ppo"}, [seen(8, "shown")], given=(GSPO, ROLLOUT))
    assert [one.verdict for one in both.spoken] == ["change", "kept"]


def test_a_change_that_cannot_be_built_is_a_note():
    """TIS and a ratio to the rollout policy would count the drift twice."""
    found = advise({"preset": "tis"}, [seen(8, "shown")])
    assert [one.verdict for one in found.spoken] == ["note"] and found.objective is None


def test_a_line_without_a_change_is_a_note_where_something_was_seen():
    note = {key: value for key, value in ROLLOUT.items() if key not in ("does", "change", "only", "remedy")}
    assert advise({"preset": "ppo"}, [seen(8, "alike")], given=(note,)).spoken[0].verdict == "note"
    assert advise({"preset": "ppo"}, [seen(8, "said")], given=(note,)).spoken[0].verdict == "note"
    assert advise({"preset": "ppo"}, [seen(8, "too few seeds")], given=(note,)).spoken[0].verdict == "not judged"
    assert advise({"preset": "ppo"}, [seen(8, "said")], given=(note | {"docs_only": True},)).spoken == ()


def test_the_runs_own_objective_is_found_whatever_it_is_called():
    def outcome(lag, name, **options):
        own = key_of(preset(name, **options))
        return Outcome("s", "c", "reward", "clip", own, 0.1, ".10", "", Setting(lag, 1, "int8", 48))

    outcomes = [outcome(1, "ppo"), outcome(16, "ppo"), outcome(8, "gspo")]
    found = advise({"preset": "ppo", "low": 0.2}, [], Setting(12, 1, "int8", 48), outcomes=outcomes)
    assert found.own == outcomes[1] and found.nearest == outcomes[1]
    assert found.nearest_elsewhere == ("12 updates behind (16 there)",)
    found = advise({"preset": "ppo", "low": 0.3}, [], STALE, outcomes=outcomes)
    assert found.own is None and found.nearest == outcomes[2]
