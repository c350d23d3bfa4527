"""The client of an inference server, against one that misbehaves in every way that servers do."""

import contextlib
import json
import math
import socket
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from holdfast.core.divergences import top_k
from holdfast.errors import ConfigError, EngineError
from holdfast.rollout.engine import Engine, Sampling
from holdfast.rollout.models import character_tokenizer, tiny_model
from holdfast.rollout.outside.external import request_seed
from holdfast.rollout.outside.http import HttpClient
from holdfast.rollout.outside.process import ServerProcess
from holdfast.rollout.outside.server import ServerEngine

EOS = 2
# five tokens; the sampled one is always the likeliest, then the end token
TABLE = {f"token_id:{i}": value for i, value in enumerate([-9999.0, -3.0, -2.0, -0.5, -1.5])}


class FakeServer:
    """Answers like vLLM's server; `fail(path, times, how)` makes it answer otherwise, `change` edits its answers."""

    def __init__(self, tokenizer):
        self.tokenizer, self.asked, self.bodies = tokenizer, [], []
        self.faults, self.version, self.loaded, self.change, self.missing = (
            {},
            "default",
            [],
            lambda answer: None,
            set(),
        )
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                fake.serve(self, None)

            def do_POST(self):
                fake.serve(self, json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

            def log_message(self, *_):
                pass

        class Server(ThreadingHTTPServer):
            request_queue_size = 64

        self.http = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def fail(self, path, times, how):
        self.faults[path] = [how] * times

    def serve(self, handler, body):
        path = handler.path
        self.asked.append(path)
        fault = self.faults.get(path, [None]).pop() if self.faults.get(path) else None
        if callable(fault):
            return fault(handler)
        answer = None if path in self.missing else self.answer(path, body)
        text = b"" if answer is None else json.dumps(answer).encode()
        handler.send_response(404 if answer is None else 200)
        handler.send_header("Content-Length", str(len(text)))
        handler.end_headers()
        handler.wfile.write(text)
        return None

    def answer(self, path, body):
        if path == "/v1/models":
            return {"data": [{"id": "tiny", "max_model_len": 64}]}
        if path == "/tokenize":
            tokens = self.tokenizer.encode(body["prompt"], add_special_tokens=False)
            return {"tokens": [1] * body["add_special_tokens"] + tokens}
        if path == "/collective_rpc":
            folder = Path(body["kwargs"]["weights_path"])
            assert folder.is_absolute(), "the server may run elsewhere"
            self.loaded.append(
                (body["method"], {p.name for p in folder.iterdir()}, load_file(folder / "model.safetensors"))
            )
            return {"results": [None]}
        if path == "/reset_prefix_cache":
            return {"success": True}
        if path == "/update_weight_version":
            self.version = body["new_version"]
            return {"success": True}
        if path == "/weight_info":
            return {"weight_version": self.version}
        if path == "/inference/v1/generate":
            self.bodies.append(body)
            self.change(answer := generated())
            return answer
        assert path == "/v1/completions"
        self.bodies.append(body)
        tokens = [3, 3, EOS]
        choice = {
            "token_ids": tokens,
            "prompt_token_ids": body["prompt"],
            "finish_reason": "stop",
            "logprobs": {"token_logprobs": [-0.5, -0.5, -2.0], "top_logprobs": [dict(TABLE) for _ in tokens]},
        }
        answer = {"choices": [choice], "usage": {"completion_tokens": 3}}
        self.change(answer)
        return answer


def generated():
    """As vLLM 0.32 answers with masks: the sampled token first, then others by rank; here of top_k = 3."""
    tokens, named = [3, 4, EOS], [[3], [3, 4], [2, 3, 4]]
    rows = [
        sorted(((TABLE[f"token_id:{t}"], t) for t in range(1, 5)), key=lambda p: (p[1] != t, -p[0])) for t in tokens
    ]
    content = [
        {"token_id": row[0][1], "logprob": row[0][0], "rank": 1}
        | {"top_logprobs": [{"token_id": t, "logprob": value, "rank": None} for value, t in row[:3]]}
        for row in rows
    ]
    choice = {"index": 0, "finish_reason": "stop", "token_ids": tokens, "logprobs": {"content": content}}
    return {"request_id": "a", "choices": [choice | {"sampling_mask": named, "routed_experts": None}]}


@pytest.fixture(scope="module")
def tokenizer():
    return character_tokenizer("0123456789+=")


@pytest.fixture
def server(tokenizer):
    fake = FakeServer(tokenizer)
    yield fake
    fake.http.shutdown()
    fake.http.server_close()


def client(server, **options):
    return HttpClient(server.url, **{"timeout": 5.0, "retries": 2, "backoff": 0.001} | options)


@pytest.fixture
def engine(server, tokenizer, tmp_path):
    return ServerEngine(client(server), folder=tmp_path / "weights", eos_token_id=EOS, tokenizer=tokenizer)


def draw(engine, prompts=((1, 4), (1, 5, 6)), **options):
    sampling = Sampling(temperature=options.pop("temperature", 1.0), top_p=0.9, top_k=4, max_tokens=8)
    return engine.generate(prompts, sampling, seed=7, sequence_ids=range(len(prompts)), **options)


def broken_off(handler):
    """Half of what was announced, then the connection is closed."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [{"token_ids": [3, 3')


def error_500(handler):
    handler.send_response(500)
    handler.send_header("Content-Length", "0")
    handler.end_headers()


def too_many(handler):
    handler.send_response(429)
    handler.send_header("Content-Length", "0")
    handler.end_headers()


def hang_up(handler):
    handler.connection.shutdown(socket.SHUT_RDWR)


def babble(handler):
    """No HTTP at all."""
    handler.wfile.write(b"who is there?\r\n\r\n")


def refuse(handler, text="Requested sample logprobs of 30, which is greater than max allowed: 20", status=400):
    answer(handler, json.dumps({"error": {"message": text}}), status)


def answer(handler, text, status):
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(text)))
    handler.end_headers()
    handler.wfile.write(text.encode())


def trickle(handler):
    """One byte now and then: no single read times out."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    with contextlib.suppress(ConnectionError):
        for _ in range(200):
            handler.wfile.write(b" ")
            time.sleep(0.01)


def trickle_headers(handler):
    """A header line now and then."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
    with contextlib.suppress(OSError):
        for number in range(90):
            handler.wfile.write(f"X-{number}: y\r\n".encode())
            time.sleep(0.1)


def trickle_without_length(handler):
    """What has come when the time is over would look whole."""
    handler.wfile.write(b"HTTP/1.0 200 OK\r\n\r\n{}")
    with contextlib.suppress(OSError):
        for _ in range(90):
            handler.wfile.write(b" ")
            time.sleep(0.1)


@pytest.mark.parametrize("how", [trickle_headers, trickle_without_length])
@pytest.mark.slow
def test_a_request_has_one_deadline_however_the_server_trickles(server, how):
    server.fail("/weight_info", 1, how)
    with pytest.raises(EngineError, match=r"did not answer within 0\.5 s"):
        client(server, timeout=0.5).get("/weight_info")
    assert server.asked.count("/weight_info") == 1


def whole_json_of_half_the_length(handler):
    """The body reads well, and less of it came than was announced."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"weight_version": "other"}')


def test_half_an_answer_is_none_even_if_it_reads_well(server):
    server.fail("/weight_info", 1, whole_json_of_half_the_length)
    assert client(server).get("/weight_info") == {"weight_version": "default"}
    server.fail("/weight_info", 9, whole_json_of_half_the_length)
    with pytest.raises(EngineError, match="3 times and failed, the last time with IncompleteRead"):
        client(server).get("/weight_info")


def announced(handler):
    handler.send_response(200)
    handler.send_header("Content-Length", str(1 << 40))
    handler.end_headers()
    with contextlib.suppress(OSError):
        handler.wfile.write(b" " * 100)


def endless(handler):
    handler.wfile.write(b"HTTP/1.0 200 OK\r\n\r\n")
    with contextlib.suppress(OSError):
        while True:
            handler.wfile.write(b" " * (1 << 16))


@pytest.mark.parametrize("how", [announced, endless])
def test_an_answer_without_end_is_refused(server, how):
    server.fail("/weight_info", 1, how)
    with pytest.raises(EngineError, match="more than 100000 bytes"):
        client(server, timeout=60.0).post("/weight_info", {}, largest=100_000)


@pytest.mark.parametrize("text", ["[" * 200_000, '{"a":' * 200_000, "[1]", '"text"', "1", "null", "9" * 10_000, "{'a'"])
@pytest.mark.parametrize("status", [200, 400])
def test_deep_odd_and_other_json_is_an_error(server, text, status):
    server.fail("/weight_info", 9, lambda handler: answer(handler, text, status))
    with pytest.raises(EngineError, match=r"no JSON object|not whole JSON|refused the request"):
        client(server, retries=0).get("/weight_info")


@pytest.mark.parametrize(
    "change",
    [
        {"choices": {"a": 1}},
        {"choices": [1]},
        {"choices": "text"},
        {"usage": [1]},
        {"usage": {"completion_tokens": "3"}},
        {"token_ids": ["3", "3", "2"]},
        {"token_ids": [3, 3, -2]},
        {"token_ids": [3.0, 3, 2]},
        {"token_ids": 3},
        {"logprobs": [1]},
        {"logprobs": {"token_logprobs": "abc"}},
        {"logprobs": {"token_logprobs": [[1], 2, 3]}},
        {"logprobs": {"token_logprobs": [-1, -1, -1], "top_logprobs": [1, 2, 3]}},
        {"logprobs": {"token_logprobs": [-1, -1, -1], "top_logprobs": [{"token_id:1": "x"}] * 3}},
        {"finish_reason": ["stop"]},
    ],
    ids=str,
)
def test_answers_of_another_shape_are_errors_that_name_the_sequence(server, engine, change):
    def edit(answer):
        for name, value in change.items():
            (answer if name in answer else answer["choices"][0])[name] = value

    server.change = edit
    with pytest.raises(EngineError, match="sequence 0"):
        draw(engine, prompts=[(1, 4)], return_top=1)


def test_an_answer_becomes_a_completion(server, engine):
    assert isinstance(engine, Engine)
    first, second = draw(engine, return_top=2)
    assert first.token_ids == second.token_ids == (3, 3, EOS)
    assert first.logprobs.tolist() == [-0.5, -0.5, -2.0]
    assert (first.finish_reason, first.policy_version, first.distributions) == ("stop", 0, None)
    assert first.top_ids.tolist() == [[3, 4]] * 3
    assert first.top_logprobs.tolist() == [[-0.5, -1.5]] * 3
    # each sequence is asked for on its own, with its own seed, on exactly the sampling that is recorded
    assert sorted(body["prompt"] for body in server.bodies) == [[1, 4], [1, 5, 6]]
    body = min(server.bodies, key=lambda body: len(body["prompt"]))
    assert body == {
        "model": "tiny",
        "prompt": [1, 4],
        "max_tokens": 8,
        "temperature": 1.0,
        "top_p": 0.9,
        "top_k": 4,
        "min_p": 0.0,
        "seed": request_seed(7, 0, 2),
        "logprobs": 2,
        "stop_token_ids": [EOS],
        "ignore_eos": True,
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
    }


def test_responses_to_one_prompt_are_drawn_apart(server, engine):
    draw(engine, prompts=[(1, 4)] * 3)
    assert {body["seed"] for body in server.bodies} == {request_seed(7, i, 2) for i in range(3)}


def test_without_top_only_the_sampled_token_is_read(server, engine):
    assert draw(engine)[0].top_ids is None
    assert {body["logprobs"] for body in server.bodies} == {1}


def test_whole_distributions_have_their_tokens_in_order(server, engine):
    completion = draw(engine, return_distributions=True)[0]
    assert {body["logprobs"] for body in server.bodies} == {-1}
    assert completion.distributions.tolist() == [[-torch.inf, -3.0, -2.0, -0.5, -1.5]] * 3


def test_a_greedy_answer_is_certain(engine):
    assert draw(engine, temperature=0.0)[0].logprobs.tolist() == [0.0] * 3


def test_seeds_differ_by_seed_sequence_and_start():
    seeds = {request_seed(seed, i, start) for seed in range(5) for i in range(20) for start in (3, 4)}
    assert len(seeds) == 200
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize("fault", [error_500, too_many, broken_off, hang_up, babble])
def test_what_may_pass_is_tried_again_after_ever_longer_waits(server, engine, fault, monkeypatch):
    waits = []
    monkeypatch.setattr(time, "sleep", waits.append)
    server.fail("/v1/completions", 2, fault)
    assert draw(engine, prompts=[(1, 4)])[0].token_ids == (3, 3, EOS)
    assert server.asked.count("/v1/completions") == 3
    assert waits == [0.001, 0.002]


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (error_500, "status 500: no message"),
        (broken_off, r"IncompleteRead\(32 bytes read, 968 more expected\)"),
        (hang_up, "RemoteDisconnected|ConnectionReset"),
        (babble, "BadStatusLine: who is there"),
        (lambda handler: answer(handler, "", 302), "status 302: no message"),
    ],
)
def test_what_does_not_pass_is_an_error_after_a_bounded_number_of_tries(server, engine, fault, message):
    server.fail("/v1/completions", 99, fault)
    with pytest.raises(EngineError, match=rf"/v1/completions was asked 3 times and failed.*({message})"):
        draw(engine, prompts=[(1, 4)])
    assert server.asked.count("/v1/completions") == 3


