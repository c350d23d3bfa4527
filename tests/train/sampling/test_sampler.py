"""What a step asks of its engine: which problems, under which numbers, on which support, with what in return."""

import pytest

from holdfast.errors import ConfigError
from holdfast.objectives.presets import preset
from holdfast.rollout.engine import Sampling
from holdfast.rollout.models import character_tokenizer
from holdfast.tasks import get_task
from holdfast.tasks.base import in_split
from holdfast.train.sampling.data import PromptSource
from holdfast.train.sampling.episodes import Writing
from holdfast.train.sampling.sampler import (
    Synchronous,
    sampling_of,
    step_episodes,
    wanted_top,
    wants_distributions,
    wants_support,
    writing_of,
)
from holdfast.train.settings.configfile import build_config

BATCH = {"batch": {"prompts": 3, "group_size": 4}}
MASKED = {"kind": "vllm", "sampling_mask": True}


def source_of(name="ledger", **options):
    task = get_task(name, **options)
    return PromptSource(task, character_tokenizer(task.alphabet), max_tokens=99, chat=False)


def test_a_step_s_groups_depend_on_seed_and_step_alone():
    source = source_of(entries=3)
    config = build_config(BATCH)
    first, second = (step_episodes(config, source, step) for step in (1, 2))
    assert [e.sequence_id for e in first + second] == list(range(24))
    groups = [{e.problem.prompt for e in first[i : i + 4]} for i in (0, 4, 8)]
    assert all(len(group) == 1 for group in groups) and len(set.union(*groups)) == 3
    assert all(e.token_ids == () and e.finish_reason is None for e in first)
    assert all(source.decode(e.prompt_ids).endswith(e.problem.prompt) for e in first)
    drawn = [episode.problem.prompt for step in range(1, 20) for episode in step_episodes(config, source, step)]
    assert all(in_split(prompt, "train") for prompt in drawn)
    assert first == step_episodes(config, source, 1)
    others = second, step_episodes(build_config(BATCH | {"seed": 1}), source, 1)
    assert all([e.problem for e in other] != [e.problem for e in first] for other in others)


def test_all_that_restricts_the_support_reaches_the_engine():
    settings = {"temperature": 0.7, "top_p": 0.9, "top_k": 5, "min_p": 0.1, "max_tokens": 33}
    assert sampling_of(build_config({"sampling": settings})) == Sampling(**settings)


@pytest.mark.parametrize(
    ("sections", "objective", "wanted"),
    [
        ({}, "ppo", True),
        ({"engine": {"exact_kl": False}}, "ppo", False),
        ({"engine": {"exact_kl": False}}, "trm_max+ppo", False),
        ({"engine": {"exact_kl": False}}, "trm_max+ppo by kl_exact", True),
        ({"engine": {"exact_kl": False}, "sampling": {"top_p": 0.9}}, "ppo", False),
        ({"engine": {"exact_kl": False, "kind": "server"}, "sampling": {"top_p": 0.9}}, "ppo", True),
        ({"engine": {"exact_kl": False, "sampling_mask": False}, "sampling": {"top_p": 0.9}}, "ppo", True),
        ({"engine": {"exact_kl": False} | MASKED, "sampling": {"top_k": 9, "top_p": 0.9}}, "ppo", False),
        ({"engine": {"exact_kl": False}, "sampling": {"top_p": 0.9}}, "trm_max+ppo by kl_exact", True),
        ({"engine": {"exact_kl": False}, "sampling": {"top_p": 0.9, "trainer_support": "raw"}}, "ppo", False),
        ({"engine": {"exact_kl": False, "top_logprobs": 20}, "sampling": {"top_k": 5}}, "ppo", False),
        ({"engine": {"exact_kl": False, "top_logprobs": 5, "kind": "vllm"}, "sampling": {"top_k": 5}}, "ppo", True),
        ({"engine": {"exact_kl": False}}, "trm_max+ppo by tv_exact", True),
        ({"engine": {"exact_kl": False, "top_logprobs": 5}}, "trm_max+ppo by tv_upper", False),
        ({"engine": {"top_logprobs": 5}}, "trm_max+ppo by kl_lower", True),
        ({"engine": {"exact_kl": False, "top_logprobs": 5, "kind": "vllm"}, "sampling": {"top_p": 0.9}}, "ppo", True),
        # On a support that is reported in full exact divergences follow too; not without renormalising on it.
        ({"engine": {"exact_kl": False, "top_logprobs": 5}, "sampling": {"top_k": 4}}, "trm_max by kl_exact", False),
        (
            {
                "engine": {"exact_kl": False, "top_logprobs": 5},
                "sampling": {"top_k": 4, "trainer_support": "raw"},
            },
            "trm_max by kl_exact",
            True,
        ),
    ],
)
def test_distributions_are_asked_for_where_something_needs_them(sections, objective, wanted):
    name, _, detector = objective.partition(" by ")
    chosen = preset(name, detector=detector) if detector else preset(name)
    assert wants_distributions(build_config(sections), chosen) is wanted


