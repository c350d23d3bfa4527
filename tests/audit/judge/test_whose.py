"""Which of several checkpoints wrote each step: sampled from real small models, one per step."""

import numpy as np
import pytest
import torch

from holdfast.audit.judge.attribution.whose import Whose
from holdfast.audit.read.columns import chunk_of
from holdfast.audit.read.reading import Reading
from holdfast.audit.read.rescore import Scorer
from holdfast.audit.show.page.attribution import writers_section
from holdfast.audit.show.terminal import summary
from holdfast.commands.audit import audit_path, run
from holdfast.errors import ConfigError
from holdfast.rollout.models import character_tokenizer, tiny_model
from holdfast.rollout.store import write_rollouts
from holdfast.types import Rollout

STEPS = 4


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Folders of three models, each some noise away from the one before."""
    model = tiny_model(character_tokenizer("abcdefgh"), hidden=32, layers=1, heads=2)
    generator, folders = torch.Generator().manual_seed(0), []
    for name in ("first", "second", "third"):
        folder = tmp_path_factory.mktemp("checkpoints") / name
        model.save_pretrained(folder)
        folders.append(folder)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return folders


@pytest.fixture(scope="module")
def scorers(checkpoints):
    return [Scorer.load(folder) for folder in checkpoints]


def log_of(scorers, written_by, numerics=0.01):
    """Random responses; the engine's numbers of step s are those of checkpoint `written_by[s]`, and some noise."""
    rng = np.random.default_rng(0)
    out = []
    for step, writer in enumerate(written_by):
        rollouts = [
            Rollout((1, 2), tuple(rng.integers(0, 8, 12).tolist()), step=step, group_id=i, temperature=1.0)
            for i in range(8)
        ]
        scored = scorers[writer].score(chunk_of(rollouts)).tokens["trainer_logprobs"].reshape(8, 12)
        engine = np.minimum(scored + rng.normal(0, numerics, scored.shape), 0)
        out += [
            Rollout(**{**vars(r), "rollout_logprobs": tuple(e.tolist())}) for r, e in zip(rollouts, engine, strict=True)
        ]
    return out


def audited(tmp_path, scorers, written_by, **options):
    write_rollouts(tmp_path / "log.parquet", log_of(scorers, written_by, **options))
    return audit_path(tmp_path / "log.parquet", Reading(), scorers=scorers)


def found(audit):
    return [f for f in audit.findings if f.name == "whose_weights"]


def test_each_step_has_its_checkpoint(tmp_path, scorers):
    audit = audited(tmp_path, scorers, [0, 0, 1, 2])
    names = [s.name for s in scorers]
    assert [one.nearest for one in audit.writers] == [names[i] for i in (0, 0, 1, 2)]
    assert all(one.sure and one.sequences == 8 for one in audit.writers) and not found(audit)
    # Noise of .01 alone: r²/2 = 5e-5 at the writer's own weights.
    assert audit.writers[0].distances[names[0]] == pytest.approx(5e-5, rel=0.3)
    assert "Whose weights wrote each step" in writers_section(audit.writers)
    assert summary(audit)


def test_weights_that_never_arrived_and_weights_that_go_back(tmp_path, scorers):
    frozen = found(audited(tmp_path, scorers, [0] * STEPS))
    assert len(frozen) == 1 and "in all 4 steps" in frozen[0].headline and frozen[0].severity == "critical"
    assert not found(audited(tmp_path, scorers, [2] * STEPS)), "the newest weights all along are as it should be"
    back = found(audited(tmp_path, scorers, [0, 1, 0, 2]))
    assert len(back) == 1 and "went back" in back[0].headline and "step 2" in back[0].headline


def test_checkpoints_that_noise_hides_are_not_called_clear(tmp_path, scorers):
    audit = audited(tmp_path, scorers, [0, 1, 0, 1], numerics=50.0)
    assert not any(one.sure for one in audit.writers) and not found(audit)


def test_the_last_checkpoint_fills_what_the_log_lacks(tmp_path, scorers):
    audit = audited(tmp_path, scorers, [2] * STEPS)
    assert audit.statistics.mean("abs_log").value == pytest.approx(0.01 * np.sqrt(2 / np.pi), rel=0.15)


def test_one_folder_given_twice_is_refused(tmp_path, checkpoints):
    with pytest.raises(ConfigError, match="twice"):
        run([str(tmp_path), "--model", str(checkpoints[0]), "--model", str(checkpoints[0])])


def test_nothing_is_said_of_no_log(scorers):
    assert Whose([s.name for s in scorers]).writers() == () and writers_section(()) == ""