@pytest.mark.parametrize("fault", [lambda handler: time.sleep(2), trickle])
def test_a_server_that_hangs_is_an_error_and_not_asked_again(server, tokenizer, tmp_path, fault):
    engine = ServerEngine(client(server, timeout=1.0), folder=tmp_path, eos_token_id=EOS, tokenizer=tokenizer)
    server.fail("/v1/completions", 9, fault)
    with pytest.raises(EngineError, match=r"did not answer within 1 s: the server hangs.*engine.timeout"):
        draw(engine, prompts=[(1, 4)])
    assert server.asked.count("/v1/completions") == 1


def test_a_refused_request_is_not_repeated(server, engine):
    server.fail("/v1/completions", 9, refuse)
    with pytest.raises(EngineError, match="refused the request with status 400: Requested sample logprobs of 30"):
        draw(engine, prompts=[(1, 4)])
    assert server.asked.count("/v1/completions") == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"error": {"message": "no such key", "type": "x"}}', "no such key"),
        ('{"message": "too long"}', "too long"),
        ('{"detail": "not found"}', "not found"),
        ('{"code": 7}', "{'code': 7}"),
        ("<html>" + "x" * 999, "<html>x{294}$"),
    ],
)
def test_the_server_s_own_words_are_passed_on(server, engine, text, words):
    server.fail("/v1/completions", 1, lambda handler: answer(handler, text, 401))
    with pytest.raises(EngineError, match=rf"with status 401: {words}"):
        draw(engine, prompts=[(1, 4)])