@pytest.mark.parametrize(
    ("engine", "sampling", "wanted"),
    [
        ({}, {"top_p": 0.9}, True),
        ({}, {}, False),
        ({}, {"top_p": 0.9, "trainer_support": "raw"}, False),
        ({"exact_kl": True}, {"top_p": 0.9}, False),
        ({"top_logprobs": 5}, {"top_k": 4}, False),
        ({"top_logprobs": 5, "sampling_mask": True}, {"top_k": 4}, True),
        ({"kind": "vllm"}, {"top_k": 4}, False),
        (MASKED, {"top_k": 4}, True),
    ],
)
def test_masks_are_asked_for_where_the_support_is_known_from_nothing_else(engine, sampling, wanted):
    config = build_config({"engine": {"exact_kl": False} | engine, "sampling": sampling})
    assert wants_support(config, preset("ppo")) is wanted
    source = source_of(entries=1)
    assert writing_of(config, source, preset("ppo")).support is wanted


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        ({"top_p": 0.9}, r'sampling_mask = true with engine.kind = "vllm" and sampling.top_k = 0: .*for example 1024'),
        ({}, r"sampling_mask = true, and all of the vocabulary can be sampled.*leave it out"),
    ],
)
def test_masks_that_vllm_cannot_report_are_refused(sampling, message):
    with pytest.raises(ConfigError, match=message):
        build_config({"engine": MASKED, "sampling": sampling})


@pytest.mark.parametrize("detector", ["kl_lower", "tv_lower", "tv_upper"])
def test_a_bound_needs_its_tokens(detector):
    objective = preset("trm_max", detector=detector)
    with pytest.raises(ConfigError, match=r"needs [kt][lv]_rollout_\w+, bounds .* engine.top_logprobs = 0"):
        wanted_top(build_config({}), objective)
    assert wanted_top(build_config({"engine": {"top_logprobs": 5}}), objective) == 5
    assert wanted_top(build_config({}), preset("trm_max")) == 0


def test_conversations_have_as_many_turns_as_the_task_allows():
    config = build_config({})
    talking, plain = source_of("calculator", terms=2), source_of(entries=1)
    writing = writing_of(config, talking, preset("ppo"))
    assert writing.max_turns == talking.task.max_turns and writing.reply == talking.answer
    writing = writing_of(config, plain, preset("ppo"))
    assert writing.max_turns == 1 and writing.reply is None and writing.sampling == sampling_of(config)


class Recorder:
    """Stands for an engine: keeps what it is given."""

    policy_version = 3

    def __init__(self):
        self.calls, self.state, self.closed = [], {"policy_version": 3}, False

    def generate(
        self, prompts, sampling, *, seed, sequence_ids, return_distributions=False, return_top=0, return_support=False
    ):
        raise AssertionError

    def sync(self, model, version):
        self.calls.append((model, version))

    def state_dict(self):
        return self.state

    def load_state_dict(self, state):
        self.state = state

    def close(self):
        self.closed = True


def test_the_engine_in_this_process_writes_whole_responses_and_keeps_its_own_state(monkeypatch):
    engine, source, writing = Recorder(), source_of(entries=1), Writing(Sampling(max_tokens=33))

    def advance(self, engine, episodes, *, budget, seed):
        engine.calls.append((len(episodes), budget, seed(0), seed(1), seed(2)))
        return episodes

    monkeypatch.setattr(Writing, "advance", advance)
    sampler, other = (Synchronous(build_config(BATCH | {"seed": s}), source, writing, engine) for s in (0, 1))
    assert sampler.episodes(1) == step_episodes(sampler.config, source, 1)
    other.episodes(1)
    (count, budget, *seeds), (_, _, *others) = engine.calls
    assert (count, budget) == (12, 33) and len({*seeds, *others}) == 6
    sampler.publish("weights", 7)
    assert engine.calls[-1] == ("weights", 7)
    assert sampler.cpu_seconds() == 0 and sampler.facts() == {}
    assert sampler.state_dict() == {"policy_version": 3}
    sampler.load_state_dict({"policy_version": 4})
    assert engine.state == {"policy_version": 4}
    sampler.close()
    assert engine.closed


def test_an_engine_that_can_sleep_does_once_a_step_s_responses_are_written(monkeypatch):
    class Sleepy(Recorder):
        def sleep(self):
            self.calls.append("sleep")

    def advance(self, engine, episodes, *, budget, seed):
        engine.calls.append("written")
        return episodes

    monkeypatch.setattr(Writing, "advance", advance)
    engine = Sleepy()
    Synchronous(build_config(BATCH), source_of(entries=1), Writing(Sampling()), engine).episodes(1)
    assert engine.calls == ["written", "sleep"]
