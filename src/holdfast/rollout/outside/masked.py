"""Sampling masks of vLLM, the tokens that each one was drawn from: what is asked for, what is answered.

`return_sampling_mask` belongs to the engine, not to a request: vLLM then refuses every request that is greedy or has
no top_k. /v1/completions does not carry masks; /inference/v1/generate (tokens in, tokens out) does. Read in vLLM 0.32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from holdfast.errors import ConfigError, EngineError
from holdfast.rollout.engine import Completion, Sampling
from holdfast.rollout.outside.external import split_rows
from holdfast.rollout.support import support_rows

PATH = "/inference/v1/generate"
LOWEST = -9999.0
"""What servers write for a log-probability of -inf, which JSON cannot say."""


def as_vllm_takes_it(sampling: Sampling) -> Sampling:
    """The same sampling, as an engine with masks takes it: greedy is a draw from the likeliest token alone.

    Raises:
        ConfigError: a draw from the whole vocabulary, or from a part of it that has no largest size.
    """
    if sampling.temperature == 0:
        return replace(sampling, temperature=1.0, top_k=1, top_p=1.0, min_p=0.0)
    if not sampling.top_k:
        raise ConfigError(
            "an engine that reports sampling masks (return_sampling_mask) takes no request without top_k, and "
            "sampling.top_k = 0: set sampling.top_k, for example 1024 beside top_p, or start it without masks"
        )
    return sampling


def support_of_output(output: Any, name: str) -> dict[str, Int[Tensor, " _"]]:
    """The masks of vLLM's CompletionOutput, or of its choice in JSON, as fields of a Completion.

    Raises:
        EngineError: it has none, or none for some token.
    """
    mask = output.get("sampling_mask") if isinstance(output, dict) else getattr(output, "sampling_mask", None)
    rows: Sequence[Sequence[int]] | None = getattr(mask, "token_ids", mask)
    if rows is None:
        raise EngineError(
            f"{name}: no sampling mask in the answer: start vLLM 0.32 or newer with return_sampling_mask (a server: "
            "--return-sampling-mask --logprobs-mode processed_logprobs), or leave engine.sampling_mask out"
        )
    if not all(rows):
        raise EngineError(f"{name}: an empty sampling mask: no token could have been drawn there")
    return dict(zip(("support_ids", "support_sizes"), support_rows(rows), strict=True))


def body(model: str, prompt: Sequence[int], sampling: Sampling, *, seed: int, eos_token_id: int, top: int) -> Any:
    """A request for one response with its masks."""
    wanted = {
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "seed": seed,
        # One more than is asked for: a sampled token that is not among the likeliest takes a place.
        "logprobs": top + 1 if top else 1,
        "stop_token_ids": [eos_token_id],
        "ignore_eos": True,
        "detokenize": False,
    }
    return {"model": model, "token_ids": list(prompt), "sampling_params": wanted}


def read(answer: dict[str, Any], *, top: int, version: int, most: int, name: str) -> Completion:
    """The response in an answer of /inference/v1/generate.

    Raises:
        EngineError: no or unequal numbers of tokens, log-probabilities and masks, or an unfinished response.
    """
    choice = answer["choices"][0]
    tokens, content = choice["token_ids"], (choice.get("logprobs") or {}).get("content") or []
    if choice.get("finish_reason") not in ("stop", "length"):
        raise EngineError(f"{name}: the response ended with {choice.get('finish_reason')!r}, not with stop or length")
    if [entry["token_id"] for entry in content] != tokens or len(tokens) > most:
        raise EngineError(
            f"{name}: {len(tokens)} tokens, {len(content)} log-probabilities, {most} asked for at most: which belongs "
            "to which is not known"
        )
    rows = []
    for entry in content:
        likeliest = sorted(((t["logprob"], t["token_id"]) for t in entry.get("top_logprobs") or ()), reverse=True)
        if len(likeliest) < top:
            raise EngineError(
                f"{name}: asked for {top} tokens per position, the server reports {len(likeliest)}; raise its "
                "--max-logprobs to one more than engine.top_logprobs"
            )
        rows.append([(entry["logprob"], entry["token_id"]), *likeliest[:top]])
    ids = torch.tensor([[token for _, token in row] for row in rows])
    values = torch.tensor([[value for value, _ in row] for row in rows], dtype=torch.float32)
    return Completion(
        token_ids=tuple(tokens),
        finish_reason=choice["finish_reason"],
        policy_version=version,
        **support_of_output(choice, name),
        **split_rows(ids, values.masked_fill(values <= LOWEST, -torch.inf), top=top, vocabulary=None),
    )