def test_an_empty_answer_is_an_answer(server):
    server.fail("/v1/models", 1, lambda handler: answer(handler, "", 200))
    assert client(server).get("/v1/models") == {}


def test_the_key_is_sent_where_there_is_one(server, monkeypatch):
    keys = []

    def listen(handler):
        keys.append(handler.headers["Authorization"])
        answer(handler, "{}", 200)

    server.fail("/v1/models", 2, listen)
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    client(server).get("/v1/models")
    monkeypatch.setenv("VLLM_API_KEY", "secret")
    client(server).get("/v1/models")
    assert keys == [None, "Bearer secret"]


def test_an_encrypted_address_is_not_asked_in_the_open(server):
    encrypted = HttpClient(server.url.replace("http:", "https:"), timeout=60.0, retries=0)
    with pytest.raises(EngineError, match=r"was asked once and failed, the last time with SSLError"):
        encrypted.get("/v1/models")


def edit(path, value):
    """An edit of the answer's first choice (or of its usage), by path."""

    def change(answer):
        place = answer if path[0] == "usage" else answer["choices"][0]
        for key in path[:-1]:
            place = place[key]
        if value is KeyError:
            del place[path[-1]]
        else:
            place[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["logprobs"], None, "sequence 0: the answer has no log-probabilities"),
        (["logprobs"], KeyError, "sequence 0: the answer has no log-probabilities"),
        (["logprobs", "token_logprobs"], [], "has no log-probabilities"),
        (["logprobs", "token_logprobs"], [-0.5, None, -1.0], "has no log-probabilities"),
        (["logprobs", "token_logprobs"], [-0.5, -1.0], "3 tokens, 2 log-probabilities, 3 tokens counted"),
        (["usage", "completion_tokens"], 7, "3 tokens, 3 log-probabilities, 7 tokens counted by the server, 8 asked"),
        (["token_ids"], [3] * 9, "9 tokens, 3 log-probabilities"),
        (["token_ids"], KeyError, "no token ids"),
        (["token_ids"], [], "0 tokens, 3 log-probabilities"),
        (["prompt_token_ids"], [1], "continued another prompt than it was given"),
        (["finish_reason"], "abort", "ended with 'abort'"),
        (["logprobs", "token_logprobs"], [-0.5, 0.7, -1.0], r"log-probability 0\.69\d* at token 1 of 3"),
        (["logprobs", "token_logprobs"], [-0.5, -0.5, -9999.0], "log-probability -inf at token 2 of 3"),
    ],
)
def test_an_answer_that_cannot_be_trained_on_is_an_error(server, engine, path, value, message):
    server.change = edit(path, value)
    with pytest.raises(EngineError, match=message):
        draw(engine, prompts=[(1, 4)])


