"""Rollouts written to files as each framework's own code writes them, from what its source says (see the loaders)."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import orjson
import torch

from holdfast.audit.read.reading import Reading
from holdfast.audit.read.source import find_files, read_files
from holdfast.types import Rollout

CONTEXT_PARALLEL = 2


def sample_rollouts(seed=0, count=6, *, turns=(1, 3), largest=40) -> list[Rollout]:
    """Rollouts of several turns with tool output in between, values as float32 holds them."""
    rng = random.Random(seed)
    return [_rollout(rng, number, rng.randint(*turns), largest) for number in range(count)]


def _rollout(rng, number, turns, largest):
    mask, turn_ids = [], []
    for turn in range(turns):
        spoken, heard = rng.randint(2, largest), rng.randint(1, 5) if turn + 1 < turns else 0
        mask += [True] * spoken + [False] * heard
        turn_ids += [turn] * (spoken + heard)
    rollout = _floats(-rng.expovariate(2) for _ in mask)
    trainer = [r + rng.gauss(0, 0.02) if m else -5.0 for r, m in zip(rollout, mask, strict=True)]
    advantage = _floats([rng.gauss(0, 1)])[0]
    return Rollout(
        prompt_ids=tuple(rng.randrange(50_000) for _ in range(rng.randint(3, 9))),
        response_ids=tuple(rng.randrange(50_000) for _ in mask),
        rollout_logprobs=tuple(r if m else 0.0 for r, m in zip(rollout, mask, strict=True)),
        trainer_logprobs=_floats(trainer),
        response_mask=tuple(mask),
        entropy=_floats(rng.random() for _ in mask),
        advantages=(advantage,) * len(mask),
        turn_ids=tuple(turn_ids),
        trust_mask=tuple(m and rng.random() < 0.9 for m in mask),
        weight_versions=(7,) * len(mask),
        reward=float(rng.randint(0, 1)),
        step=12,
        sequence_id=number,
        group_id=number // 2,
        environment="math",
        finish_reason="stop",
    )


def _floats(values) -> tuple[float, ...]:
    return tuple(torch.tensor(list(values), dtype=torch.float32).tolist())


def whole(rollout, name, prompt=0.0):
    """A field over prompt and response."""
    return [prompt] * len(rollout.prompt_ids) + list(getattr(rollout, name))


def load(path: Path, **options) -> tuple[list[Rollout], Reading]:
    """All rollouts under a path, and what was said of the reading."""
    reading = Reading(**options)
    rollouts = [chunk.rollout(i) for _, chunk in read_files(find_files(path), reading) for i in range(len(chunk))]
    return rollouts, reading


def nemo_rl(folder: Path, rollouts) -> Path:
    """`Logger.log_batched_dict_as_jsonl`: every value sliced [i:i+1], tensors as lists, right padded to the longest."""
    longest = max(len(r.prompt_ids) + len(r.response_ids) for r in rollouts)

    def padded(name, dtype, fill=0):
        rows = [list(r.prompt_ids) + list(r.response_ids) if name == "ids" else whole(r, name, fill) for r in rollouts]
        return torch.tensor([row + [fill] * (longest - len(row)) for row in rows], dtype=dtype).tolist()

    log_data = {
        "content": [[f"question {i}", "answer"] for i in range(len(rollouts))],
        "rewards": [r.reward for r in rollouts],
        "input_lengths": [len(r.prompt_ids) + len(r.response_ids) for r in rollouts],
        "token_ids": padded("ids", torch.int64),
        "token_loss_mask": padded("response_mask", torch.int64),
        "sample_loss_mask": [1.0 for _ in rollouts],
        "advantages": padded("advantages", torch.float32),
        "generation_logprobs": padded("rollout_logprobs", torch.float32),
        "prev_logprobs": padded("trainer_logprobs", torch.float32),
    }
    path = folder / "train_data_step12.jsonl"
    with path.open("w") as file:
        for i in range(len(rollouts)):
            sample = {key: value[i : i + 1] for key, value in log_data.items()}
            file.write(json.dumps({**sample, "idx": i}, default=str) + "\n")
    return path


def prime_rl_tokens(folder: Path, rollouts) -> Path:
    """`TokenExporter._write`: compact JSON, no NaN; a first token has no log-probability, padding is trimmed."""
    path = folder / "token_exports" / "step_12" / "rank_0.jsonl"
    path.parent.mkdir(parents=True)
    with path.open("a", encoding="utf-8") as file:
        for i, r in enumerate(rollouts):
            length = len(r.prompt_ids) + len(r.response_ids)
            engine, trainer = whole(r, "rollout_logprobs"), whole(r, "trainer_logprobs", -10.8)
            ratio = [t - e for t, e in zip(trainer, engine, strict=True)]
            mask = whole(r, "response_mask", False)
            rejected = [m and not t for m, t in zip(mask, whole(r, "trust_mask", False), strict=True)]
            record = {
                "schema_version": 1,
                "step": 12,
                "rank": 0,
                "micro_step": i // 2,
                "micro_sequence_idx": i % 2,
                "export_sequence_idx": i,
                "env_name": "math",
                "token_ids": [*r.prompt_ids, *r.response_ids],
                "position_ids": list(range(length)),
                "loss_mask": mask,
                "advantages": whole(r, "advantages"),
                "inference_logprobs": engine,
                "trainer_logprobs": trainer,
                "entropy": whole(r, "entropy", 10.8),
                "mismatch_kl": [math.exp(x) - x - 1 for x in ratio],
                "log_importance_ratio": ratio,
                "importance_ratio": [math.exp(x) for x in ratio],
                "prob_delta": [math.exp(t) - math.exp(e) for t, e in zip(trainer, engine, strict=True)],
                "is_masked": rejected,
                "is_masked_high": rejected,
                "is_masked_low": [False] * length,
                "rl_weights": [None] * length,
                "ce_weights": [None] * length,
                "ref_kl_weights": [None] * length,
            }
            file.write(json.dumps(record, separators=(",", ":"), allow_nan=False) + "\n")
    return path


def traces(folder: Path, rollouts, *, decimals=None) -> Path:
    """`FileMonitor.log_episodes` over `Episode.to_record`: a node per message, values per sampled token."""
    path = folder / "rollouts" / "step_12" / "train" / "effective" / "traces.jsonl"
    path.parent.mkdir(parents=True)
    with path.open("ab") as file:
        for r in rollouts:
            episode = {
                "id": f"{r.sequence_id:032x}",
                "env": {"id": "single+math", "name": "math"},
                "task": {"type": "Task", "data": {}},
                "group": {"id": f"group-{r.group_id}"},
                "run": {
                    "type": "train",
                    "id": "r",
                    "work": {"type": "train", "step": 11, "policy": {"start": 7, "end": 7}},
                },
                "ok": True,
                "errors": [],
                "traces": [_trace(r, decimals)],
            }
            file.write(orjson.dumps(episode, default=str, option=orjson.OPT_APPEND_NEWLINE))
    return path


def _trace(r: Rollout, decimals):
    nodes = [{"message": {"role": "user", "content": "?"}, "sampled": False, "token_ids": list(r.prompt_ids)}]
    nodes[0] |= {"mask": [False] * len(r.prompt_ids), "is_content": [], "logprobs": []}
    start = 0
    for i in range(1, len(r.response_mask) + 1):
        if i == len(r.response_mask) or r.response_mask[i] != r.response_mask[start]:
            nodes.append(_node(r, range(start, i), len(nodes) - 1, decimals))
            start = i
    return {
        "version": 1,
        "id": "t",
        "agent": {"config": {}, "name": "agent", "trainable": True},
        "nodes": nodes,
        "calls": [{"node": 1, "sampling": {"temperature": 1.0}, "finish_reason": "stop"}],
        "rewards": {"right": {"score": r.reward * 2, "weight": 0.5}},
        "is_completed": True,
        "ok": True,
    }


def _node(r: Rollout, span, parent, decimals):
    sampled = r.response_mask[span[0]]

    def of(name):
        return (
            [round(getattr(r, name)[i], decimals) if decimals else getattr(r, name)[i] for i in span] if sampled else []
        )

    node = {
        "parent": parent,
        "message": {"role": "assistant" if sampled else "tool", "content": "..."},
        "sampled": sampled,
        "token_ids": [r.response_ids[i] for i in span],
        "mask": [sampled] * len(span),
        "is_content": [True] * len(span),
        "logprobs": of("rollout_logprobs"),
    }
    if sampled:
        node |= {"advantages": of("advantages"), "trainer_logprobs": of("trainer_logprobs"), "entropies": of("entropy")}
    return node


def open_instruct(folder: Path, rollouts) -> Path:
    """`_save_rollouts`: json.dumps of the RolloutRecord."""
    path = folder / "run_rollouts_000000.jsonl"
    with path.open("a") as file:
        for r in rollouts:
            record = {
                "step": r.step,
                "sample_idx": r.sequence_id,
                "prompt_idx": r.group_id,
                "prompt_tokens": list(r.prompt_ids),
                "response_tokens": list(r.response_ids),
                "reward": r.reward,
                "advantage": r.advantages[0],
                "finish_reason": r.finish_reason,
                "dataset": r.environment,
                "ground_truth": [1, 2],
                "request_info": {"num_calls": max(r.turn_ids), "tool_outputs": "", "rollout_state": {}},
                "logprobs": list(r.rollout_logprobs),
            }
            file.write(json.dumps(record) + "\n")
    return path


def slime_rollout(folder: Path, rollouts) -> Path:
    """`save_debug_rollout_data`: torch.save of `Sample.to_dict` for each sample."""
    path = folder / "rollout_data" / "12.pt"
    path.parent.mkdir(exist_ok=True)
    torch.save({"rollout_id": 12, "samples": [_sample(r) for r in rollouts]}, path)
    return path


def _sample(r: Rollout):
    return {
        "group_index": r.group_id,
        "index": r.sequence_id,
        "rollout_id": None,
        "prompt": "what?",
        "tokens": [*r.prompt_ids, *r.response_ids],
        "multimodal_inputs": None,
        "response": "this",
        "response_length": len(r.response_ids),
        "label": "1",
        "reward": r.reward,
        "loss_mask": [int(m) for m in r.response_mask],
        "weight_versions": ["7"] * (max(r.turn_ids) + 1),
        "rollout_log_probs": list(r.rollout_logprobs),
        "rollout_routed_experts": None,
        "remove_sample": False,
        "status": "completed",
        "metadata": {},
        "spec_info": {"spec_accept_token_num": 0},
    }


def slime_train(folder: Path, rollouts) -> Path:
    """`_build_dump_payload`: a dictionary per sample; `rewards` are normalised, `raw_reward` is in rollout order."""
    path = folder / "train_data" / "12.pt"
    path.parent.mkdir(exist_ok=True)
    columns = _columns(rollouts)
    samples = [
        {
            "data_parallel_rank": 0,
            "sample_index": r.sequence_id,
            "rollout_position": i,
            **{name: column[i] for name, column in columns.items() if name != "sample_indices"},
        }
        for i, r in enumerate(rollouts)
    ]
    payload = {"format_version": 2, "rollout_id": 12, "rank": 0, "samples": samples, "dp_shards": [{"rank": 0}]}
    torch.save({**payload, "raw_reward": [r.reward for r in rollouts]}, path)
    return path


def _columns(rollouts):
    def tensors(name):
        return [torch.tensor(getattr(r, name)) for r in rollouts]

    return {
        "tokens": [torch.tensor([*r.prompt_ids, *r.response_ids]) for r in rollouts],
        "response_lengths": [len(r.response_ids) for r in rollouts],
        "total_lengths": [len(r.prompt_ids) + len(r.response_ids) for r in rollouts],
        "rewards": [r.advantages[0] for r in rollouts],
        "truncated": [0] * len(rollouts),
        "loss_masks": [torch.tensor(r.response_mask, dtype=torch.int) for r in rollouts],
        "sample_indices": [r.sequence_id for r in rollouts],
        "rollout_log_probs": tensors("rollout_logprobs"),
        "log_probs": tensors("trainer_logprobs"),
        "advantages": tensors("advantages"),
        "entropy": tensors("entropy"),
    }


def miles_train(folder: Path, rollouts, size=CONTEXT_PARALLEL) -> Path:
    """`save_debug_train_data_for_rank`: a file per rank; here 2 pipeline stages times `size` context-parallel ranks."""
    folder = folder / "train_data"
    folder.mkdir(exist_ok=True)
    for stage in range(2):
        for cp_rank in range(size):
            columns = _columns(rollouts)
            for name in ("rollout_log_probs", "log_probs", "advantages", "entropy"):
                columns[name] = [_owned(v, r, cp_rank, size) for v, r in zip(columns[name], rollouts, strict=True)]
            if stage == 0:  # only the last stage has logits
                del columns["log_probs"], columns["entropy"]
            columns |= {"raw_reward": [r.reward for r in rollouts], "partition": list(range(len(rollouts)))}
            columns["weight_versions"] = [["7"] for _ in rollouts]
            rank = stage * size + cp_rank
            payload = {"rollout_id": 12, "rank": rank, "rollout_data": columns, "cp_rank": cp_rank, "cp_size": size}
            torch.save({**payload, "qkv_format": "thd"}, folder / f"12_{rank}.pt")
    return folder / "12_0.pt"


def _owned(values, r: Rollout, cp_rank, size):
    """What a context-parallel rank has of a response's values: token by token, by the piece its logit lies in."""
    total = len(r.prompt_ids) + len(r.response_ids)
    piece = math.ceil(total / (2 * size))
    mine = {cp_rank, 2 * size - 1 - cp_rank}
    owned = [(len(r.prompt_ids) - 1 + j) // piece in mine for j in range(len(values))]
    return values[torch.tensor(owned)]


def chat(folder: Path, rollouts) -> Path:
    """vLLM's chat completions with return_token_ids, one answer a line."""
    path = folder / "answers.jsonl"
    with path.open("w") as file:
        for r in rollouts:
            content = [
                {"token": f"t{t}", "logprob": p, "bytes": [116], "top_logprobs": []}
                for t, p in zip(r.response_ids, r.rollout_logprobs, strict=True)
            ]
            answer = {
                "id": "chatcmpl-1",
                "object": "chat.completion",
                "model": "m",
                "choices": [
                    {
                        "index": 0,
                        "message": {"role": "assistant", "content": "text"},
                        "logprobs": {"content": content},
                        "finish_reason": "stop",
                        "token_ids": list(r.response_ids),
                    }
                ],
                "prompt_token_ids": list(r.prompt_ids),
                "usage": {},
            }
            file.write(json.dumps(answer) + "\n")
    return path


def sglang(folder: Path, rollouts) -> Path:
    """SGLang's `/generate`, the prompt's ids and the reward beside each answer."""
    lines = []
    for r in rollouts:
        entries = [[p, t, None] for t, p in zip(r.response_ids, r.rollout_logprobs, strict=True)]
        meta = {"output_token_logprobs": entries, "weight_version": "3", "finish_reason": {"type": "stop"}}
        answer = {"text": "text", "output_ids": list(r.response_ids), "meta_info": meta}
        lines.append({"input_ids": list(r.prompt_ids), "answer": answer, "reward": r.reward, "step": r.step})
    return _lines(folder / "generate.jsonl", lines)


def nemo_gym(folder: Path, rollouts) -> Path:
    """NeMo-Gym's rollouts, an item of the output for each stretch that the policy sampled."""
    lines = []
    for r in rollouts:
        tokens, own, output = [*r.prompt_ids, *r.response_ids], whole(r, "response_mask", False), []
        start = len(r.prompt_ids)
        for at in range(start, len(tokens) + 1):
            ends = at == len(tokens) or not own[at]
            if ends and own[at - 1] and at > start:
                first = next(i for i in range(at - 1, -1, -1) if i == start or not own[i - 1])
                values = list(r.rollout_logprobs[first - start : at - start])
                ids = {"prompt_token_ids": tokens[:first], "generation_token_ids": tokens[first:at]}
                output.append({"type": "message", **ids, "generation_log_probs": values})
        response = {"object": "response", "output": output}
        lines.append({"response": response, "reward": r.reward, "agent_ref": {"name": r.environment}})
    return _lines(folder / "example_rollouts.jsonl", lines)


def responses_api(folder: Path, rollouts) -> Path:
    """The Responses API, texts alone."""
    lines = []
    for r in rollouts:
        pairs = zip(r.response_ids, r.rollout_logprobs, strict=True)
        content = [{"token": f"token_id:{t}", "logprob": p, "top_logprobs": []} for t, p in pairs]
        parts = [{"type": "output_text", "text": "text", "logprobs": content}]
        lines.append({"object": "response", "output": [{"type": "message", "content": parts}], "status": "completed"})
    return _lines(folder / "answers.jsonl", lines)


def generic(folder: Path, rollouts) -> Path:
    """JSON Lines under TRL's names."""
    names = {"prompt_ids": "prompt_ids", "completion_ids": "response_ids", "completion_mask": "response_mask"}
    names |= {"sampling_per_token_logps": "rollout_logprobs", "old_per_token_logps": "trainer_logprobs"}
    names |= {"advantages": "advantages", "entropies": "entropy"}
    lines = [
        {**{theirs: list(getattr(r, ours)) for theirs, ours in names.items()}, "reward": r.reward, "step": r.step}
        for r in rollouts
    ]
    return _lines(folder / "mine.jsonl", lines)


def _lines(path: Path, lines) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


ANSWERS = (sglang, nemo_gym, responses_api)
WRITERS = (
    nemo_rl,
    prime_rl_tokens,
    traces,
    open_instruct,
    slime_rollout,
    slime_train,
    miles_train,
    chat,
    *ANSWERS,
    generic,
)
