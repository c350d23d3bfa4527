"""The engine's own process: what it takes with it into a round, and what it says when it cannot go on."""

import multiprocessing
import queue
import signal
from types import SimpleNamespace

import pytest
import torch
from tqdm import tqdm

from holdfast.errors import EngineError
from holdfast.rollout.models import character_tokenizer, tiny_model
from holdfast.tasks.base import Problem
from holdfast.train.sampling import worker
from holdfast.train.sampling.episodes import Episode
from holdfast.train.sampling.worker import Answer, Round, Scribe, receive, send, serve

RUNNING = Episode(0, Problem("?", "", None, "test"), (1,), (5,), (True,))


@pytest.fixture
def connected(monkeypatch):
    """(the trainer's end, serve's end); when the trainer's is closed, `left` gets the code to end with."""
    left = queue.SimpleQueue()
    monkeypatch.setattr(worker, "os", SimpleNamespace(_exit=left.put))
    handler, lock = signal.getsignal(signal.SIGINT), tqdm.get_lock()
    ours, theirs = multiprocessing.Pipe()
    yield ours, theirs
    ours.close()
    assert left.get(timeout=120) == 0
    theirs.close()
    tqdm.set_lock(lock)
    signal.signal(signal.SIGINT, handler)


@pytest.mark.parametrize(
    ("error", "number", "says"),
    [
        (EngineError("not finite"), 3, "not finite"),
        (ValueError("odd"), 3, "(?s)the engine's process failed:\n.*ValueError: odd"),
        (EngineError("no model"), 0, "no model"),
    ],
)
def test_what_cannot_be_done_is_said_with_its_round(
    connected, small_config, tmp_path, monkeypatch, error, number, says
):
    """Round 0 stands for what went wrong before the first one."""
    ours, theirs = connected
    begun = []

    class Failing:
        def __init__(self, config, folder, running):
            if not number:
                raise error
            begun.append(running)

        def play(self, task):
            if task.number == number:
                raise error
            return Answer(task.number)

    monkeypatch.setattr(worker, "Scribe", Failing)
    for i in (2, 3):
        send(ours, Round(i, 0, tmp_path, ()))
    serve(theirs, small_config(), tmp_path, [RUNNING])
    assert begun == [[RUNNING]] * (number > 0)
    if number:
        assert receive(ours) == Answer(2)
    answer = receive(ours)
    assert answer.number == number
    with pytest.raises(EngineError, match=says):
        raise EngineError(answer.error)
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN


def test_the_engine_is_built_from_the_configuration_and_the_saved_model(small_config, tmp_path, monkeypatch):
    tokenizer = character_tokenizer("0123456789+-=;:?# \n")
    model = tiny_model(tokenizer, hidden=16, layers=1, heads=2)
    folder = tmp_path / "engine"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    config = small_config("--threads", "1", "--task.entries", "2", "--objective.delta", "0.25")
    seen = {}

    def spy(name, value):
        real = getattr(worker, name)

        def call(*args, **options):
            seen[name] = (args, options)
            return real(*args, **options) if value is None else value

        monkeypatch.setattr(worker, name, call)

    for name in ("get_task", "objective_of", "PromptSource"):
        spy(name, None)
    spy("build_engine", SimpleNamespace())
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        scribe = Scribe(config, folder, [])
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(threads)
    assert (scribe.model.dtype, scribe.model.training) == (torch.float32, False)
    assert seen["get_task"] == (("ledger",), {"entries": 2})
    assert seen["objective_of"] == ((config,), {})
    assert seen["PromptSource"][1]["chat"] == config.model.chat
    assert seen["build_engine"][0][0] is config and seen["build_engine"][0][3] == tmp_path


@pytest.mark.parametrize(("kind", "expected"), [("embedded", "meta"), ("vllm", "cpu")])
def test_an_engine_of_ours_gets_the_model_on_its_device(small_config, tmp_path, monkeypatch, kind, expected):
    """ "meta" stands for a GPU; an engine outside moves the weights itself."""
    tokenizer = character_tokenizer("0123456789+-=;:?# \n")
    tiny_model(tokenizer, hidden=16, layers=1, heads=2).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    given = []
    monkeypatch.setattr(worker, "engine_device", lambda config: torch.device("meta"))
    monkeypatch.setattr(worker, "build_engine", lambda config, model, *rest: given.append(model) or SimpleNamespace())
    config = small_config("--engine", f"{{kind = '{kind}'}}", "--threads", "1")
    scribe = Scribe(config, tmp_path / "model", [])
    assert {p.device.type for p in given[0].parameters()} == {expected} and scribe.model is given[0]