def test_a_response_longer_than_asked_for_is_an_error(server, engine):
    def change(answer):
        for path, value in ((["token_ids"], [3] * 9), (["logprobs", "token_logprobs"], [-0.5] * 9)):
            edit(path, value)(answer)
        answer["usage"]["completion_tokens"] = 9

    server.change = change
    with pytest.raises(EngineError, match="9 tokens, 9 log-probabilities, 9 tokens counted by the server, 8 asked for"):
        draw(engine, prompts=[(1, 4)])


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        (None, "asked for 2 tokens per position, the server reports 0 at 0 of 3 positions"),
        ([TABLE] * 2, "reports 5 at 2 of 3 positions"),
        ([TABLE, TABLE, {"token_id:3": -0.5}], "reports 1 at 3 of 3 positions"),
        ([{"token_id:3": -0.5}] * 3, "reports 1 at 3 of 3 positions; raise its --max-logprobs"),
        ([{" the": -0.5, " a": -1.0}] * 3, "named by text"),
    ],
)
def test_likeliest_tokens_that_are_not_there_are_an_error(server, engine, tables, message):
    server.change = edit(["logprobs", "top_logprobs"], tables)
    with pytest.raises(EngineError, match=message):
        draw(engine, prompts=[(1, 4)], return_top=2)


