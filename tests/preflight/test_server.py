"""A running server: looked at without touching its weights, synced where asked to; slow, dying and other servers."""

import json

import pytest
import torch

from holdfast.cli import dispatch
from holdfast.preflight.bench import bench_of, maker
from holdfast.preflight.inspect import preflight
from holdfast.preflight.plan import Plan, configure
from holdfast.preflight.prompts import encode_prompts, read_prompts
from holdfast.rollout.models import character_tokenizer
from serving import ModelServer

SMALL = ["--sampling.max_tokens", "16", "--threads", "1", "--responses", "64"]


@pytest.fixture
def serve(make_model, tokenizer):
    """serve(model, **faults): the address of a server, ended with the test."""
    servers = []

    def start(model=None, tokenizer_=tokenizer, **options):
        servers.append(ModelServer(model or make_model(0), tokenizer_, **options))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def look(server, make_model, tokenizer, tmp_path, *overrides, **options):
    config = configure({}, "here", server.url, ["--sampling.max_tokens", "16", "--threads", "1", *overrides])
    plan = Plan(config, **{"responses": 96} | options)
    model = make_model(0)
    prompts = encode_prompts(read_prompts(None), tokenizer, chat=False, most=400)
    make = maker(model, tokenizer, tmp_path, plan.sync_folder)
    return preflight(bench_of(plan, prompts, model, tokenizer, make, lambda *_: None))


def cause(found, name):
    return next(c for c in found.causes if c.name == name)


@pytest.mark.slow
def test_a_healthy_server_is_cleared_and_its_weights_are_left_alone(serve, make_model, tokenizer, tmp_path):
    server = serve()
    found = look(server, make_model, tokenizer, tmp_path, "--engine.exact_kl", "false", "--engine.top_logprobs", "5")
    assert found.tone == "clean", found.headline
    assert found.sync.verdict == "not tried" and "--sync-folder" in found.sync.said
    assert server.version == "default"
    assert cause(found, "prefix caching").state == "measured"
    assert cause(found, "head precision").state == "not allowed"
    assert cause(found, "chat template").state == "not set"
    assert "server makes the same" in cause(found, "chat template").said
    assert found.audit.statistics.mean("tv_upper").value < 1


@pytest.mark.slow
def test_a_server_is_synced_and_gets_its_weights_back(serve, make_model, tokenizer, tmp_path):
    server = serve()
    found = look(server, make_model, tokenizer, tmp_path, sync_folder=tmp_path / "shared", switches=False)
    assert found.sync.verdict == "synced"
    first = make_model(0).state_dict()
    assert all(torch.equal(tensor, first[name]) for name, tensor in server.model.state_dict().items())


@pytest.mark.slow
def test_other_weights_behind_the_address_are_named(serve, make_model, tokenizer, tmp_path):
    found = look(serve(make_model(1)), make_model, tokenizer, tmp_path)
    assert found.findings[0].severity == "critical"
    assert "other_weights" in {f.name for f in found.findings}


@pytest.mark.slow
def test_penalty_and_template_of_a_server_s_own_are_named(serve, make_model, tokenizer, tmp_path):
    found = look(serve(penalty=1.3, prefix="You are a parrot. "), make_model, tokenizer, tmp_path)
    assert "repetition_penalty" in {f.name for f in found.findings if f.severity == "critical"}
    assert cause(found, "repetition penalty").change.share.low > 0.9
    told = cause(found, "chat template")
    assert told.supposed and "100% of the prompts would become others" in told.said
    assert {f.severity for f in found.findings if f.name == "chat_template"} <= {"info"}


@pytest.mark.slow
def test_a_penalty_that_is_asked_for_is_sent_and_switched_off(serve, make_model, tokenizer, tmp_path):
    server = serve(penalty=1.0001)
    found = look(
        server, make_model, tokenizer, tmp_path, request={"repetition_penalty": 1.3}, sync_folder=tmp_path / "shared"
    )
    assert server.bodies[0]["repetition_penalty"] == 1.3
    assert "repetition_penalty 1.3 switched off" in cause(found, "repetition penalty").said
    assert found.sync.verdict == "synced", found.sync.said


@pytest.mark.parametrize(
    ("faults", "options", "message"),
    [
        ({"logprobs": False}, (), "has no log-probabilities"),
        ({"delay": 5.0}, ("--engine.timeout", "0.3"), "did not answer within 0.3 s"),
        ({"lives": 20}, ("--engine.retries", "0"), "was asked once and failed"),
        ({"tokenizer_": character_tokenizer("zyxwv")}, (), "another tokenizer than the trainer's"),
    ],
)
def test_what_a_server_does_wrong_is_one_sentence(serve, folder, capsys, faults, options, message):
    url = serve(**faults).url
    assert dispatch(["preflight", "--model", str(folder), "--engine", url, "--json", *SMALL, *options]) == 2
    said = capsys.readouterr()
    last = said.err.strip().splitlines()[-1]
    assert last.startswith("holdfast preflight: ") and message in last
    assert said.out == ""


@pytest.mark.slow
def test_a_server_that_cannot_reload_is_a_failed_sync(serve, make_model, tokenizer, tmp_path):
    server = serve(reloads=False)
    found = look(server, make_model, tokenizer, tmp_path, sync_folder=tmp_path / "shared", switches=False)
    assert found.sync.verdict == "failed" and found.exit_code() == 1
    assert "cannot reload weights" in found.findings[0].headline


@pytest.mark.slow
def test_the_command_on_a_server_as_json(serve, folder, capsys):
    argv = ["preflight", "--model", str(folder), "--engine", serve().url, "--json", "--no-switches", *SMALL]
    code = dispatch([*argv, "--responses", "96"])
    found = json.loads(capsys.readouterr().out)
    assert code == 0, found["findings"]
    assert found["plan"]["engine"]["kind"] == "server"
