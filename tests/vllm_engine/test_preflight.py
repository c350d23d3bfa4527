"""A preflight of a real vLLM, in process and as a server: fine ones are cleared, planted faults are named."""

import threading

import pytest

pytest.importorskip("vllm")

from holdfast.errors import EngineError
from holdfast.preflight.bench import bench_of, maker
from holdfast.preflight.inspect import preflight
from holdfast.preflight.plan import Plan, configure
from holdfast.preflight.prompts import encode_prompts
from holdfast.rollout.outside.vllm import VllmEngine

EOS = 2
PROMPTS = [f"add {a} and {b} = " for a in range(4) for b in range(4)]
SMALL = ("--sampling.max_tokens", "24", "--engine.precision", "float32", "--engine.cache_gib", "0.25")


@pytest.fixture(scope="module")
def fly(make_model, tokenizer, model_folder, tmp_path_factory):
    """fly(engine, *overrides): the whole preflight of 64 responses, with the trainer on make_model(`weights`)."""

    def run(engine, *overrides, weights=0, make=None, **options):
        plan = Plan(configure({}, str(model_folder), engine, [*SMALL, *overrides]), **{"responses": 64} | options)
        model = make_model(weights)
        make = make or maker(model, tokenizer, tmp_path_factory.mktemp("engine"), plan.sync_folder)
        prompts = encode_prompts(PROMPTS, tokenizer, chat=False, engine_template=None, most=400)
        return preflight(bench_of(plan, prompts, model, tokenizer, make, lambda *_: None))

    return run


def named(result):
    return {finding.name for finding in result.findings if finding.severity != "info"}


def test_a_fine_engine_in_process_is_cleared_and_takes_new_weights(fly):
    result = fly("vllm", "--engine.context", "512", switches=False)
    assert named(result) == set() and result.exit_code() == 0
    assert result.sync.verdict == "synced" and result.gap.size.high < 1e-4
    assert result.proposal is not None


def test_an_engine_in_process_that_began_with_other_weights_is_named(fly, make_model, tokenizer, tmp_path):
    make_model(1).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)

    def make(settings):
        return VllmEngine(tmp_path, eos_token_id=EOS, context=512, cache_gib=settings.cache_gib)

    result = fly("vllm", "--engine.context", "512", make=make, switches=False)
    assert "other_weights" in named(result) and result.sync.verdict == "synced"
    assert result.proposal is None


def test_a_fine_server_is_cleared(fly, process, model_folder):
    process.start(model_folder, patience=600.0)
    result = fly(process.client.url)
    assert named(result) == set() and result.exit_code() == 0
    causes = {cause.name: cause for cause in result.causes}
    assert causes["temperature"].state == causes["repetition penalty"].state == "measured"
    assert result.sync.verdict == "not tried"


@pytest.mark.parametrize(
    ("overrides", "weights", "name"),
    [
        (("--sampling.temperature", "0.7", "--sampling.trainer_support", "raw"), 0, "temperature_mismatch"),
        ((), 1, "other_weights"),
    ],
    ids=["temperature", "weights"],
)
def test_what_is_wrong_with_a_server_is_named(fly, process, model_folder, overrides, weights, name):
    process.start(model_folder, patience=600.0)
    assert name in named(fly(process.client.url, *overrides, weights=weights))


@pytest.mark.parametrize(
    ("options", "finding", "said"),
    [
        (("--dtype", "bfloat16"), "engine_precision", "computes in bfloat16"),
        (("--kv-cache-dtype", "fp8"), "kv-cache_precision", "keeps keys and values in fp8"),
        (
            ("--override-generation-config", '{"temperature": 0.7, "top_p": 0.8, "repetition_penalty": 1.3}'),
            "server_defaults",
            "the report excludes tokens",
        ),
    ],
    ids=["bfloat16", "cache in 8 bits", "defaults"],
)
def test_how_a_server_was_started_is_named(fly, prepared, model_folder, options, finding, said):
    process = prepared(*options)
    process.start(model_folder, patience=600.0)
    found = {f.name: f for f in fly(process.client.url).findings}
    process.stop()
    assert said in found[finding].headline
    assert ("repetition_penalty" in found) == (finding == "server_defaults")
    assert "other_weights" not in found


def test_a_server_that_dies_in_the_middle_is_an_error_and_no_report(fly, prepared, model_folder, tokenizer, tmp_path):
    process = prepared()
    process.start(model_folder, patience=600.0)

    def make(settings):
        engine = maker(None, tokenizer, tmp_path, None)(settings)
        threading.Timer(0.5, process.stop).start()
        return engine

    with pytest.raises(EngineError, match=r"was asked .* and failed"):
        fly(process.client.url, "--engine.retries", "1", make=make, responses=256)