def test_a_sampled_token_that_is_not_among_the_likeliest_is_not_taken_for_one(server, engine):
    """vLLM names the sampled token first and then the likeliest, so a table has K or K + 1 tokens."""
    likeliest = {"token_id:3": -0.5, "token_id:4": -1.5}
    tables = [likeliest, {"token_id:4": -1.5, "token_id:3": -0.5}, {f"token_id:{EOS}": -2.0} | likeliest]
    server.change = edit(["logprobs", "top_logprobs"], tables)
    (completion,) = draw(engine, prompts=[(1, 4)], return_top=2)
    assert completion.top_ids.tolist() == [[3, 4]] * 3
    assert completion.top_logprobs.tolist() == [[-0.5, -1.5]] * 3
    assert completion.logprobs.tolist() == [-0.5, -0.5, -2.0]


@pytest.mark.parametrize("digits", [1, 2, 3])
def test_what_a_server_rounds_off_its_report_moves_the_bounds_by_no_more(server, engine, digits):
    """Rounding by h takes each p to p' = p e^(±h), so their sum, and the tail, move by at most e^h - 1, and so does TV.

    KL of the merged outcomes is convex in p: it rises by at most Σ (p' - p) log(p'/q), where Σ |p' - p| <= 2 (e^h - 1).
    """
    generator = torch.Generator().manual_seed(digits)
    p, q = (torch.randn(2, 3, 5, generator=generator, dtype=torch.float64) / 2).log_softmax(dim=-1)
    rounded = [[round(value, digits) for value in row] for row in p.tolist()]
    tables = [{f"token_id:{i}": value for i, value in enumerate(row)} for row in rounded]
    server.change = edit(["logprobs", "top_logprobs"], tables)
    (completion,) = draw(engine, prompts=[(1, 4)], return_top=3)
    reported, trainer = completion.top_logprobs.double(), q.gather(1, completion.top_ids)
    found, exact = top_k(trainer, reported), top_k(trainer, p.gather(1, completion.top_ids))
    kl, tv = (p.exp() * (p - q)).sum(dim=1), 0.5 * (p.exp() - q.exp()).abs().sum(dim=1)
    moved = math.expm1(0.5 * 10.0**-digits) + 1e-6
    assert torch.all(found.tv_lower.value <= tv + moved) and torch.all(tv <= found.tv_upper.value + moved)
    for name in ("tv_lower", "tv_upper"):
        assert torch.all((getattr(found, name).value - getattr(exact, name).value).abs() <= moved)
    merged = [torch.cat([kept, torch.log1p(-kept.exp().sum(dim=1, keepdim=True))], 1) for kept in (reported, trainer)]
    steepest = (merged[0] - merged[1]).abs().amax(dim=1)
    assert torch.all(found.kl_lower.value <= kl + 2 * moved * steepest)


def test_requests_are_on_their_way_together(server, engine):
    both = threading.Barrier(2, timeout=60)

    def meet(handler):
        both.wait()
        error_500(handler)

    server.fail("/v1/completions", 2, meet)
    assert len(draw(engine)) == 2
    assert not both.broken


def test_one_bad_answer_among_many_stops_the_call(server, engine):
    server.fail("/v1/completions", 1, refuse)
    engine.concurrency = 1
    with pytest.raises(EngineError, match="refused"):
        draw(engine, prompts=[(1, 4)] * 40)
    assert server.asked.count("/v1/completions") < 40, "the others are not asked for any more"


def test_what_servers_may_leave_out_is_not_missed(server, engine):
    def change(answer):
        edit(["prompt_token_ids"], KeyError)(answer)
        edit(["finish_reason"], "length")(answer)
        del answer["usage"]

    server.change = change
    (completion,) = draw(engine, prompts=[(1, 4)])
    assert (completion.token_ids, completion.finish_reason) == ((3, 3, EOS), "length")


