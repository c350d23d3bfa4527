"""What a server does by itself is named: its precision by its numbers or its word, and its defaults."""

import pytest
import torch

from holdfast.preflight.bench import bench_of, maker
from holdfast.preflight.inspect import preflight
from holdfast.preflight.plan import Plan, configure
from holdfast.preflight.prompts import encode_prompts, read_prompts
from holdfast.preflight.served import Declared, declared, own_defaults, precisions
from serving import ModelServer

HALF = {"vllm_config": {"model_config": {"dtype": "torch.bfloat16"}, "cache_config": {"cache_dtype": "auto"}}}
WIDE = {"vllm_config": {"model_config": {"dtype": "torch.float32", "quantization": None}}}
COARSE = {"vllm_config": {"model_config": {"quantization": "fp8"}, "cache_config": {"cache_dtype": "fp8_e5m2"}}}


@pytest.fixture
def bench(make_model, tokenizer, tmp_path):
    """bench(dtype, *overrides, **faults of the server): a trainer in that dtype beside it."""
    servers = []

    def make(*overrides, dtype=torch.float32, model=None, responses=96, request=None, **faults):
        servers.append(ModelServer(model or make_model(0), tokenizer, **faults))
        config = configure({}, "here", servers[-1].url, ["--sampling.max_tokens", "16", "--threads", "1", *overrides])
        plan = Plan(config, responses=responses, request=request or {})
        own = make_model(0).to(dtype)
        prompts = encode_prompts(read_prompts(None), tokenizer, chat=False, most=400)
        return bench_of(plan, prompts, own, tokenizer, maker(own, tokenizer, tmp_path, None), lambda *_: None)

    yield make
    for server in servers:
        server.close()


def named(found):
    return {f.name: f for f in found.findings}


def told(bench):
    return {cause.name: cause for cause in precisions(bench, bench.observe("here"))}


def test_a_server_in_half_precision_beside_a_wide_trainer_is_seen(bench):
    found = told(bench(precision="bfloat16"))["engine precision"]
    assert found.state == "seen" and "rounded to half precision" in found.said
    assert 1e-4 < found.usual < 0.1


def test_half_precision_on_both_sides_is_no_cause(bench):
    found = told(bench(precision="bfloat16", dtype=torch.bfloat16))["engine precision"]
    assert found.state == "not set" and "no wider" in found.said


def test_float32_on_both_sides_is_no_cause(bench):
    found = told(bench())["engine precision"]
    assert found.state == "not set" and "as close as in float32" in found.said


def test_numbers_that_no_precision_explains_are_left_open(bench, make_model):
    found = told(bench(model=make_model(1)))["engine precision"]
    assert found.state == "not allowed" and "not rounded to half precision" in found.said


@pytest.mark.parametrize(("info", "dtype", "state"), [(HALF, "bfloat16", "seen"), (WIDE, "float32", "not set")])
def test_a_server_is_taken_at_its_word(bench, info, dtype, state):
    found = told(bench(info=info))["engine precision"]
    assert found.state == state and f"says that it computes in {dtype}" in found.said
    assert (found.usual == 0.0) == (state == "not set")


def test_coarse_numerics_that_a_server_tells_of_are_seen(bench):
    found = told(bench(info=COARSE))
    assert found["KV-cache precision"].state == "seen" and "fp8_e5m2" in found["KV-cache precision"].said
    assert found["quantisation"].state == "seen" and "fp8" in found["quantisation"].said


def test_an_answer_of_another_shape_says_nothing():
    class Client:
        def __init__(self, answer):
            self.answer = answer

        def get(self, path):
            return self.answer

    class Engine:
        def __init__(self, answer):
            self.client = Client(answer)

    assert declared(Engine(HALF)) == Declared("bfloat16")
    for answer in (None, {}, {"vllm_config": "x"}, {"vllm_config": {"model_config": [1]}}):
        assert declared(Engine(answer)) == Declared()


def test_defaults_of_the_server_are_named_though_this_run_does_not_use_them(bench):
    made = bench(defaults={"temperature": 0.7, "top_p": 0.8})
    found = own_defaults(made, made.observe("here"))
    assert found.state == "measured" and found.supposed and found.change.share.low > 0.9
    assert "temperature, top_p, top_k, min_p" in found.said and "excludes tokens" in found.said
    assert made.engine.request == {}


def test_defaults_that_change_nothing_are_no_cause(bench):
    made = bench()
    assert own_defaults(made, made.observe("here")).state == "not set"


@pytest.mark.slow
def test_a_field_that_the_framework_does_not_send_is_left_to_the_server(bench):
    made = bench(defaults={"top_p": 0.8}, request={"top_p": None})
    found = preflight(made)
    assert {"support_mismatch", "truncation"} & named(found).keys() and found.exit_code() == 1


@pytest.mark.slow
def test_the_whole_preflight_names_a_server_in_half_precision(bench):
    found = named(preflight(bench(precision="bfloat16")))
    assert found["engine_precision"].severity == "info" and "bfloat16" in found["engine_precision"].headline
    assert "other_weights" not in found


@pytest.mark.slow
def test_weights_that_are_a_little_off_are_named_by_what_half_precision_makes_of_the_model(bench, make_model):
    other = make_model(0)
    with torch.no_grad():
        for tensor in other.parameters():
            if tensor.ndim > 1:
                tensor.add_(0.03 * tensor.std() * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(1)))
    found = preflight(bench(model=other))
    assert found.gap.size.value < 0.15
    assert "other_weights" in named(found)


@pytest.mark.slow
def test_what_was_not_looked_for_is_not_blamed_on_the_weights(bench, make_model, tokenizer):
    made = bench(model=make_model(1))
    made.plan = type(made.plan)(**{**vars(made.plan), "switches": False})
    found = named(preflight(made))
    assert "unexplained_gap" in found and "other_weights" not in found
