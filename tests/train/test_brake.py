"""The brake: what is held out, what the test is of, what is undone bit for bit, and what a person is told."""

import pytest
import torch

from holdfast.errors import ConfigError, DataError
from holdfast.objectives.objective import Objective
from holdfast.objectives.presets import preset
from holdfast.rollout.store import read_rollouts
from holdfast.tasks.base import Problem
from holdfast.train.brake import Brake, Snapshot, Verdict, brake_metrics, brake_warnings
from holdfast.train.keep.checkpoint import load_state
from holdfast.train.keep.stopwatch import Stopwatch
from holdfast.train.sampling.data import Prompts, Rollouts, pack
from holdfast.train.sampling.episodes import Episode
from holdfast.train.session import ending
from holdfast.train.settings.config import GuardConfig
from holdfast.train.settings.configfile import build_config
from holdfast.train.show.alarms import braked
from holdfast.train.update import Updater
from holdfast.types import TokenStats

# 36 of 48 prompts are held out, and their answers judge what the other 12 have taught.
ON = ("--guard.brake", "certificate", "--guard.brake_share", "0.75", "--batch.prompts", "48", "--batch.group_size", "2")
TIMES = {"seconds", "cpu_seconds", "tokens_per_cpu_second", "time_split"}


def config(guard=None, **tables):
    plain = {"batch": {"prompts": 8, "group_size": 2}, "guard": {"brake": "certificate", "brake_share": 0.875}}
    return build_config(plain | tables | {"guard": plain["guard"] | (guard or {})})


def updater_of(parameters, optimizer=None, objective=None):
    """What an update changes, and nothing else of an updater."""
    updater = object.__new__(Updater)
    updater.parameters, updater.optimizer, updater.objective, updater.moved = parameters, optimizer, objective, False
    return updater


class Answering(Brake):
    """A brake whose updated policy has these rewards."""

    def __init__(self, settings, answers, weights=(1.0,)):
        self.config, self.answers, self.in_a_row = settings, answers, 0
        self.updater = updater_of([torch.tensor([weight]) for weight in weights])

    def _answers(self, held, step):
        return self.answers


def rollouts_of(rewards, groups):
    """One token of log-probability -1 each, and a row of padding."""
    count = len(rewards)
    return Rollouts(
        prompts=Prompts((Problem("?", "!", None, "test"),) * count, ((1,),) * count),
        episodes=tuple(Episode(i, Problem("?", "!", None, "test"), (1,)) for i in range(count)),
        texts=("",) * count,
        sequences=pack([[1]] * count, [[2, 3]] * count, 0, [[True, False]] * count),
        rollout_logprobs=torch.full((count, 2), -1.0),
        rewards=torch.tensor(rewards),
        group_ids=torch.tensor(groups),
        sequence_ids=torch.arange(count),
        turn_ids=torch.zeros(count, 2, dtype=torch.long),
        versions=torch.zeros(count, 2, dtype=torch.long),
    )


def held_out(rewards, ratios, groups):
    """Such rollouts, and the policy before the update, which is `ratios` times as likely to write them."""
    before = torch.tensor([[ratio, 5.0] for ratio in ratios]).log() - 1
    return rollouts_of(rewards, list(groups)), TokenStats(before)


def test_the_test_by_hand():
    # Groups 4 and 9: (1 · 2 + 0 · 1)/2 - (1 + 0)/2 = .5 and (1 · 1 + .5 · .5)/2 - 0 = .625. At the stakes of the test
    # E_2 = mean_j (1 + .5 λ_j)(1 + .625 λ_j) = (1.011281 + 1.034031 + 1.115625 + 1.365625 + 1.7875 + 2.265625)/6.
    held, before = held_out([1.0, 0.0, 1.0, 0.5], [2.0, 1.0, 1.0, 0.5], [4, 4, 9, 9])
    found = Answering(config(), [1.0, 0.0, 0.0, 0.0]).judge(held, before, 1)
    assert (found.braked, found.prompts, found.reward) == (False, 2, 0.25)
    assert found.e_value == pytest.approx(1.429948, abs=1e-5)
    # Rewards from -1 to 3 are a quarter of it above -1: the same test, and a limit in units of the rewards.
    scaled, _ = held_out([3.0, -1.0, 3.0, 1.0], [1.0] * 4, [4, 4, 9, 9])
    wide = Answering(config({"brake_rewards": [-1.0, 3.0]}), [3.0, -1.0, -1.0, -1.0]).judge(scaled, before, 1)
    assert wide.e_value == pytest.approx(found.e_value) and wide.harm == pytest.approx(4 * found.harm)
    assert wide.reward == 0.0


def test_an_engine_outside_is_compared_with_itself():
    """It answers before and after, so that its own numerics are in both and no weight is between them."""
    held, before = held_out([1.0, 0.0, 1.0, 0.5], [2.0, 1.0, 1.0, 0.5], [4, 4, 9, 9])
    outside = {"engine": {"kind": "server", "precision": "float32"}}
    found = Answering(config(**outside), [1.0, 0.0, 0.0, 0.0]).judge(held, before, 1)
    # 0 and .75: E_2 = mean_j (1 + .75 λ_j) = 7.455/6.
    assert found.e_value == pytest.approx(7.455 / 6)


def test_it_brakes_from_the_level_on():
    held, before = held_out([1.0] * 7, [1.0] * 7, range(7))
    assert Answering(config(), [0.0] * 7).judge(held, before, 1).braked  # mean_j (1 + λ_j)^7 = 21.1
    assert (
        not Answering(config({"brake_level": 0.95}), [0.0] * 6)
        .judge(*held_out([1.0] * 6, [1.0] * 6, range(6)), 1)
        .braked
    )
    assert not Answering(config(), [1.0] * 7).judge(held, before, 1).braked


