"""The brake: what is held out, what is undone bit for bit, what is refused, and when it is an alarm."""

import pytest
import torch

from held_out import brake_config, rollouts_of
from holdfast.errors import ConfigError, DataError
from holdfast.objectives.objective import Objective
from holdfast.rollout.store import read_rollouts
from holdfast.train.brake.brake import Brake
from holdfast.train.brake.certificate import Certificate, Proof
from holdfast.train.brake.judge import check_rewards
from holdfast.train.keep.checkpoint import load_state
from holdfast.train.keep.stopwatch import Stopwatch
from holdfast.train.session import ending
from holdfast.train.settings.config import GuardConfig
from holdfast.train.show.alarms import braked

# 36 of 48 prompts are held out, and their answers judge what the other 12 have taught.
ON = ("--guard.brake", "certificate", "--guard.brake_share", "0.75", "--batch.prompts", "48", "--batch.group_size", "2")
TIMES = {"seconds", "cpu_seconds", "tokens_per_cpu_second", "time_split"}


def brake_with(settings, judge=None):
    """A brake of a run that has only a configuration."""
    brake = object.__new__(Brake)
    brake.config, brake.judge, brake.in_a_row, brake.scale = settings, judge, 0, 1.0
    return brake


def test_rewards_out_of_range_are_named_before_anything_is_changed():
    said = r"step 1: a reward of -2 lies outside guard\.brake_rewards = \[0\.0, 1\.0\]"
    with pytest.raises(DataError, match=said):
        brake_with(brake_config()).step(rollouts_of([0.0, -2.0], [0, 1]), 1, Stopwatch())
    check_rewards(torch.tensor([-0.1, 0.1]).tolist(), [-0.1, 0.1], 1)  # in float32 both lie outside


def test_whole_groups_are_held_out_others_at_every_step():
    rollouts = rollouts_of([0.0] * 16, torch.arange(8).repeat_interleave(2).tolist())
    brake = brake_with(brake_config())
    seen = set()
    for step in range(1, 9):
        trained, held = (part.sequence_ids.tolist() for part in brake.split(rollouts, step))
        assert sorted(trained + held) == list(range(16)) and len(held) == 14
        assert trained[1] == trained[0] + 1 and trained[0] % 2 == 0
        assert brake.split(rollouts, step)[0].sequence_ids.tolist() == trained
        seen.add(trained[0])
    assert len(seen) > 2


def test_a_row_of_them_is_an_alarm():
    settings = GuardConfig(brake="certificate", brake_in_a_row=3)
    record = {"step": 9, "warnings": ["w"], "braked_in_a_row": 2}
    assert braked(record, None, settings) == (record, None)
    told, look = braked(record | {"braked_in_a_row": 3}, None, settings)
    assert told["guard/brake"] == told["guard/worst"] == 2.0
    assert told["warnings"][1].startswith("guard, critical: 3 steps in a row were not taken")
    assert look.alarms[0].name == "brake" and not look.halt
    assert "0.00013 at most" in look.alarms[0].meaning  # .05³
    halting = settings.model_copy(update={"halt_on": "critical"})
    assert braked(record | {"braked_in_a_row": 3}, None, halting)[1].halt


def test_under_a_controller_it_is_one_at_the_lowest_rate():
    settings = GuardConfig(brake="controller", brake_in_a_row=3, brake_scale_range=[0.1, 1.0])
    record = {"step": 9, "braked": 1, "braked_in_a_row": 3, "brake_scale": 0.125}
    assert braked(record, None, settings) == (record, None)
    told, look = braked(record | {"brake_scale": 0.1}, None, settings)
    assert told["guard/brake"] == 2.0 and "at the lowest learning rate allowed" in told["warnings"][0]
    assert look.alarms[0].evidence == {"steps": 3} and "chance" not in look.alarms[0].meaning


@pytest.mark.parametrize(
    ("kind", "tables", "said"),
    [
        (
            "certificate",
            {"batch": {"prompts": 7}},
            r"batch\.prompts = 7 leaves nothing to train on beside the 7 .* valid value: 8",
        ),
        (
            "certificate",
            {"guard": {"brake_share": 0.25}},
            r"holds out 2, and it takes 7 to prove .* nearest valid value: 0\.88",
        ),
        ("certificate", {"guard": {"brake_level": 0.999}}, r"batch\.prompts = 8 .* beside the 14 prompts"),
        (
            "certificate",
            {"batch": {"prompts": 8, "group_size": 3, "minibatches": 4}},
            r"does not divide the 3 sequences .* value: 3",
        ),
        (
            "certificate",
            {"guard": {"brake_rewards": [1.0, 0.0]}},
            r"brake_rewards = \[1\.0, 0\.0\]: the lowest and the highest",
        ),
        ("on", {}, r"guard\.brake"),
        (
            "certificate",
            {"sampling": {"trainer_support": "raw", "temperature": 0.7}},
            r"guard\.brake with sampling\.trainer_support",
        ),
        ("controller", {"batch": {"prompts": 2, "group_size": 2}}, r"takes for a standard error .* valid value: 3"),
        ("controller", {"guard": {"brake_share": 0.1}}, r"holds out 1, and it takes 2 for .* valid value: 0\.25"),
        ("controller", {"batch": {"prompts": 8, "group_size": 1}}, r"batch\.group_size = 1: .* nearest valid value: 2"),
        (
            "controller",
            {"guard": {"brake_scale_range": [0.1, 0.5]}},
            r"brake_scale_range = \[0\.1, 0\.5\]: the lowest and the high",
        ),
        ("controller", {"guard": {"brake_scale_range": [0.0, 2.0]}}, r"brake_scale_range = .* above 0, with 1 between"),
        ("controller", {"guard": {"brake_z": -1.0}}, r"guard\.brake_z"),
        ("controller", {"guard": {"brake_z": float("inf")}}, r"brake_z = inf: a finite number"),
    ],
)
def test_settings_that_cannot_work_are_refused(kind, tables, said):
    with pytest.raises(ConfigError, match=said):
        brake_config(kind, **tables)