def test_an_answer_without_a_response_is_an_error(server, engine):
    server.change = dict.clear
    with pytest.raises(EngineError, match="the answer has no token ids"):
        draw(engine, prompts=[(1, 4)])
    server.missing = {"/v1/completions"}
    with pytest.raises(EngineError, match="has no /v1/completions, or no longer serves 'tiny'"):
        draw(engine, prompts=[(1, 4)])


def test_a_sync_hands_over_the_weights_and_is_checked(server, engine, tokenizer):
    model = tiny_model(tokenizer, hidden=16, layers=1, heads=2)
    (engine.folder / "version-1").mkdir(parents=True)
    (engine.folder / "version-1" / "model-00002-of-00002.safetensors").touch()
    engine.sync(model, 1)
    assert "model-00002-of-00002.safetensors" not in server.loaded[-1][1], "left there by an earlier run"
    engine.sync(model, 2)
    method, files, weights = server.loaded[-1]
    assert method == "reload_weights"
    # a reload looks for every weight under its own name, tied ones too
    assert weights.keys() == model.state_dict().keys() >= {"lm_head.weight", "model.embed_tokens.weight"}
    assert all(torch.equal(weights[name], tensor) for name, tensor in model.state_dict().items())
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= files
    assert [folder.name for folder in engine.folder.iterdir()] == ["version-2"]
    assert server.asked.count("/reset_prefix_cache") == 2
    assert draw(engine)[0].policy_version == engine.policy_version == 2
    server.version = "default"
    with pytest.raises(EngineError, match=r"has weights 'default', not those of the last sync.*sync again"):
        draw(engine)
    engine.close()
    assert not list(engine.folder.iterdir())
    for use in (draw, lambda engine: engine.sync(model, 3)):
        with pytest.raises(EngineError, match="the engine is closed"):
            use(engine)


def test_a_server_that_cannot_reload_or_forget_says_so(server, engine, tokenizer):
    model = tiny_model(tokenizer, hidden=16, layers=1, heads=2)
    server.missing = {"/collective_rpc"}
    with pytest.raises(EngineError, match=r"cannot reload weights: start it with VLLM_SERVER_DEV_MODE=1"):
        engine.sync(model, 1)
    assert engine.policy_version == 0
    server.missing = {"/reset_prefix_cache"}
    with pytest.raises(EngineError, match="could not drop its cached prefixes"):
        engine.sync(model, 1)


def test_every_sync_leaves_a_mark_of_its_own(server, tokenizer, tmp_path, monkeypatch):
    """Also from a folder that is named relative to the trainer's."""
    monkeypatch.chdir(tmp_path)
    engine = ServerEngine(client(server), folder=Path("weights"), eos_token_id=EOS, tokenizer=tokenizer)
    model, marks = tiny_model(tokenizer, hidden=16, layers=1, heads=2), []
    for version in (1, 2):
        engine.sync(model, version)
        marks.append(server.version)
    monkeypatch.setattr("holdfast.rollout.outside.server.os.getpid", lambda: 1)
    engine.sync(model, 2)
    assert len({*marks, server.version}) == 3


def test_a_resumed_engine_waits_for_its_weights(server, engine, tokenizer):
    engine.load_state_dict({"policy_version": 3})
    with pytest.raises(EngineError, match=r"call sync\(model, version\) before generate"):
        draw(engine)
    engine.sync(tiny_model(tokenizer, hidden=16, layers=1, heads=2), engine.policy_version)
    assert draw(engine)[0].policy_version == engine.state_dict()["policy_version"] == 3


def test_another_tokenizer_is_found_before_the_first_prompt(server, tmp_path):
    with pytest.raises(EngineError, match=r"serves 'tiny' with another tokenizer than the trainer's: .* is \["):
        ServerEngine(client(server), folder=tmp_path, eos_token_id=EOS, tokenizer=character_tokenizer("=+0123456 "))


def test_a_server_without_tokenizer_is_taken_at_its_word(server, tokenizer, tmp_path):
    server.missing = {"/tokenize", "/weight_info", "/update_weight_version"}
    engine = ServerEngine(client(server), folder=tmp_path, eos_token_id=EOS, tokenizer=tokenizer)
    engine.sync(tiny_model(tokenizer, hidden=16, layers=1, heads=2), 1)
    assert len(draw(engine)) == 2


def test_a_server_that_counts_tokens_only_is_taken_at_its_word(server, tokenizer, tmp_path):
    server.fail("/tokenize", 1, lambda handler: answer(handler, '{"count": 30}', 200))
    assert ServerEngine(client(server), folder=tmp_path, eos_token_id=EOS, tokenizer=tokenizer).model == "tiny"


