"""An inference server behind the OpenAI completions protocol, as vLLM speaks it: token ids in, token ids out.

Tokens travel as ids in both directions, so no text is ever tokenized twice. Start the server so that it reports what it
sampled with, and, for sync "reload", lets its weights be replaced:

    VLLM_SERVER_DEV_MODE=1 vllm serve FOLDER --host 127.0.0.1 --logprobs-mode processed_logprobs --max-logprobs 20
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from holdfast.errors import EngineError, HoldfastError
from holdfast.rollout.engine import Completion, Sampling
from holdfast.rollout.outside import masked
from holdfast.rollout.outside.external import check_requests, checked, request_seed, split_rows, write_model
from holdfast.rollout.outside.http import LARGEST, HttpClient
from holdfast.rollout.outside.process import ServerProcess

Sync = Literal["reload", "restart"]

PROBE = '1 + 2 = 3; naïve (北京)\n\tx[0] -> "y"'
"""Encoded by both sides: two tokenizers that agree on it are taken for the same."""


@dataclass(frozen=True)
class _Request:
    """One response that is asked for."""

    prompt: Sequence[int]
    sequence_id: int
    seed: int
    sampling: Sampling
    distributions: bool
    top: int
    support: bool = False


class ServerEngine:
    """Samples over HTTP, one request per sequence (holdfast.rollout.engine.Engine); version 0 is what the server has.

    Seeds are per request, as in `VllmEngine`. With `sync` "reload" the weights go to `folder`, which the server
    must see too, and taken over by its own reload; after every batch the engine makes sure that the server still has
    them. With "restart" the `process` is started anew on the folder: slow, with any server.
    """

    def __init__(
        self,
        client: HttpClient,
        *,
        folder: Path,
        eos_token_id: int,
        tokenizer: Any,
        sync: Sync = "reload",
        process: ServerProcess | None = None,
        concurrency: int = 64,
        masks: bool = False,
    ) -> None:
        """Ask the server what it serves and whether it tokenizes like `tokenizer`; `masks`: it reports its support.

        Raises:
            EngineError: no server, no model, or another tokenizer.
        """
        self.client, self.folder, self.eos_token_id, self.tokenizer = client, Path(folder), eos_token_id, tokenizer
        self.mode, self.concurrency, self.masks = sync, concurrency, masks
        self.request: dict[str, Any] = {}
        """Further fields of every request, as they are; None leaves a field out."""
        self._process = process
        self._version, self._due, self._closed = 0, False, False
        self._stamp: str | None = None
        self._connect()

    @property
    def policy_version(self) -> int:
        """The version of the weights in use."""
        return self._version

    def sync(self, model: Any, version: int) -> None:
        """Write the weights and have the server take them over, in place or by starting it again.

        Raises:
            EngineError: the server cannot reload, or fails while it does.
        """
        self._open()
        saved = self.folder / f"version-{version}"
        shutil.rmtree(saved, ignore_errors=True)
        write_model(model, self.tokenizer, saved)
        if self.mode == "restart":
            assert self._process is not None
            self._process.start(saved)
            self._connect()
            self._serves(saved)
        else:
            self._reload(saved)
        self._put_stamp(version)
        self._version, self._due = version, False
        for older in self.folder.glob("version-*"):
            if older != saved:
                shutil.rmtree(older, ignore_errors=True)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        *,
        seed: int,
        sequence_ids: Sequence[int],
        return_distributions: bool = False,
        return_top: int = 0,
        return_support: bool = False,
    ) -> list[Completion]:
        """One response per prompt; `return_distributions` needs a server with --max-logprobs -1.

        `return_support` needs one with --return-sampling-mask, and does not go with whole distributions.

        Raises:
            ConfigError: sampling that vLLM does not do, or not with masks.
            EngineError: the engine is closed or has not got its weights back, a prompt cannot be continued, the server
                fails, has other weights than those of the last sync, or answers something that cannot be trained on.
        """
        self._open()
        if self._due:
            raise EngineError("a resumed server engine has no weights: call sync(model, version) before generate")
        check_requests(prompts, sequence_ids, sampling, context=self.context)
        asked = masked.as_vllm_takes_it(sampling) if self.masks else sampling
        reports = return_distributions, return_top, return_support
        requests = [
            _Request(prompt, i, request_seed(seed, i, len(prompt)), asked, *reports)
            for prompt, i in zip(prompts, sequence_ids, strict=True)
        ]
        with ThreadPoolExecutor(max_workers=self.concurrency) as threads:
            waiting = [threads.submit(self._complete, request, sampling) for request in requests]
            try:
                completions = [answer.result() for answer in waiting]
            except BaseException:
                threads.shutdown(wait=False, cancel_futures=True)
                raise
        self._same_weights()
        return completions

    def forget_prefixes(self) -> bool:
        """Drop the server's cached prefixes; whether it could."""
        self._open()
        return bool((self.client.post("/reset_prefix_cache", {}) or {}).get("success"))

    def close(self) -> None:
        """Stop the server if it is ours, and remove the written weights."""
        self._closed = True
        if self._process is not None:
            self._process.stop()
        for saved in self.folder.glob("version-*"):
            shutil.rmtree(saved, ignore_errors=True)

    def state_dict(self) -> dict[str, Any]:
        """The version; the weights are the trainer's."""
        return {"policy_version": self._version}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Wait for the weights of this version."""
        self._version, self._due = int(state["policy_version"]), True

    def _connect(self) -> None:
        models = (self.client.get("/v1/models") or {}).get("data")
        first = models[0] if isinstance(models, list) and models else None
        if not isinstance(first, dict) or "id" not in first:
            raise EngineError(f"{self.client.url} lists no model at /v1/models: is it an OpenAI-compatible server?")
        self.model, length = str(first["id"]), first.get("max_model_len")
        self.root = str(first.get("root") or self.model)
        self.context: int | None = length if isinstance(length, int) else None
        theirs = self.client.post("/tokenize", {"model": self.model, "prompt": PROBE, "add_special_tokens": False})
        ours = self.tokenizer.encode(PROBE, add_special_tokens=False)
        if theirs and theirs.get("tokens") not in (None, ours):
            raise EngineError(
                f"{self.client.url} serves {self.model!r} with another tokenizer than the trainer's: {PROBE!r} is "
                f"{theirs['tokens']} there and {ours} here; start the server on the trainer's model folder"
            )

    def _reload(self, saved: Path) -> None:
        body = {"method": "reload_weights", "kwargs": {"weights_path": str(saved.resolve())}}
        if self.client.post("/collective_rpc", body) is None:
            raise EngineError(
                f"{self.client.url} cannot reload weights: start it with VLLM_SERVER_DEV_MODE=1 (on a network that "
                "only the trainer reaches), or use engine.sync = 'restart'"
            )
        # Keys and values of a prefix that an old policy computed would mix the two.
        if not self.forget_prefixes():
            raise EngineError(f"{self.client.url} could not drop its cached prefixes: is somebody else using it?")

    def _serves(self, saved: Path) -> None:
        """Whether the server that answers is the one just started: one of another run serves another version."""
        there = Path(self.root)
        if there.name.startswith(saved.name.partition("-")[0]) and there.resolve() != saved.resolve():
            raise EngineError(
                f"{self.client.url} serves {self.root}, not {saved}, on which a server was just started: another one "
                "answers there; end it, or choose another port in engine.url and engine.command"
            )

    def _put_stamp(self, version: int) -> None:
        """Name the weights, where the server can remember a name, and see that it is this server that does."""
        stamp = f"holdfast-{os.getpid()}-{version}"
        stamped = self.client.post("/update_weight_version", {"new_version": stamp})
        self._stamp = None if stamped is None else stamp
        self._same_weights()

    def _same_weights(self) -> None:
        """Whether the server still has the weights of the last sync, where it can tell."""
        if self._process is not None and not self._process.alive:
            raise EngineError(f"the server at {self.client.url} has ended; its log is {self._process.log}")
        if self._stamp is None:
            return
        found = (self.client.get("/weight_info") or {}).get("weight_version")
        if found != self._stamp:
            raise EngineError(
                f"{self.client.url} has weights {found!r}, not those of the last sync ({self._stamp!r}): it was "
                "started again, or somebody else synced it; its responses are not from the policy, sync again"
            )

    def _complete(self, request: _Request, sampling: Sampling) -> Completion:
        """The response to a request; `sampling` is what was wanted, where the server had to be asked otherwise."""
        path, body = self._asked(request)
        answer = self.client.post(path, body, largest=self._largest(request))
        if answer is None:
            raise EngineError(f"{self.client.url} has no {path}, or no longer serves {self.model!r}")
        name = f"{self.client.url}, sequence {request.sequence_id}"
        try:
            return checked(self._read(answer, request, name), sampling, name)
        except HoldfastError:
            raise
        except (TypeError, LookupError, AttributeError, ValueError, RuntimeError, OverflowError) as error:
            raise EngineError(
                f"{name}: the answer is not shaped like one of {path} ({type(error).__name__}: {error}): "
                f"{str(answer)[:200]}"
            ) from None

    def _read(self, answer: dict[str, Any], request: _Request, name: str) -> Completion:
        if not request.support:
            return read_answer(answer, request, self._version, name)
        most = request.sampling.max_tokens
        return masked.read(answer, top=request.top, version=self._version, most=most, name=name)

    def _asked(self, request: _Request) -> tuple[str, dict[str, Any]]:
        """Path and body of a request."""
        sampling = request.sampling
        if request.support:
            wanted = {"seed": request.seed, "eos_token_id": self.eos_token_id, "top": request.top}
            body = masked.body(self.model, request.prompt, sampling, **wanted)
            body["sampling_params"] |= self.request
            return masked.PATH, body
        body = {
            "model": self.model,
            "prompt": list(request.prompt),
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "min_p": sampling.min_p,
            "seed": request.seed,
            "logprobs": -1 if request.distributions else max(1, request.top),
            "stop_token_ids": [self.eos_token_id],
            "ignore_eos": True,
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
            **self.request,
        }
        return "/v1/completions", {key: value for key, value in body.items() if value is not None}

    def _largest(self, request: _Request) -> int:
        """Bytes that an answer may have: 64 for every reported token, which is twice what vLLM writes."""
        reported = 2 * len(self.tokenizer) if request.distributions else 2 + request.top
        reported += request.sampling.top_k if request.support else 0
        return LARGEST + 64 * (len(request.prompt) + request.sampling.max_tokens * (1 + reported))

    def _open(self) -> None:
        if self._closed:
            raise EngineError("the engine is closed: make a new one")


def read_answer(answer: dict[str, Any], request: _Request, version: int, name: str) -> Completion:
    """The response in an answer of /v1/completions.

    Raises:
        EngineError: no token ids, no log-probabilities, another prompt, an unfinished response, counts that differ.
    """
    choice = (answer.get("choices") or [{}])[0]
    tokens, logprobs = choice.get("token_ids"), choice.get("logprobs") or {}
    if any(type(token) is not int or token < 0 for token in tokens or ()):
        raise EngineError(f"{name}: token ids that are no ids: {str(tokens)[:80]}")
    if tokens is None:
        raise EngineError(f"{name}: the answer has no token ids (return_token_ids); use vLLM 0.10.2 or newer")
    sampled = logprobs.get("token_logprobs")
    if not sampled or None in sampled:
        raise EngineError(
            f"{name}: the answer has no log-probabilities, so nothing can be trained on it; the server must support "
            "`logprobs` in /v1/completions"
        )
    if choice.get("prompt_token_ids") not in (None, list(request.prompt)):
        raise EngineError(f"{name}: the server continued another prompt than it was given (truncated, or re-tokenized)")
    if choice.get("finish_reason") not in ("stop", "length"):
        raise EngineError(f"{name}: the response ended with {choice.get('finish_reason')!r}, not with stop or length")
    counted = (answer.get("usage") or {}).get("completion_tokens", len(tokens))
    if not len(tokens) == len(sampled) == counted <= request.sampling.max_tokens:
        raise EngineError(
            f"{name}: {len(tokens)} tokens, {len(sampled)} log-probabilities, {counted} tokens counted by the server, "
            f"{request.sampling.max_tokens} asked for at most: which belongs to which is not known"
        )
    return Completion(
        token_ids=tuple(tokens),
        finish_reason=choice["finish_reason"],
        policy_version=version,
        **_fields(tokens, sampled, logprobs.get("top_logprobs"), request, name),
    )


def _fields(
    tokens: list[int], sampled: list[float], tables: list[dict[str, float]] | None, request: _Request, name: str
) -> dict[str, Tensor]:
    own = torch.tensor(sampled, dtype=torch.float32)
    own = own.masked_fill(own <= masked.LOWEST, -torch.inf)
    if not request.distributions and not request.top:
        return {"logprobs": own}
    try:
        rows = [[(int(token.removeprefix("token_id:")), v) for token, v in table.items()] for table in tables or []]
    except ValueError:
        raise EngineError(f"{name}: tokens are named by text, not as token_id:N (return_tokens_as_token_ids)") from None
    rows = [sorted(row, key=lambda pair: -pair[1]) for row in rows]
    fewest = min(map(len, rows), default=0)
    width = fewest if request.distributions else request.top
    if len(rows) != len(tokens) or fewest < max(1, width):
        raise EngineError(
            f"{name}: asked for {'all' if request.distributions else width} tokens per position, the server reports "
            f"{fewest} at {len(rows)} of {len(tokens)} positions; raise its --max-logprobs"
        )
    ids = torch.tensor([[token, *(i for i, _ in row[:width])] for token, row in zip(tokens, rows, strict=True)])
    likeliest = torch.tensor([[value for _, value in row[:width]] for row in rows])
    values = torch.cat([own[:, None], likeliest.masked_fill(likeliest <= masked.LOWEST, -torch.inf)], dim=1)
    return split_rows(ids, values, top=request.top, vocabulary=width if request.distributions else None)