def reverse(monkeypatch, steps):
    """Towards the wrong answers, at these steps."""
    right, count = Objective.estimate_advantages, iter(range(1, 1000))

    def reversed_(self, *given, **named):
        return (-1 if next(count) in steps else 1) * right(self, *given, **named)

    monkeypatch.setattr(Objective, "estimate_advantages", reversed_)


def saved(folder, step):
    from safetensors.torch import load_file

    return load_file(folder.checkpoints / f"step_{step:04d}" / "model" / "model.safetensors")


HARM = ("--optimizer.learning_rate", "0.03", "--checkpoint.every", "1", "--checkpoint.keep", "9")


@pytest.mark.slow
def test_reversed_advantages_are_braked_until_it_halts(small_run, monkeypatch):
    reverse(monkeypatch, range(100))
    row = ("--guard.brake_in_a_row", "2", "--guard.halt_on", "critical")
    folder, summary = small_run("run", *ON, *HARM, *row, "--steps", "4")
    first, second = folder.read_metrics()[1:]
    assert first["brake_prompts"] == 36 and "brake_scale" not in first
    assert (first["braked"], second["braked"], second["braked_in_a_row"]) == (1, 1, 2)
    assert min(first["brake_e"], second["brake_e"]) >= 20 and first["brake_harm"] > 0 == first["brake_reward"]
    assert any(text.startswith("brake: the step was not taken: 36 held-out") for text in first["warnings"])
    assert summary["halted"]["alarm"] == "brake" and "--resume --guard.halt_on never" in ending(summary, folder, None)
    one, two = saved(folder, 1), saved(folder, 2)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not load_state(folder.checkpoints / "step_0002")["optimizer"]["state"]
    assert first["policy_lag"] == 0
    rows = list(read_rollouts(folder.path / "rollouts" / "step_0001.parquet"))
    held = [row for row in rows if (row.extra or {}).get("held_out")]
    assert [row.sequence_id for row in rows] == list(range(96)) and len(held) == 72
    assert all(row.advantages is None and row.trust_mask is None for row in held)
    assert all(row.trainer_logprobs is not None and row.reward is not None for row in rows)
    assert sum(row.advantages is not None for row in rows) == 24


@pytest.mark.slow
@pytest.mark.parametrize("more", [(), ("--lora.rank", "4")], ids=["all weights", "adapters"])
def test_only_the_harmful_step_is_undone_and_resume_is_bit_for_bit(small_run, monkeypatch, more):
    def run(name, harmful, **options):
        with monkeypatch.context() as planted:
            reverse(planted, harmful)
            real = Certificate.judge

            def judge(self, held, before, step):  # the verdict is planted, what follows from it is not
                return Proof(True, 36, 99.0, 0.1, 0.0) if step == 2 else real(self, held, before, step)

            planted.setattr(Certificate, "judge", judge)
            return small_run(name, *ON, *more, *HARM, "--optimizer.learning_rate", "0.001", **options)[0]

    whole = run("whole", {2})
    name = "adapter_model" if more else "model"
    from safetensors.torch import load_file

    steps = [load_file(whole.checkpoints / f"step_{n:04d}" / "model" / f"{name}.safetensors") for n in (1, 2, 3)]
    assert all(torch.equal(steps[0][key], steps[1][key]) for key in steps[0])
    assert any(not torch.equal(steps[1][key], steps[2][key]) for key in steps[0])
    states = [load_state(whole.checkpoints / f"step_{n:04d}")["optimizer"]["state"] for n in (1, 2)]
    assert all(
        torch.equal(values[key], states[1][number][key]) for number, values in states[0].items() for key in values
    )
    asked = iter([False, False, True])
    cut = run("cut", {2}, stop=lambda: next(asked))
    assert cut.read_metrics()[-1]["braked_in_a_row"] == 1
    cut = run("cut", (), resume=True)
    told = [[{k: v for k, v in r.items() if k not in TIMES} for r in f.read_metrics()] for f in (whole, cut)]
    assert told[0] == told[1] and [r.get("braked") for r in told[0]] == [None, 0, 1, 0, 0]