def test_no_server_is_an_error(server, tokenizer, tmp_path):
    server.missing = {"/v1/models"}
    with pytest.raises(EngineError, match="lists no model at /v1/models"):
        ServerEngine(client(server), folder=tmp_path, eos_token_id=EOS, tokenizer=tokenizer)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        nobody = HttpClient(f"http://127.0.0.1:{unused.getsockname()[1]}", retries=1, backoff=0.001)
        with pytest.raises(EngineError, match="was asked 2 times and failed, the last time with ConnectionRefused"):
            nobody.get("/v1/models")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"url": "127.0.0.1:8000"}, "engine.url = '127.0.0.1:8000': write it like http://"),
        ({"url": "http://host:8000/v1"}, "without a path"),
        ({"url": "http://:8000"}, "write it like http://"),
        ({"url": "http://host:8000", "timeout": 0.0}, "engine.timeout = 0.0"),
        ({"url": "http://host:8000", "retries": -1}, "engine.retries = -1"),
    ],
)
def test_impossible_clients_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        HttpClient(**options)


def test_long_prompts_are_refused_by_the_context_the_server_names(engine):
    with pytest.raises(EngineError, match=r"a prompt of 57 tokens and sampling.max_tokens = 8 do not fit .* of 64"):
        draw(engine, prompts=[[1] * 57])


SCRIPT = """
import json, sys
from http.server import BaseHTTPRequestHandler, HTTPServer

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        text = json.dumps({"data": [{"id": sys.argv[1]}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def do_POST(self):
        self.send_error(404)

HTTPServer(("127.0.0.1", int(sys.argv[2])), Handler).serve_forever()
"""


@pytest.fixture
def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def test_a_server_of_ours_is_started_again_on_the_new_weights(tokenizer, tmp_path, free_port):
    (tmp_path / "serve.py").write_text(SCRIPT)
    connection = HttpClient(f"http://127.0.0.1:{free_port}", timeout=5.0)
    process = ServerProcess(
        [sys.executable, str(tmp_path / "serve.py"), "{folder}", str(free_port)], connection, tmp_path / "log"
    )
    process.start(tmp_path / "first")
    engine = ServerEngine(
        connection, folder=tmp_path / "w", eos_token_id=EOS, tokenizer=tokenizer, sync="restart", process=process
    )
    assert engine.model == str(tmp_path / "first")
    said = process.log.read_text()
    engine.sync(tiny_model(tokenizer, hidden=16, layers=1, heads=2), 5)
    assert engine.model == str(tmp_path / "w" / "version-5")
    assert engine.policy_version == 5 and process.alive
    assert "GET /v1/models" in said and process.log.read_text().startswith(said), "the log goes on"
    engine.close()
    with pytest.raises(EngineError, match="ConnectionRefused"):
        HttpClient(connection.url, retries=0).get("/v1/models")


def test_a_server_that_does_not_start_shows_its_last_words(tmp_path, free_port):
    connection = HttpClient(f"http://127.0.0.1:{free_port}")
    command = [sys.executable, "-c", "import sys; sys.exit('no memory for ' + sys.argv[1])", "{folder}"]
    process = ServerProcess(command, connection, tmp_path / "log")
    with pytest.raises(EngineError, match=r"ended with exit code 1 while starting(.|\n)*no memory for .*model"):
        process.start(tmp_path / "model")
    command[2] = "import os, sys; sys.exit(os.environ['MINE'] + ' and ' + str('PATH' in os.environ))"
    told = ServerProcess(command, connection, tmp_path / "told", environment={"MINE": "own"})
    with pytest.raises(EngineError, match="own and True"):
        told.start(tmp_path / "model")
    slow = ServerProcess([sys.executable, "-c", "import time; time.sleep(60)", "{folder}"], connection, tmp_path / "l")
    with pytest.raises(EngineError, match=r"did not answer at .* within 0\.3 s"):
        slow.start(tmp_path / "model", patience=0.3)
    with pytest.raises(ConfigError, match=r"must contain \{folder\}"):
        ServerProcess(["vllm", "serve"], connection, tmp_path / "log")
    with pytest.raises(EngineError, match="cannot be started with '/nowhere/vllm"):
        ServerProcess(["/nowhere/vllm", "{folder}"], connection, tmp_path / "log").start(tmp_path / "model")


