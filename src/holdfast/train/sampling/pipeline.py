"""Asynchronous rollouts: an engine in a process of its own writes ahead while the trainer updates.

Time is counted in rounds. Round r runs beside the trainer's step r; in it every running response grows by at most
max_tokens / segments tokens. The responses of step j are written in the rounds j - segments to j - 1, round r under
the weights of version r - 1 - (staleness - segments), so at step j their oldest token is `staleness` updates old and
their newest staleness - segments + 1. Which weights wrote which token is fixed by this schedule, never by a clock:
the same seed gives the same numbers, whatever the machine was doing, and a round that was lost is simply done again.

Differs from schemes that train on whatever is finished first: those prefer short responses.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import queue
import shutil
import threading
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from holdfast.errors import EngineError
from holdfast.rollout.models import copied
from holdfast.train.keep.ledger import Ledger
from holdfast.train.sampling.data import PromptSource
from holdfast.train.sampling.episodes import Episode
from holdfast.train.sampling.sampler import step_episodes
from holdfast.train.sampling.worker import Answer, Round, receive, send, serve
from holdfast.train.settings.config import RunConfig

_WRITTEN = [f.name for f in fields(Episode) if f.name not in ("sequence_id", "problem", "prompt_ids")]


class Died(Exception):
    """The engine's process ended or fell silent."""


