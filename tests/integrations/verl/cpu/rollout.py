"""A rollout engine for verl that samples with transformers on a CPU, reproducibly and with a mismatch on demand.

HOLDFAST_CPU_NOISE adds Gaussian noise to the logits before sampling: the log-probabilities it reports are those it
sampled with, so the trainer sees an honest engine mismatch. HOLDFAST_CPU_TOP_K reports the engine's K most probable
tokens at every position, as the plug-in's third level reads them. HOLDFAST_CPU_NAN_AT makes one sampled token's
log-probability NaN.
"""

import asyncio
import math
import os
import zlib
from collections import Counter
from typing import Any

import ray
import torch
from verl.workers.rollout.base import _ROLLOUT_REGISTRY, BaseRollout
from verl.workers.rollout.replica import RolloutReplica, RolloutReplicaRegistry, TokenOutput

from . import attention as attention  # registers attention over packed sequences
from . import platform as platform  # registers the CPU platform in every process that loads this module

ENGINE = "holdfast_cpu_engine"


@ray.remote(num_cpus=0, max_concurrency=64)
class Engine:
    """One model behind all replicas. The i-th request for a prompt at a weight version always draws the same tokens."""

    def __init__(self, path: str, length: int) -> None:
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(1)
        self.model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="sdpa").eval()
        self.length = length
        self.version, self.asked, self.lock = 0, Counter(), asyncio.Lock()
        self.noise = float(os.environ.get("HOLDFAST_CPU_NOISE", "0"))
        self.top_k = int(os.environ.get("HOLDFAST_CPU_TOP_K", "0"))
        self.nan_at = int(os.environ.get("HOLDFAST_CPU_NAN_AT", "-1"))

    async def load(self, weights: dict[str, torch.Tensor], version: int | None) -> None:
        async with self.lock:
            self.model.load_state_dict({name: torch.as_tensor(value).float() for name, value in weights.items()})
            self.version = self.version if version is None else version

    async def nothing(self, *args: Any, **options: Any) -> None:
        """Sleeping, waking, caches and profiles: there is nothing to do."""

    wake_up = sleep = abort_all_requests = resume_generation = clear_kv_cache = nothing
    release_kv_cache = resume_kv_cache = start_profile = stop_profile = set_global_steps = nothing

    async def generate(
        self, request_id: str, prompt_ids: list[int], sampling_params: dict[str, Any], **options: Any
    ) -> TokenOutput:
        async with self.lock:
            prompt = zlib.crc32(str(list(prompt_ids)).encode())
            number = self.asked[prompt, self.version]
            self.asked[prompt, self.version] += 1
            generator = torch.Generator().manual_seed(zlib.crc32(f"{prompt} {self.version} {number}".encode()))
            return self._sample(list(prompt_ids), float(sampling_params["temperature"]), generator)

    @torch.no_grad()
    def _sample(self, prompt: list[int], temperature: float, generator: torch.Generator) -> TokenOutput:
        tokens, logprobs, tops = [], [], []
        cache, inputs = None, torch.tensor([prompt])
        while len(tokens) < self.length:
            output = self.model(input_ids=inputs, past_key_values=cache, use_cache=True)
            cache, logits = output.past_key_values, output.logits[0, -1].float()
            logits = logits + self.noise * torch.randn(logits.shape, generator=generator)
            distribution = (logits / temperature).log_softmax(-1)
            tops.append(distribution.topk(self.top_k))
            tokens.append(int(distribution.exp().multinomial(1, generator=generator)))
            logprobs.append(float(distribution[tokens[-1]]))
            if tokens[-1] == self.model.config.eos_token_id:
                break
            inputs = torch.tensor([tokens[-1:]])
        if 0 <= self.nan_at < len(logprobs):
            logprobs[self.nan_at] = math.nan
        fields = {"global_steps": self.version} | (_as_teacher(len(prompt), tops) if self.top_k else {})
        return TokenOutput(token_ids=tokens, log_probs=logprobs, stop_reason="completed", extra_fields=fields)


def _as_teacher(prompt: int, tops: list[Any]) -> dict[str, torch.Tensor]:
    """verl's alignment for distillation: row i holds the distribution of token i + 1."""
    ids = torch.zeros(prompt + len(tops), len(tops[0].indices), dtype=torch.int64)
    logprobs = torch.zeros(ids.shape)
    for place, top in enumerate(tops, start=prompt - 1):
        ids[place], logprobs[place] = top.indices, top.values
    return {"teacher_ids": ids, "teacher_logprobs": logprobs}


class Replica(RolloutReplica):
    """Every replica is the same engine, so that the number of ranks changes no sample."""

    async def launch_servers(self) -> None:
        path = self.model_config["path"] if isinstance(self.model_config, dict) else self.model_config.path
        engine = Engine.options(name=ENGINE, get_if_exists=True).remote(path, self.config.response_length)
        self.servers, self._server_handle = [engine], engine
        self._server_address = f"{ENGINE}-{self.replica_rank}"


class ServerAdapter(BaseRollout):
    """The training worker's side: hands the gathered weights to the engine."""

    async def resume(self, tags: list[str]) -> None:
        """The engine never sleeps."""

    async def release(self) -> None:
        """The engine never sleeps."""

    async def update_weights(
        self, weights: Any, global_steps: int | None = None, wire_format: str = "named_tensors", **options: Any
    ) -> None:
        whole = {name: getattr(w, "full_tensor", lambda w=w: w)().detach().cpu().clone() for name, w in weights}
        if int(os.environ["RANK"]) == 0:
            await ray.get_actor(ENGINE).load.remote(whole, global_steps)


RolloutReplicaRegistry.register("holdfast_cpu", lambda: Replica)
_ROLLOUT_REGISTRY["holdfast_cpu", "async"] = f"{__name__}.ServerAdapter"
