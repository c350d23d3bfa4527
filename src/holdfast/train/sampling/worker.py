"""The program of the engine's own process: take a round, write every running response on, hand the result over.

A round is a function of its number, its weights and the responses as they were before it. That makes it repeatable:
an engine that was killed leaves nothing behind that its successor needs.
"""

from __future__ import annotations

import math
import os
import pickle
import queue
import signal
import threading
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from holdfast.errors import HoldfastError
from holdfast.rollout.engine import Engine
from holdfast.rollout.models import load_model
from holdfast.tasks import get_task
from holdfast.train.keep.checkpoint import no_progress_bar
from holdfast.train.sampling.data import PromptSource
from holdfast.train.sampling.engines import build_engine
from holdfast.train.sampling.episodes import Episode
from holdfast.train.sampling.routing import with_experts
from holdfast.train.sampling.sampler import writing_of
from holdfast.train.settings.config import RunConfig
from holdfast.train.settings.device import engine_device
from holdfast.train.settings.memory import keep_freed_memory
from holdfast.train.settings.objective import objective_of
from holdfast.train.settings.seeds import derive_seed


@dataclass(frozen=True)
class Round:
    """What the engine is asked to do next: begin these responses, and write all running ones on under these weights."""

    number: int
    version: int
    weights: Path
    started: tuple[Episode, ...]


@dataclass(frozen=True)
class Answer:
    """What became of the responses of a round; `error` where it cannot be done, by this engine or any other."""

    number: int
    episodes: tuple[Episode, ...] = ()
    cpu_seconds: float = 0.0
    error: str | None = None


class Scribe:
    """The engine with its running responses."""

    def __init__(self, config: RunConfig, folder: Path, running: Sequence[Episode]) -> None:
        """Load the model that the trainer saved for it, onto the device of an engine of ours.

        An engine outside takes weights from the CPU to where it computes.
        """
        torch.set_num_threads(config.threads)
        self.device = engine_device(config) if config.engine.kind == "embedded" else torch.device("cpu")
        if self.device.type == "cpu":
            keep_freed_memory()
        self.config = config
        with no_progress_bar():
            self.model, tokenizer = load_model(str(folder), torch.float32)
        self.model = self.model.to(self.device)
        task = get_task(config.task.name, **config.task.options)
        source = PromptSource(task, tokenizer, max_tokens=1 << 30, chat=config.model.chat)
        objective = objective_of(config)
        self.writing = writing_of(config, source, objective)
        self.engine: Engine = build_engine(config, self.model.eval(), tokenizer, folder.parent)
        self.version = -1
        self.running = list(running)

    def play(self, task: Round) -> Answer:
        """Write the responses on."""
        started = time.process_time()
        if task.version != self.version:
            self.model.load_state_dict(torch.load(task.weights, weights_only=True, map_location=self.device))
            self.engine.sync(self.model, task.version)
            self.version = task.version
        begun = [*self.running, *task.started]
        written = self.writing.advance(
            self.engine,
            begun,
            budget=math.ceil(self.config.sampling.max_tokens / self.config.asynchronous.segments),
            seed=lambda call: derive_seed(self.config.seed, "sample", task.number, call),
        )
        written = with_experts(self.engine, begun, written, self.config.batch.micro_batch_tokens)
        self.running = [episode for episode in written if episode.finish_reason is None]
        return Answer(task.number, tuple(written), time.process_time() - started)


def serve(connection: Any, config: RunConfig, folder: Path, running: Sequence[Episode]) -> None:
    """Answer rounds until the trainer is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for the trainer, which ends this process when it is done
    tqdm.set_lock(threading.RLock())  # its own lock is between processes, and would be left behind by a kill
    rounds: queue.SimpleQueue[Round] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(connection, rounds), daemon=True).start()
    number = 0
    try:
        scribe = Scribe(config, folder, running)
        while True:
            task = rounds.get()
            number = task.number
            send(connection, scribe.play(task))
    except HoldfastError as error:
        send(connection, Answer(number, error=str(error)))
    except Exception:
        send(connection, Answer(number, error=f"the engine's process failed:\n{traceback.format_exc()}"))


def send(connection: Any, message: Any) -> None:
    """As plain bytes: torch would otherwise pass tensors through memory that dies with this process."""
    connection.send_bytes(pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL))


def receive(connection: Any) -> Any:
    """What `send` sent."""
    return pickle.loads(connection.recv_bytes())


def _listen(connection: Any, rounds: queue.SimpleQueue[Round]) -> None:
    """Take rounds off the pipe as they come, so that the trainer never waits for this process to read."""
    try:
        while True:
            rounds.put(receive(connection))
    except (EOFError, OSError):
        os._exit(0)  # the trainer is gone, and nobody is left to write for
