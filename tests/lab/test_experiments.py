"""The experiments behind `holdfast lab`, and the command: tables, figures, JSON, exit codes."""

import json
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from holdfast.commands import lab
from holdfast.errors import ConfigError
from holdfast.lab import experiments
from holdfast.lab.bandit import bonus_gap, ladder_arms
from holdfast.lab.chains import CoinPair

SMALL = {
    "bounds": ["--trees", "6", "--horizon", "3", "--longest", "4096"],
    "masks": ["--trees", "2", "--horizon", "3"],
    "entropy": ["--arms", "5", "--steps", "300"],
}
FIGURES = {
    "bounds": ["lab_bounds_published", "lab_bounds_own", "lab_bounds_trees"],
    "masks": [f"lab_masks_{axis}_{key}" for axis in ("share", "size") for key in ("error", "certificate", "noise")],
    "entropy": ["lab_entropy_controls", "lab_entropy_law", "lab_entropy_reward"],
}


def test_horizon_curve_is_the_coin_and_its_bounds():
    curve = experiments.bounds_by_horizon(1e-4, 5000)
    assert curve.horizons == tuple(2**k for k in range(1, 13))
    assert curve.exact[-1].item() == pytest.approx(0.190, abs=5e-4)
    assert curve.exact[0].item() == pytest.approx(2 * CoinPair.of_kl(1e-4).tv ** 2)
    assert curve.own["martingale"][-1].item() == pytest.approx(0.335, abs=5e-4)
    assert curve.published["classical"][-1].item() == pytest.approx(1677.31 / 2, rel=1e-3)
    assert curve.own["compensated"][-1] / curve.exact[-1] < 1.01
    for bound in (*curve.published.values(), *curve.own.values()):
        assert (bound >= curve.exact * (1 - 1e-9)).all()


def test_tree_trial_finds_a_broken_bound(monkeypatch):
    sound = experiments.bounds_on_trees(20, vocabulary=2, horizon=2)
    assert sound.pairs == 100
    assert all(row.violations == 0 and row.tightest >= 1 - 1e-9 for row in sound.rows)
    assert next(row for row in sound.rows if row.name == "classical").tightest == pytest.approx(1, rel=1e-6)

    exact = experiments.bound_table

    def broken(drift):
        rows = exact(drift)
        return rows | {"classical": replace(rows["classical"], halved=rows["classical"].halved / 2)}

    monkeypatch.setattr(experiments, "bound_table", broken)
    row = next(row for row in experiments.bounds_on_trees(20, vocabulary=2, horizon=2).rows if row.name == "classical")
    assert row.violations > 0
    assert row.tightest == pytest.approx(0.5, rel=1e-6)


def test_masks_trade_bias_for_noise_and_a_certificate_without_assumptions():
    (row,) = experiments.masks_on_trees([(0.01, 3.0)], count=40)
    for mask in ("token", "prefix", "sequence"):
        assert row.error["none"] < row.error[mask]  # what the mask drops is missing from the surrogate
        assert row.noise[mask] < row.noise["none"] / 3
        assert row.certificate[mask] < 0.2 < 1 < row.certificate["none"]
        assert row.error[mask] <= row.certificate_from_means[mask] <= row.certificate[mask]
    assert row.error["none"] <= row.certificate_from_means["none"] < row.certificate_from_means["token"]
    assert 0.9 < row.accepted < 1
    assert 0 < row.hit < 0.1


def test_smaller_scopes_keep_more_of_the_gradient():
    (row,) = experiments.masks_on_trees([(0.1, 2.0)], count=40)
    cosine = row.cosine
    assert cosine["none"] > cosine["token"] > cosine["prefix"] + 0.1 > cosine["sequence"] + 0.15
    assert row.noise["token"] < row.noise["none"] / 10


def test_entropy_trial():
    trial = experiments.entropy_laws(arms=5, steps=400)
    assert trial.fixed_gap == bonus_gap(ladder_arms(5), 0.1)
    assert trial.change.actual.shape == (400,)
    run = next(run for run in trial.runs if run.control == "none")
    assert trial.change.actual.tolist() == pytest.approx(run.entropy.diff().tolist(), abs=1e-12)


@pytest.mark.parametrize("name", ["bounds", "masks", "entropy"])
def test_command_prints_a_table_and_writes_figures(name, tmp_path, capsys):
    assert lab.run([name, *SMALL[name], "--out", str(tmp_path / "figures")]) == 0
    printed = capsys.readouterr().out
    assert {"bounds": "sequence_kl", "masks": "prefix", "entropy": "clip_cov"}[name] in printed
    files = sorted(path.stem for path in (tmp_path / "figures").iterdir())
    assert files == sorted(FIGURES[name])
    for path in (tmp_path / "figures").iterdir():
        assert ElementTree.parse(path).getroot().tag.endswith("svg")


@pytest.mark.parametrize("name", ["bounds", "entropy"])
def test_command_speaks_json(name, tmp_path, capsys):
    assert lab.run([name, *SMALL[name], "--out", str(tmp_path), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["passed"] is True
    assert len(answer["figures"]) == len(FIGURES[name])
    assert answer["results"]


def test_a_broken_bound_is_a_failed_check(monkeypatch, tmp_path, capsys):
    sound = experiments.bounds_on_trees

    def broken(*args, **options):
        trial = sound(*args, **options)
        return replace(trial, rows=(replace(trial.rows[0], violations=3), *trial.rows[1:]))

    monkeypatch.setattr(experiments, "bounds_on_trees", broken)
    assert lab.run(["bounds", *SMALL["bounds"], "--out", str(tmp_path)]) == 1
    assert "Broken: martingale_exact" in capsys.readouterr().out


def test_a_certificate_below_the_error_is_a_failed_check(monkeypatch, tmp_path, capsys):
    sound = experiments.masks_on_trees

    def broken(settings, **options):
        (row,) = sound(settings[:1], **options)
        return [replace(row, certificate=dict.fromkeys(row.certificate, 1e-9))]

    monkeypatch.setattr(experiments, "masks_on_trees", broken)
    assert lab.run(["masks", *SMALL["masks"], "--out", str(tmp_path)]) == 1
    assert "Certificates below the exact error" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bounds", "--trees", "0"], "trees is 0"),
        (["bounds", "--horizon", "1"], "horizon is 1"),
        (["bounds", "--horizon", "20"], "too many to enumerate"),
        (["bounds", "--longest", "1"], "longest is 1"),
        (["bounds", "--kl", "-1"], "kl is -1"),
        (["masks", "--trees", "0"], "trees is 0"),
        (["masks", "--share", "2"], "share of drifting contexts is 2"),
        (["entropy", "--steps", "0"], "steps is 0"),
        (["entropy", "--arms", "1"], "arms is 1"),
        (["entropy", "--steps", "2", "--alpha", "0"], "alpha is 0"),
    ],
)
def test_bad_options_are_refused(arguments, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        lab.run([*arguments, "--out", str(tmp_path)])


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(ConfigError, match="name another folder with --out"):
        lab.run(["entropy", *SMALL["entropy"], "--out", str(tmp_path / "taken")])