@pytest.mark.parametrize("named", ["id", "root"])
def test_a_server_that_serves_another_version_is_not_the_one_just_started(tokenizer, tmp_path, free_port, named):
    """As where a server of a killed run took the port between the look at it and our own server's start."""
    other = tmp_path / "other" / "version-3"
    served = {"id": "policy", "root": str(other)} if named == "root" else {"id": str(other)}
    script = SCRIPT.replace('{"id": sys.argv[1]}', "SERVED if 'version' in sys.argv[1] else {'id': 'first'}")
    (tmp_path / "serve.py").write_text(f"SERVED = {served!r}\n{script}")
    connection = HttpClient(f"http://127.0.0.1:{free_port}", timeout=5.0)
    command = [sys.executable, str(tmp_path / "serve.py"), "{folder}", str(free_port)]
    process = ServerProcess(command, connection, tmp_path / "log")
    process.start(tmp_path / "first")
    engine = ServerEngine(
        connection, folder=tmp_path / "w", eos_token_id=EOS, tokenizer=tokenizer, sync="restart", process=process
    )
    with pytest.raises(EngineError, match=r"serves .*version-3, not .*version-5.*another one answers"):
        engine.sync(tiny_model(tokenizer, hidden=16, layers=1, heads=2), 5)
    engine.close()


@pytest.mark.parametrize(
    "url", ["http://me:secret@host:1", "http://secret@host", "http://secret@[::1", "http://h:secret"]
)
def test_a_password_in_an_address_is_refused_and_not_repeated(url):
    with pytest.raises(ConfigError) as refused:
        HttpClient(url)
    assert "engine.url = " in str(refused.value)
    assert ("secret" in str(refused.value)) == ("@" not in url)


def test_further_fields_go_into_every_request_and_prefixes_are_dropped_on_demand(server, engine):
    engine.request["repetition_penalty"] = 1.1
    draw(engine)
    assert {body["repetition_penalty"] for body in server.bodies} == {1.1}
    assert engine.forget_prefixes() and server.asked[-1] == "/reset_prefix_cache"
    server.missing.add("/reset_prefix_cache")
    assert not engine.forget_prefixes()


@pytest.fixture
def masked(server, tokenizer, tmp_path):
    return ServerEngine(client(server), folder=tmp_path, eos_token_id=EOS, tokenizer=tokenizer, masks=True)


def ask(engine, **options):
    arguments = {"prompts": [(1, 4)], "sampling": Sampling(max_tokens=8, top_k=3, top_p=0.9), "seed": 0}
    return engine.generate(**arguments | {"sequence_ids": [0], "return_support": True} | options)


def test_masks_come_by_the_path_of_tokens_in_and_out(server, masked):
    (completion,) = ask(masked, return_top=2)
    assert completion.token_ids == (3, 4, EOS) and completion.finish_reason == "stop"
    assert completion.logprobs.tolist() == [-0.5, -1.5, -2.0]
    assert completion.support_ids.tolist() == [3, 3, 4, 2, 3, 4] and completion.support_sizes.tolist() == [1, 2, 3]
    assert completion.top_ids.tolist() == [[3, 4]] * 3, "a sampled token that is not among them is not one of them"
    assert completion.top_logprobs.tolist() == [[-0.5, -1.5]] * 3
    assert server.bodies == [
        {
            "model": "tiny",
            "token_ids": [1, 4],
            "sampling_params": {
                "max_tokens": 8,
                "temperature": 1.0,
                "top_p": 0.9,
                "top_k": 3,
                "min_p": 0.0,
                "seed": request_seed(0, 0, 2),
                "logprobs": 3,
                "stop_token_ids": [EOS],
                "ignore_eos": True,
                "detokenize": False,
            },
        }
    ]
    (plain,) = ask(masked, sampling=Sampling(max_tokens=8, temperature=0.0), return_support=False)
    assert plain.support_ids is None and not plain.logprobs.any()
    assert (server.bodies[-1]["temperature"], server.bodies[-1]["top_k"]) == (1.0, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sampling_mask": None}, "sequence 0: no sampling mask in the answer: .*--return-sampling-mask"),
        ({"sampling_mask": [[3], [], [2]]}, "an empty sampling mask"),
        ({"sampling_mask": "x"}, "not shaped like one of /inference/v1/generate"),
        ({"token_ids": [3, 4]}, "2 tokens, 3 log-probabilities, 8 asked for"),
        ({"finish_reason": "abort"}, "ended with 'abort'"),
        ({"logprobs": None}, "3 tokens, 0 log-probabilities"),
    ],
)
def test_answers_without_their_masks_are_errors_that_name_the_sequence(server, masked, change, message):
    server.change = lambda answer: answer["choices"][0].update(change)
    with pytest.raises(EngineError, match=message):
        ask(masked)


def test_too_few_likeliest_tokens_beside_a_mask_are_an_error(server, masked):
    with pytest.raises(EngineError, match="asked for 4 tokens per position, the server reports 3; raise its"):
        ask(masked, return_top=4)
