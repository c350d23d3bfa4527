"""What frameworks and people call a rollout's fields, and finding them in a record whoever wrote it.

`ALIASES` has each of our names with the others, the most telling first; `--map ours=theirs` goes before all of them. A
dot in a name of theirs goes into an object: `meta.score`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from zlib import crc32

import numpy as np

from holdfast.audit.course import VOCABULARY
from holdfast.audit.read.raw.fields import LARGEST_ID, Unusable, digits, real, whole
from holdfast.audit.read.reading import Reading
from holdfast.errors import ConfigError

ALIASES: Mapping[str, tuple[str, ...]] = {
    "prompt_ids": (
        *("prompt_ids", "prompts", "prompt_token_ids", "prompt_tokens", "prompt_input_ids", "query_ids"),
        *("query_tokens", "queries", "context_ids", "input_tokens"),
    ),
    "response_ids": (
        *("response_ids", "responses", "response_token_ids", "response_tokens", "completion_ids", "output_ids"),
        *("completion_token_ids", "output_token_ids", "output_tokens", "generation_token_ids", "generated_ids"),
        *("generated_token_ids", "generated_tokens", "action_ids", "sampled_token_ids", "completion_tokens"),
    ),
    "token_ids": ("token_ids", "tokens", "input_ids", "sequences", "sequence_ids", "all_token_ids"),
    "rollout_logprobs": (
        *("rollout_logprobs", "rollout_log_probs", "generation_logprobs", "generation_log_probs"),
        *("inference_logprobs", "inference_log_probs", "infer_logprobs", "sampling_per_token_logps"),
        *("sampling_logprobs", "sampling_log_probs", "sampler_logprobs", "vllm_logprobs", "vllm_log_probs"),
        *("sglang_logprobs", "behavior_logprobs", "behavior_log_probs", "behaviour_logprobs", "behav_logprobs"),
        *("engine_logprobs", "output_logprobs", "output_log_probs", "response_logprobs", "response_log_probs"),
        *("completion_logprobs", "rollout_logp", "behavior_logp", "mu_logprobs"),
    ),
    "trainer_logprobs": (
        *("trainer_logprobs", "trainer_log_probs", "train_logprobs", "train_log_probs", "training_logprobs"),
        *("old_log_probs", "old_logprobs", "old_per_token_logps", "old_log_prob", "prev_logprobs", "actor_logprobs"),
        *("actor_log_probs", "action_log_probs", "prox_logp", "proximal_logprobs", "policy_logprobs"),
        *("policy_log_probs", "learner_logprobs", "recomputed_logprobs", "recompute_logprobs", "old_logp"),
    ),
    "logprobs": ("logprobs", "log_probs", "logps", "per_token_logps", "token_logprobs", "logp"),
    "response_mask": (
        *("response_mask", "loss_mask", "loss_masks", "completion_mask", "action_mask", "token_loss_mask"),
        *("response_loss_mask", "assistant_mask", "assistant_masks", "sampled_mask", "mask"),
    ),
    "attention_mask": ("attention_mask",),
    "trust_mask": ("trust_mask",),
    "entropy": ("entropy", "entropies", "entropys", "token_entropy", "token_entropies"),
    "advantages": ("advantages", "advantage", "advs"),
    "kl_exact": ("kl_exact",),
    "kl_lower": ("kl_lower",),
    "tv_lower": ("tv_lower",),
    "tv_upper": ("tv_upper",),
    "turn_ids": ("turn_ids",),
    "weight_versions": (
        *("weight_versions", "weight_version", "policy_version", "policy_versions", "output_versions", "versions"),
        *("model_version",),
    ),
    "experts_changed": ("experts_changed", "routing_mismatch", "router_mismatch"),
    "support_size": ("support_size", "sampling_support_size"),
    "reward": (
        *("reward", "rewards", "score", "scores", "raw_reward", "raw_rewards", "token_level_scores", "rm_scores"),
        *("token_level_rewards", "total_reward", "final_reward", "seq_reward"),
    ),
    "step": (
        *("step", "global_step", "global_steps", "training_step", "train_step", "iteration", "rollout_id"),
        *("rollout_step",),
    ),
    "group_id": (
        *("group_id", "uid", "group", "group_index", "prompt_id", "prompt_idx", "prompt_index", "problem_id"),
        *("question_id", "query_id", "example_id", "_ng_task_index", "task_id"),
    ),
    "sequence_id": ("sequence_id", "sample_id", "sample_index", "sample_idx", "sample_indices"),
    "temperature": ("temperature",),
    "top_p": ("top_p",),
    "top_k": ("top_k",),
    "min_p": ("min_p",),
    "environment": ("environment", "env", "env_name", "data_source", "dataset", "agent_ref", "task_name"),
    "finish_reason": ("finish_reason", "stop_reason", "finish_reasons"),
    "mask_reason": ("mask_reason",),
    "prompt_length": ("prompt_length", "prompt_lengths", "prompt_len", "prompt_lens"),
    "response_length": ("response_length", "response_lengths", "response_len", "completion_length", "input_lengths"),
    "prompt_text": ("prompt_text", "prompt", "question", "input"),
    "response_text": ("response_text", "response", "completion", "output", "text"),
}
"""`token_ids` is a whole sequence, `logprobs` those of a side that the record does not name."""

_SETTINGS = ("sampling_params", "sampling", "responses_create_params", "generation_config", "request", "body")
_NUMBERS = ("reward", "step", "group_id", "sequence_id", "temperature", "top_p", "top_k", "min_p")
_WORDS = ("environment", "finish_reason", "mask_reason")

Facts = tuple[dict[str, float | int | None], dict[str, str | None]]
"""Numbers and words of one sequence."""


def find(record: Mapping[str, Any], ours: str, columns: Mapping[str, str]) -> tuple[str, Any] | None:
    """Their name and the value of one of our fields, None where the record has none of the names."""
    if ours in columns:
        value: Any = record
        for part in columns[ours].split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        return None if value is None else (columns[ours], value)
    return next(((name, record[name]) for name in ALIASES[ours] if record.get(name) is not None), None)


def own_columns(pairs: Sequence[str]) -> dict[str, str]:
    """Ours to theirs, from `ours=theirs` as the command line takes it.

    Raises ConfigError for a pair without `=`, and for a name that is none of ours.
    """
    columns: dict[str, str] = {}
    for pair in pairs:
        ours, equals, theirs = pair.partition("=")
        if not equals or not theirs or ours not in (*ALIASES, *VOCABULARY):
            known = ", ".join(dict.fromkeys((*ALIASES, *VOCABULARY)))
            raise ConfigError(f"--map {pair}: give it as ours=theirs, where ours is one of {known}")
        columns[ours] = theirs
    return columns


def looked_for(ours: str, columns: Mapping[str, str]) -> str:
    """The names that `find` tries, in words."""
    return columns[ours] if ours in columns else ", ".join(ALIASES[ours])


def facts_of(layers: Sequence[Mapping[str, Any]], reading: Reading) -> Facts:
    """What the records around an answer say of it, the innermost first.

    A guessed field of an unexpected type counts as missing, with a note; one named by `--map` is a fault.
    """
    layers = [*layers, *(layer[name] for layer in layers for name in _SETTINGS if isinstance(layer.get(name), Mapping))]
    numbers = {name: _fact(layers, name, reading) for name in _NUMBERS}
    words = {name: _fact(layers, name, reading) for name in _WORDS}
    if numbers["top_k"] is not None and numbers["top_k"] <= 0:  # how engines write "off"
        numbers["top_k"] = None
    return numbers, words


def _fact(layers: Sequence[Mapping[str, Any]], ours: str, reading: Reading) -> Any:
    for layer in layers:
        found = find(layer, ours, reading.columns)
        if found is None:
            continue
        try:
            return _READERS[ours](found[1], found[0])
        except Unusable as problem:
            if ours in reading.columns:
                raise
            reading.note(
                f"{ours} was not read: {problem.detail.split(' is ')[0]} holds something else; --map {ours}=NAME"
            )
    return None


def _reward(value: Any, name: str) -> float | None:
    """A number; of an object with one number, that; of a list, the sum (rewards per token)."""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, Mapping):
        numbers = {k: v for k, v in value.items() if isinstance(v, (int, float))}
        key = next((k for k in ("total", "reward", "score") if k in numbers), None)
        if key is None and len(numbers) != 1:
            raise Unusable("wrong type", f"{name} is an object with {len(numbers)} numbers")
        value = numbers[key] if key else next(iter(numbers.values()))
    if isinstance(value, list):
        parts = [real(part, name) for part in value]
        return sum(part for part in parts if part is not None) if parts else None
    return real(value, name)


def _whole(value: Any, name: str) -> int | None:
    number = digits(value)
    return whole(_one(value), name) if number is None else number


def _group(value: Any, name: str) -> int | None:
    value = _one(value)
    if isinstance(value, str):
        number = digits(value)
        return crc32(value.encode(errors="replace")) if number is None else number
    return whole(value, name)


def _number(value: Any, name: str) -> float | None:
    return real(_one(value), name)


def _word(value: Any, name: str) -> str | None:
    value = _one(value)
    if isinstance(value, Mapping):  # {"name": ...} of NeMo-Gym and verifiers, {"type": "stop"} of SGLang
        value = value.get("name") or value.get("type") or value.get("id")
    if value is None or isinstance(value, str):
        return value
    raise Unusable("wrong type", f"{name} is no text")


def _one(value: Any) -> Any:
    """A value that may be in a list or an array of one."""
    if isinstance(value, np.ndarray) and value.size == 1:
        return value.reshape(-1)[0].item()
    return value[0] if isinstance(value, list) and len(value) == 1 else value


_READERS: Mapping[str, Any] = {
    **dict.fromkeys(("temperature", "top_p", "min_p"), _number),
    **dict.fromkeys(("step", "sequence_id", "top_k"), _whole),
    **dict.fromkeys(_WORDS, _word),
    "reward": _reward,
    "group_id": _group,
}


def versions(value: Any, count: int) -> np.ndarray | None:
    """[count] a version for the whole answer or for each token; None for names that are no numbers."""
    value = _one(value)
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, list):
        known = [v if isinstance(v, int) else digits(v) for v in value]
        fits = len(known) == count and all(v is not None and 0 <= v <= LARGEST_ID for v in known)
        return np.array(known, np.int32) if fits else None
    number = value if isinstance(value, int) else digits(value)
    return np.full(count, number, np.int32) if number is not None and 0 <= number <= LARGEST_ID else None