def test_weights_that_are_no_numbers_need_no_answer():
    held, before = held_out([1.0], [1.0], [0])
    found = Answering(config(), None, weights=(1.0, float("nan"))).judge(held, before, 1)
    assert found == Verdict(True, 1)
    assert brake_warnings(found) == ["brake: the step was not taken: it leaves weights that are not finite"]


def test_rewards_out_of_range_are_named():
    held, before = held_out([1.0], [1.0], [0])
    said = r"step 3: a reward of 1\.5 lies outside guard\.brake_rewards = \[0\.0, 1\.0\]"
    with pytest.raises(DataError, match=said):
        Answering(config(), [1.5]).judge(held, before, 3)
    with pytest.raises(DataError, match="a reward of -2 lies outside"):
        Answering(config(), []).step(rollouts_of([0.0, -2.0], [0, 1]), 1, Stopwatch())
    rounded = Answering(config({"brake_rewards": [-0.1, 0.1]}), [0.1])  # in float32 both lie outside
    rounded._check(torch.tensor([-0.1, 0.1]).tolist(), 1)
    assert not rounded.judge(held_out([-0.1], [1.0], [0])[0], before, 1).braked


def test_whole_groups_are_held_out_others_at_every_step():
    rollouts = rollouts_of([0.0] * 16, torch.arange(8).repeat_interleave(2).tolist())
    brake = Answering(config(guard={"brake_share": 0.875}), [])
    seen = set()
    for step in range(1, 9):
        trained, held = (part.sequence_ids.tolist() for part in brake.split(rollouts, step))
        assert sorted(trained + held) == list(range(16)) and len(held) == 14
        assert trained[1] == trained[0] + 1 and trained[0] % 2 == 0
        assert brake.split(rollouts, step)[0].sequence_ids.tolist() == trained
        seen.add(trained[0])
    assert len(seen) > 2


@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_put_back_goes_on_as_if_nothing_had_been(steps, dtype):
    def updates(parameter, optimizer, count, size):
        for _ in range(count):
            parameter.grad = size * (parameter.detach() + 1)
            optimizer.step()

    weights = []
    for detour in (False, True):
        parameter = torch.nn.Parameter(torch.linspace(-1, 1, 50).to(dtype))
        optimizer = torch.optim.AdamW([parameter], lr=0.1, fused=True)
        updater = updater_of([parameter], optimizer, preset("ppo"))
        updates(parameter, optimizer, steps, 1.0)
        if detour:
            kept = Snapshot.of(updater)
            updater.objective, updater.moved = preset("gspo"), True
            updates(parameter, optimizer, 3, -5.0)
            kept.put_back(updater)
            assert (updater.objective, updater.moved) == (preset("ppo"), False)
            updates(parameter, optimizer, 1, 7.0)  # what was put back is a copy, not the state itself
            assert len(optimizer.state) == 1
            kept.put_back(updater)
        updates(parameter, optimizer, 2, 1.0)
        weights.append(parameter.detach())
    assert torch.equal(*weights)


def test_a_row_of_them_is_an_alarm():
    settings = GuardConfig(brake="certificate", brake_in_a_row=3)
    record = {"step": 9, "warnings": ["w"]} | brake_metrics(Verdict(True, 36, 50.0, 0.1, 0.0), 2)
    assert record["braked"] == 1 and record["brake_e"] == 50.0 and record["brake_prompts"] == 36
    assert braked(record, None, settings) == (record, None)
    told, look = braked(record | {"braked_in_a_row": 3}, None, settings)
    assert told["guard/brake"] == told["guard/worst"] == 2.0
    assert told["warnings"][1].startswith("guard, critical: 3 steps in a row were not taken")
    assert look.alarms[0].name == "brake" and not look.halt
    assert "0.00013 at most" in look.alarms[0].meaning  # .05³
    halting = settings.model_copy(update={"halt_on": "critical"})
    assert braked(record | {"braked_in_a_row": 3}, None, halting)[1].halt


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        ({"batch": {"prompts": 7}}, r"batch\.prompts = 7 leaves nothing to train on beside the 7 .* valid value: 8"),
        ({"guard": {"brake_share": 0.25}}, r"holds out 2, and it takes 7 to prove .* nearest valid value: 0\.88"),
        ({"guard": {"brake_level": 0.999}}, r"batch\.prompts = 8 .* beside the 14 prompts"),
        ({"batch": {"prompts": 8, "group_size": 3, "minibatches": 4}}, r"does not divide the 3 sequences .* value: 3"),
        ({"guard": {"brake_rewards": [1.0, 0.0]}}, r"brake_rewards = \[1\.0, 0\.0\]: the lowest and the highest"),
        ({"guard": {"brake": "on"}}, r"guard\.brake"),
        ({"sampling": {"trainer_support": "raw", "temperature": 0.7}}, r"guard\.brake with sampling\.trainer_support"),
    ],
)
def test_settings_that_cannot_work_are_refused(tables, said):
    with pytest.raises(ConfigError, match=said):
        config(**tables)


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
            real = Brake.judge

            def judge(self, held, before, step):  # the verdict is planted, what follows from it is not
                return Verdict(step == 2, 36, 99.0, 0.1, 0.0) if step == 2 else real(self, held, before, step)

            planted.setattr(Brake, "judge", judge)
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
