"""What engines outside the trainer have in common: requests that can be answered, answers that can be trained on."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from holdfast.errors import ConfigError, EngineError
from holdfast.rollout.engine import Completion, Sampling

ROUNDING = 1e-3
"""How far above 0 a log-probability may be by rounding."""


def request_seed(seed: int, sequence_id: int, start: int) -> int:
    """The seed of one request, 63 bits of a hash of (seed, sequence id, length of its prompt).

    The prompt's length is part of it, so that a response that is continued later does not repeat its random numbers.
    """
    digest = hashlib.blake2b(f"{seed} {sequence_id} {start}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def write_model(model: Any, tokenizer: Any, folder: Path) -> None:
    """A model folder in which every weight has its own name, tied ones too.

    `save_pretrained` leaves out a head that is tied to the embedding. vLLM 0.32 loads such a folder, but reloading it
    keeps the old head beside the new embedding, and says so only in its log.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    config = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__]
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    weights: dict[str, Tensor] = {}
    written = set()
    for name, tensor in model.state_dict().items():
        weights[name] = tensor.detach().cpu().contiguous()
        if weights[name].data_ptr() in written:
            weights[name] = weights[name].clone()
        written.add(weights[name].data_ptr())
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def check_requests(
    prompts: Sequence[Sequence[int]],
    sequence_ids: Sequence[int],
    sampling: Sampling,
    *,
    context: int | None,
    vocabulary: int | None = None,
) -> None:
    """Refuse what the engine cannot answer, before it does so in its own words or not at all.

    Raises:
        ConfigError: a temperature that vLLM refuses or silently changes.
        EngineError: ids that do not match the prompts, an empty prompt, a token that the engine's model does not have,
            a prompt that leaves too little of the context.
    """
    if sampling.temperature != 0 and not 0.01 <= sampling.temperature <= 2:
        raise ConfigError(f"sampling.temperature = {sampling.temperature}: vLLM samples at 0.01 to 2, or 0 (greedy)")
    if len(prompts) != len(sequence_ids):
        raise EngineError(f"{len(prompts)} prompts but {len(sequence_ids)} sequence ids: one id per prompt")
    for prompt, sequence_id in zip(prompts, sequence_ids, strict=True):
        if not prompt:
            raise EngineError("a prompt is empty: give it at least a beginning-of-sequence token")
        if vocabulary is not None and not 0 <= min(prompt) <= max(prompt) < vocabulary:
            raise EngineError(
                f"sequence {sequence_id}: token {max(prompt)} in the prompt, but the engine's model has {vocabulary}: "
                "the prompts come from another tokenizer; give trainer and engine the same model folder"
            )
        if context is not None and len(prompt) + sampling.max_tokens > context:
            raise EngineError(
                f"sequence {sequence_id}: a prompt of {len(prompt)} tokens and sampling.max_tokens = "
                f"{sampling.max_tokens} do not fit into the engine's context of {context}; shorten one or raise "
                "engine.context"
            )


def checked(completion: Completion, sampling: Sampling, name: str) -> Completion:
    """The completion, if it can be trained on; a greedy one gets the log-probabilities of what greedy really samples.

    Engines report the model's log-probabilities of a greedily chosen token; that token was certain.

    Raises:
        EngineError: an empty response, or log-probabilities that are missing, positive or not finite.
    """
    tokens, logprobs = completion.token_ids, completion.logprobs
    if not tokens:
        raise EngineError(f"{name}: the response is empty: ask for at least one token and do not strip the end token")
    if len(logprobs) != len(tokens):
        raise EngineError(
            f"{name}: {len(logprobs)} log-probabilities for {len(tokens)} tokens: which belongs to which is not known, "
            "so nothing can be trained on them"
        )
    wrong = (~torch.isfinite(logprobs) | (logprobs > ROUNDING)).nonzero().flatten().tolist()
    if wrong:
        raise EngineError(
            f"{name}: log-probability {float(logprobs[wrong[0]])} at token {wrong[0]} of {len(tokens)}: a sampled "
            "token has a finite one, at most 0"
        )
    return _greedy(completion) if sampling.temperature == 0 else completion


def split_rows(
    ids: Int[Tensor, "T W"], logprobs: Float[Tensor, "T W"], *, top: int, vocabulary: int | None
) -> dict[str, Tensor]:
    """`Completion` fields from W reported tokens per position: the sampled one first, then the likeliest ones.

    With `vocabulary` (a number of tokens) all of them are there, and become one dense distribution.
    """
    fields = {"logprobs": logprobs[:, 0]}
    if vocabulary is not None:
        dense = torch.full((len(ids), vocabulary), -torch.inf)
        fields["distributions"] = dense.scatter_(1, ids[:, 1:], logprobs[:, 1:])
    if top:
        fields["top_logprobs"], order = logprobs[:, 1:].sort(dim=1, descending=True, stable=True)
        fields["top_logprobs"] = fields["top_logprobs"][:, :top]
        fields["top_ids"] = ids[:, 1:].gather(1, order[:, :top])
    return fields


def _greedy(completion: Completion) -> Completion:
    """All mass on the chosen tokens."""
    chosen = torch.tensor(completion.token_ids)[:, None]
    distributions, top = completion.distributions, completion.top_logprobs
    if distributions is not None:
        distributions = torch.full_like(distributions, -torch.inf).scatter(1, chosen, 0.0)
    if top is not None:
        assert completion.top_ids is not None
        top = torch.where(completion.top_ids == chosen, 0.0, -math.inf)
    return replace(completion, logprobs=torch.zeros(len(chosen)), distributions=distributions, top_logprobs=top)
