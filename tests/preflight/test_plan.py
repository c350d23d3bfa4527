"""What is asked of the engine, and what the trainer is told of it, by engine, vocabulary and framework."""

import pytest

from holdfast.audit.judge.fixes import FRAMEWORKS
from holdfast.errors import ConfigError
from holdfast.preflight.observe import Reading
from holdfast.preflight.plan import TOP, configure, framework_named, request_fields
from holdfast.preflight.prompts import Prompt
from holdfast.rollout.engine import Sampling

PROMPTS = [Prompt(str(i), (1, i), (1, i)) for i in range(10)]


def test_an_address_is_a_server_and_a_word_a_kind(folder):
    served = configure({}, str(folder), "http://10.0.0.1:8000/", []).engine
    assert (served.kind, served.url) == ("server", "http://10.0.0.1:8000")
    own = configure({"engine": {"precision": "int8"}}, str(folder), "embedded", ["--engine.cache_gib", "1.5"])
    assert (own.engine.kind, own.engine.precision, own.engine.cache_gib) == ("embedded", "int8", 1.5)
    assert configure({"model": {"source": str(folder)}}, None, None, []).model.source == str(folder)


def test_groups_fill_the_responses_and_sequences_are_told_apart(plan_of):
    asked = plan_of(responses=25).asked(PROMPTS, 70)
    assert [number for number, _ in asked.prompts] == [n for n in range(10) for _ in range(2)]
    few = plan_of(responses=8).asked(PROMPTS, 70)
    assert [number for number, _ in few.prompts] == list(range(8))
    # two of each prompt: the first five are five prompts, the first fourteen all ten and four of them twice
    assert [number for number, _ in asked.first(5).prompts] == [0, 1, 2, 3, 4]
    assert sorted(number for number, _ in asked.first(14).prompts) == sorted([*range(10), 0, 1, 2, 3])


@pytest.mark.parametrize(
    ("kind", "vocabulary", "overrides", "reports"),
    [
        ("embedded", 150_000, (), (True, 0)),
        ("vllm", 150_000, (), (False, TOP)),
        ("vllm", 5_000, (), (True, 0)),
        ("vllm", 5_000, ("--engine.top_logprobs", "7"), (False, 7)),
        ("embedded", 70, ("--engine.exact_kl", "false"), (False, 0)),
    ],
)
def test_what_an_engine_is_asked_to_report(plan_of, kind, vocabulary, overrides, reports):
    assert plan_of(*overrides, engine=kind).reports(vocabulary) == reports


@pytest.mark.parametrize(
    ("framework", "overrides", "reading"),
    [
        ("Holdfast", ("--sampling.temperature", "0.7"), Reading(0.7, False)),
        ("Holdfast", ("--sampling.top_p", "0.9"), Reading(1.0, True)),
        ("verl", ("--sampling.top_p", "0.9", "--sampling.temperature", "0.7"), Reading(0.7, False)),
        (
            "Holdfast",
            ("--sampling.top_p", "0.9", "--engine.top_logprobs", "20", "--engine.exact_kl", "false"),
            Reading(),
        ),
        ("Holdfast", ("--sampling.trainer_support", "raw", "--sampling.temperature", "0.7"), Reading()),
    ],
)
def test_what_the_trainer_is_told_of_the_sampling(plan_of, framework, overrides, reading):
    assert plan_of(*overrides, framework=framework).asked(PROMPTS, 70).reading == reading


def test_a_support_that_fits_into_the_likeliest_tokens_is_known(plan_of):
    plan = plan_of("--sampling.top_k", "5", "--engine.top_logprobs", "20", "--engine.exact_kl", "false")
    assert plan.asked(PROMPTS, 70).reading.renormalize
    assert plan.reading(Sampling(top_k=5), False, 5) == Reading(1.0, False)


def test_rows_of_whole_distributions_have_room(plan_of):
    asked = plan_of().asked(PROMPTS, 70)
    assert asked.rows_at_a_time(70) == asked.rows == 128
    # 4 bytes x 24 tokens x 2^20 = 96 MiB a row: five fit into 512 MiB
    assert asked.rows_at_a_time(1 << 20) == 5
    assert asked.rows_at_a_time(1 << 40) == 1


def test_frameworks_are_found_in_any_spelling():
    assert {framework_named(name.lower()) for name in FRAMEWORKS} == set(FRAMEWORKS)
    with pytest.raises(ConfigError, match="did you mean OpenRLHF"):
        framework_named("OpenRLFH")


def test_fields_of_a_request_are_json_where_they_can_be():
    assert request_fields(["repetition_penalty=1.1", "min_tokens=3", "tag=a=b", "flag=true"]) == {
        "repetition_penalty": 1.1,
        "min_tokens": 3,
        "tag": "a=b",
        "flag": True,
    }
    for bad in ("novalue", "=1", "key="):
        with pytest.raises(ConfigError, match="KEY=VALUE"):
            request_fields([bad])


def test_a_greedy_engine_shows_nothing(plan_of):
    with pytest.raises(ConfigError):
        plan_of("--sampling.temperature", "0")
