"""The coverage study: true gains against sampling, what each family shows, and rows that can fail."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from holdfast.commands import lab
from holdfast.core.certificate import certify
from holdfast.core.confidence import Confidence
from holdfast.errors import ConfigError
from holdfast.lab import coverage
from holdfast.lab.coverage import families, study
from holdfast.lab.samplers import Step, coins, rare_ruin, tree

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "draw",
    [
        tree(100_000, Step()),
        tree(100_000, Step(stop=True, size=0.5), span=(-2.0, 1.0)),
        coins(20_000, 64, 0.01),
        rare_ruin(200_000),
    ],
    ids=["tree", "tree that ends", "coins", "ruin"],
)
def test_gains_are_those_of_the_samples(draw):
    """Importance sampling over many rollouts, an independent way to the same number."""
    sample = draw(torch.Generator().manual_seed(0))
    batch, stats, reward = sample.evidence
    log_ratio = stats.logprobs - batch.rollout_logprobs
    worth = reward * torch.expm1(log_ratio.sum(-1))
    assert abs(worth.mean() - sample.gain) < 4 * worth.std() / len(worth) ** 0.5
    # exact KL, in the mean, is what the sampled log-ratios show
    gap = (stats.kl_rollout + log_ratio).sum(-1)
    assert abs(gap.mean()) < 4 * gap.std() / len(gap) ** 0.5


def test_every_family_is_drawn_alike_from_a_seed():
    for family in families():
        first, again = (family.draw(torch.Generator().manual_seed(3)) for _ in range(2))
        for one, other in zip(first.evidence[-1].flatten(), again.evidence[-1].flatten(), strict=True):
            assert one == other
        assert first.gain == again.gain
    assert sum(family.breaks is None for family in families()) >= 13


def rows_of(*names, trials=60):
    return {row.name: row for row in study(trials, only=lambda family: family.name in names)}


@pytest.mark.slow
def test_what_the_assumptions_cover_is_seldom_false():
    rows = rows_of("unseen mass, one token", "sparse reward .1", "grouped, 8 a prompt", "kl_exact overwritten")
    assert all(row.holds and row.false <= 0.1 for row in rows.values())
    assert rows["sparse reward .1"].certified >= 0.9
    unseen = rows["unseen mass, one token"]
    assert unseen.certified == 0 and unseen.refused > 0.8 and unseen.apart_false > 0.8
    assert rows["kl_exact overwritten"].refused == 1


@pytest.mark.slow
def test_what_they_do_not_cover_is_false_and_named():
    rows = rows_of("trained on these rollouts", "grouped, no group_ids", "rare ruined prompts")
    assert all(row.named and row.holds and row.false > 0.1 for row in rows.values())
    assert rows["trained on these rollouts"].above > 0.9
    (held,) = rows_of("held out of its training").values()
    assert held.above <= 0.1


def test_the_betting_test_is_seldom_false():
    rows = rows_of("sampled only, useful", "sampled only, rare ruin")
    assert rows["sampled only, useful"].certified > 0.9
    assert all(row.false <= 0.05 and row.variable == "clipped" for row in rows.values())


def test_a_row_can_fail():
    row = coverage.Coverage("x", "10", None, "compensated", 300, 0.0, 0.5, 0.07, 0.07, 0.0, 0.0, 0.0, True)
    assert row.holds and not replace(row, false=0.09).holds  # .05 + 2.33 √(.05 · .95 / 300) = .0793
    assert not replace(row, breaks="an assumption", named=False).holds
    with pytest.raises(ConfigError, match="trials is 0"):
        study(0)


def test_a_lower_level_is_false_more_often():
    family = next(f for f in families() if f.name == "grouped, 8 a prompt")
    assert coverage.coverage(family, 60, level=0.6).false > 0.15


def test_the_command_prints_and_judges(monkeypatch, tmp_path, capsys):
    assert lab.run(["certificates", "--trials", "2", "--json", "--out", str(tmp_path)]) in (0, 1)
    assert len(json.loads(capsys.readouterr().out)["results"]) == len(families())
    rows = rows_of("useful step", "rare ruined prompts", trials=4)
    monkeypatch.setattr(lab, "study", lambda *_, **__: [replace(rows["useful step"], false=0.5)])
    assert lab.run(["certificates", "--out", str(tmp_path)]) == 1
    assert "Not as promised: useful step" in capsys.readouterr().out
    monkeypatch.setattr(lab, "study", lambda *_, **__: list(rows.values()))
    lab.run(["certificates", "--markdown", "--out", str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("| family | prompts | true gain |") and lines[1] == "|" + " - |" * 8
    assert any(line.startswith("| rare ruined prompts* | 100 | -0.001 |") for line in lines)


def test_the_page_has_every_family():
    page = (ROOT / "docs" / "theory" / "certificates.md").read_text(encoding="utf-8")
    for family in families():
        assert f"| {family.name}{'*' if family.breaks else ''} | {family.prompts} |" in page


def test_certificates_of_a_family_are_those_of_the_library():
    sample = tree(50, Step(paid=0.1, tilt=1.0))(torch.Generator().manual_seed(0))
    found = certify(*sample.evidence, confidence=Confidence(resamples=400), **sample.options)
    assert found.certified and found.improvement <= sample.gain