class Pipelined:
    """Samples ahead of the trainer by `async.staleness` updates (holdfast.train.sampling.sampler.Sampler)."""

    def __init__(self, config: RunConfig, source: PromptSource, folder: Path, ledger: Ledger) -> None:
        """`folder/model` holds the model that the engine starts from; published weights go beside it."""
        self.config, self.source, self.folder, self.ledger = config, source, folder, ledger
        self.segments = config.asynchronous.segments
        self.slack = config.asynchronous.staleness - self.segments
        # The first round begins the responses of step 1.
        self.received = self.sent = -self.segments
        self.version = -1
        self.trained = 0  # the last step whose responses were handed out; they are kept until the next step's are
        self.batches: dict[int, list[Episode]] = {}
        self.engine: _EngineProcess | None = None
        self.restarts, self.deaths_in_a_row, self.spent = 0, 0, 0.0

    def publish(self, model: Any, version: int) -> None:
        """Keep the weights in a file, and let the rounds begin that were waiting for them."""
        path = self._weights(version)
        temporary = path.with_suffix(".tmp")
        # On the CPU: what reads them may sit elsewhere, and adapters are merged one weight at a time.
        torch.save(copied(model.state_dict(), Tensor.cpu), temporary)
        temporary.replace(path)
        self.version = version
        if self.engine is not None:
            self._send_due(self.engine)

    def episodes(self, step: int) -> list[Episode]:
        """The responses of this step, waiting for their last round if need be.

        Raises:
            EngineError: a round failed, or the engine died too often.
        """
        if self.received < self.config.steps - 1:
            self._awake()  # a resumed run may have this step's responses, and writes those to come beside its update
        while self.received < step - 1:
            self._take(self._next_answer())
        self.batches.pop(self.trained, None)
        self.trained = step
        batch = self.batches[step]
        self.ledger.write(step=step, trained=[batch[0].sequence_id, batch[-1].sequence_id])
        return batch

    def facts(self) -> dict[str, Any]:
        """Engines that died so far, and rounds that are asked for and not back yet."""
        return {"engine_restarts": self.restarts, "rounds_ahead": self.sent - self.received}

    def cpu_seconds(self) -> float:
        """Of the rounds taken so far."""
        return self.spent

    def state_dict(self) -> dict[str, Any]:
        """Responses as of the last round taken, and the weights of the rounds to come."""
        written = {
            step: [{name: _alone(getattr(episode, name)) for name in _WRITTEN} for episode in batch]
            for step, batch in self.batches.items()
            if step > self.trained
        }
        versions = range(self._version_of(self.received + 1), self.version + 1)
        weights = {
            version: torch.load(self._weights(version), weights_only=True, map_location="cpu") for version in versions
        }
        return {
            "received": self.received,
            "trained": self.trained,
            "written": written,
            "weights": weights,
            "restarts": self.restarts,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after the last round taken; rounds that were under way are done again."""
        self.received = self.sent = int(state["received"])
        self.batches = {
            int(step): [
                replace(episode, **fields)
                for episode, fields in zip(step_episodes(self.config, self.source, int(step)), written, strict=True)
            ]
            for step, written in state["written"].items()
        }
        for version, weights in state["weights"].items():
            torch.save(weights, self._weights(int(version)))
            self.version = int(version)  # the last is the newest
        self.restarts = int(state["restarts"])
        # Checkpoints of older versions were all made after a whole step.
        self.trained = int(state.get("trained", self.received + 1))
        self.ledger.rewind(self.trained, self.received, self.restarts)

    def start_over(self) -> None:
        """The ledger begins anew: every sequence will be started again."""
        self.ledger.rewind(0, self.received, 0)

    def give_back(self, step: int) -> None:
        """Kept, and no longer counted as trained on."""
        if self.trained == step:
            self.trained = step - 1
            self.ledger.rewind(self.trained, self.received, self.restarts)

    def close(self) -> None:
        """End the engine's process and drop its files."""
        if self.engine is not None:
            self.engine.end()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _version_of(self, number: int) -> int:
        """The weights of a round."""
        return max(0, number - 1 - self.slack)

    def _weights(self, version: int) -> Path:
        return self.folder / f"weights_{version}.pt"

    def _send_due(self, engine: _EngineProcess) -> None:
        """Every round whose weights exist; none beyond the last step."""
        while self.sent < self.config.steps - 1 and self._version_of(self.sent + 1) <= self.version:
            self.sent += 1
            version = self._version_of(self.sent)
            begun = step_episodes(self.config, self.source, self.sent + self.segments)
            engine.send(Round(self.sent, version, self._weights(version), tuple(begun)))

    def _next_answer(self) -> Answer:
        """The next round's, from this engine or its successors."""
        while True:
            engine = self._awake()
            try:
                answer = engine.receive(self.config.asynchronous.timeout)
            except Died as death:
                self._bury(engine, death)
                continue
            if answer.error is not None:
                raise EngineError(f"round {answer.number} of the asynchronous engine failed: {answer.error}")
            return answer

    def _awake(self) -> _EngineProcess:
        """An engine that has every round whose weights exist."""
        if self.engine is None:
            running = [
                episode
                for step, batch in self.batches.items()
                for episode in batch
                if step > self.trained and episode.finish_reason is None
            ]
            self.engine = _EngineProcess(self.config, self.folder / "model", running)
        self._send_due(self.engine)
        return self.engine

    def _bury(self, engine: _EngineProcess, death: Died) -> None:
        """Forget what was asked of a dead engine; EngineError where it keeps dying."""
        engine.end()
        self.ledger.write(died=str(death), redo=list(range(self.received + 1, self.sent + 1)))
        self.engine, self.sent = None, self.received
        self.restarts += 1
        self.deaths_in_a_row += 1
        if self.deaths_in_a_row > self.config.asynchronous.restarts:
            raise EngineError(
                f"the engine's process {death}, {self.deaths_in_a_row} times in round {self.received + 1} without an "
                "answer: find out why (memory?), raise async.timeout if it is slow, or train without [async]"
            )

    def _take(self, answer: Answer) -> None:
        """Put a round's responses where they belong."""
        assert answer.number == self.received + 1
        self.received, self.deaths_in_a_row = answer.number, 0
        self.spent += answer.cpu_seconds
        size = self.config.batch.sequences
        first = (answer.number + self.segments - 1) * size
        self.batches.setdefault(answer.number + self.segments, [None] * size)  # pyright: ignore[reportArgumentType]
        for episode in answer.episodes:
            self.batches[1 + episode.sequence_id // size][episode.sequence_id % size] = episode
        finished = [e.sequence_id for e in answer.episodes if e.finish_reason is not None]
        self.ledger.write(
            round=answer.number,
            version=self._version_of(answer.number),
            started=[first, first + size - 1],
            finished=finished,
        )
        for path in self.folder.glob("weights_*.pt"):
            if int(path.stem.split("_")[1]) < self._version_of(answer.number + 1):
                path.unlink()


def _alone(value: Any) -> Any:
    """A tensor without the buffer that it is a view of: saving it would save all of that, unset bytes too."""
    return value.clone() if isinstance(value, Tensor) else value


class _EngineProcess:
    """One life of the engine's process."""

    def __init__(self, config: RunConfig, folder: Path, running: Sequence[Episode]) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["holdfast.train.sampling.worker", "transformers"])
        self.connection, other = context.Pipe()
        self.process = context.Process(target=serve, args=(other, config, folder, running), daemon=True)
        self.process.start()
        other.close()
        self.answers: queue.SimpleQueue[Answer | None] = queue.SimpleQueue()
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def send(self, task: Round) -> None:
        """Ask for a round; a dead process is noticed when its answer is wanted."""
        with contextlib.suppress(OSError):
            send(self.connection, task)

    def receive(self, timeout: float) -> Answer:
        """The next answer.

        Raises:
            Died: the process ended, or gave none in time.
        """
        try:
            answer = self.answers.get(timeout=timeout)
        except queue.Empty:
            raise Died(f"gave no answer for {timeout:g} seconds") from None
        if answer is None:
            self.process.join(timeout=5)
            raise Died(f"ended with code {self.process.exitcode}")
        return answer

    def end(self) -> None:
        """Kill it."""
        self.process.kill()
        self.process.join()
        self.reader.join(timeout=5)
        self.connection.close()
        self.process.close()

    def _read(self) -> None:
        """Take answers off the pipe as they come, so that the engine never waits for the trainer to read."""
        try:
            while True:
                self.answers.put(receive(self.connection))
        except (EOFError, OSError):
            self.answers.put(None)
