"""vLLM in the trainer's process: its scheduler, kernels and sampler, our seeds, weights handed over in memory.

Written against vLLM 0.32; `holdfast.rollout.outside.server` needs no vLLM beside the trainer.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from holdfast.errors import ConfigError, EngineError, nearest
from holdfast.rollout.engine import Completion, Sampling
from holdfast.rollout.outside.external import check_requests, checked, request_seed, split_rows
from holdfast.rollout.outside.masked import as_vllm_takes_it, support_of_output

PRECISIONS = ("float32", "bfloat16", "float16")
GIB = 1 << 30
OVERHEAD = 3 * GIB
"""What vLLM takes on a GPU beside weights, keys and values: activations of its largest batch, captured graphs."""
ENTRIES = 1 << 23
"""Log-probabilities that vLLM may hold at a time when whole distributions are asked for: about 100 bytes each."""


class VllmEngine:
    """Samples with vLLM (holdfast.rollout.engine.Engine); version 0 are the weights of the folder.

    A response depends on (seed, sequence id, length of the prompt) and, by the rounding of vLLM's sums, on what else is
    in the batch; vLLM draws from a generator per request, so not position by position. `sync` replaces the weights in
    place and drops cached prefixes. The engine keeps no weights of its own to save: after `load_state_dict` it waits
    for `sync`. With `sleep` it can give a card's memory back between a batch and the next `sync`.
    """

    def __init__(
        self,
        model_folder: Path | str,
        *,
        eos_token_id: int,
        precision: str = "float32",
        context: int | None = None,
        cache_gib: float = 4.0,
        sleep: bool = False,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        """Load the model; `cache_gib` is the room for keys and values, `options` go to `vllm.LLM` as they are.

        On a GPU vLLM claims a share of the whole card, and is given (cache + weights + 3 GiB) / card; there `sleep`
        turns vLLM's sleep mode on. With `return_sampling_mask` among the options it can report its support, with
        `enable_return_routed_experts` it reports the experts of every response.

        Raises:
            ConfigError: unknown precision, no vLLM beside the trainer, or more memory than the card has.
            EngineError: vLLM cannot load or run the model.
        """
        if precision not in PRECISIONS:
            raise ConfigError(
                f"engine.precision = {precision!r} with vLLM: {nearest(precision, PRECISIONS)}; for quantised weights "
                "set engine.options, e.g. quantization = 'fp8'"
            )
        self.eos_token_id = eos_token_id
        self.request: dict[str, Any] = {}
        """Further fields of `vllm.SamplingParams`, for every request."""
        self._version, self._broken, self._due = 0, "", False
        self._masks = bool((options or {}).get("return_sampling_mask"))
        self._routed = bool((options or {}).get("enable_return_routed_experts"))
        gpu = torch.cuda.is_available()
        self._asleep: set[str] = set()
        card: dict[str, Any] = {"enable_sleep_mode": True} if gpu and sleep else {}
        if gpu and "gpu_memory_utilization" not in (options or {}):
            card["gpu_memory_utilization"] = utilization(Path(model_folder), precision, cache_gib)
        self._llm: Any = _load(
            {
                "model": str(model_folder),
                "dtype": precision,
                "max_model_len": context,
                "kv_cache_memory_bytes": int(cache_gib * GIB),
                "logprobs_mode": "processed_logprobs",
                "max_logprobs": -1,
                "skip_tokenizer_init": True,
                "enforce_eager": not gpu,
                # Rewinds the generator of a request whose prompt is read in parts, which a CPU generator cannot do.
                "enable_chunked_prefill": gpu,
                "disable_log_stats": True,
            }
            | card
            | dict(options or {})
        )
        self._sleeps = bool(gpu and (card | dict(options or {})).get("enable_sleep_mode"))
        settings = self._llm.llm_engine.vllm_config.model_config
        self.context: int = settings.max_model_len
        self.vocabulary: int = settings.get_vocab_size()

    @property
    def policy_version(self) -> int:
        """The version of the weights in use."""
        return self._version

    def sync(self, model: torch.nn.Module, version: int) -> None:
        """Replace the weights, in place, and forget what was computed with the old ones."""
        llm = self._running()
        weights = ((name, tensor.detach()) for name, tensor in model.state_dict().items())
        with self._guarded("taking over weights"):
            self._wake("weights")
            llm.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})
            # Keys and values of a prefix that an old policy computed would mix the two.
            if not llm.reset_prefix_cache():
                raise EngineError("vLLM could not drop its cached prefixes")
        self._version, self._due = version, False

    def sleep(self) -> None:
        """Give the card's memory back until the next `sync`, which is needed before `generate`: the weights go too.

        Does nothing where sleep mode is off.
        """
        if self._sleeps and not self._asleep:
            with self._guarded("falling asleep"):
                self._running().sleep(level=2)
            self._asleep = {"weights", "kv_cache"}

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
        """One response per prompt.

        Raises:
            ConfigError: sampling that vLLM does not do, or not with masks.
            EngineError: the engine is closed, broken or has not got its weights back, a prompt cannot be continued,
                vLLM fails, or masks are asked for of an engine that was started without.
        """
        llm = self._running()
        if self._due:
            raise EngineError("a resumed vLLM engine has no weights: call sync(model, version) before generate")
        if "weights" in self._asleep:
            raise EngineError("a sleeping vLLM engine has no weights: call sync(model, version) before generate")
        check_requests(prompts, sequence_ids, sampling, context=self.context, vocabulary=self.vocabulary)
        if not prompts:
            return []
        asked = as_vllm_takes_it(sampling) if self._masks else sampling
        vocabulary = self.vocabulary if return_distributions else None
        width = return_top if vocabulary is None else -1
        rows = len(prompts) if vocabulary is None else max(1, ENTRIES // (sampling.max_tokens * vocabulary))
        seeds = [request_seed(seed, i, len(prompt)) for i, prompt in zip(sequence_ids, prompts, strict=True)]
        found: list[Completion] = []
        for start in range(0, len(prompts), rows):
            some = slice(start, start + rows)
            parameters = [self._parameters(asked, width, request) for request in seeds[some]]
            for output in self._sample(llm, prompts[some], parameters):
                name = f"sequence {sequence_ids[len(found)]}"
                completion = self._completion(output, return_top, vocabulary)
                if return_support:
                    completion = replace(completion, **support_of_output(output, f"vLLM, {name}"))
                if self._routed:
                    experts = experts_of(output, len(prompts[len(found)]) + len(completion.token_ids) - 1, name)
                    completion = replace(completion, experts=experts)
                found.append(checked(completion, sampling, name))
        return found

    def forget_prefixes(self) -> bool:
        """Drop cached prefixes; whether vLLM could."""
        with self._guarded("dropping cached prefixes"):
            return bool(self._running().reset_prefix_cache())

    def close(self) -> None:
        """Shut vLLM down and free its memory."""
        if self._llm is None:
            return
        from vllm.distributed import cleanup_dist_env_and_memory  # pyright: ignore[reportMissingImports]

        self._llm.llm_engine.engine_core.shutdown()
        self._llm = None
        cleanup_dist_env_and_memory()

    def state_dict(self) -> dict[str, Any]:
        """The version; the weights are the trainer's."""
        return {"policy_version": self._version}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Wait for the weights of this version."""
        self._version, self._due = int(state["policy_version"]), True

    def _sample(self, llm: Any, prompts: Sequence[Sequence[int]], parameters: Sequence[Any]) -> list[Any]:
        """One vLLM output per prompt."""
        with self._guarded("sampling"):
            self._wake("kv_cache")
            outputs = llm.generate(
                [{"prompt_token_ids": list(prompt)} for prompt in prompts], list(parameters), use_tqdm=False
            )
            if [output.prompt_token_ids for output in outputs] != [list(prompt) for prompt in prompts]:
                raise EngineError("vLLM returned responses to other prompts")
        return [output.outputs[0] for output in outputs]

    def _wake(self, part: str) -> None:
        """Take memory for this part back, where it was given away: weights before they are loaded, the cache after."""
        if part in self._asleep:
            self._running().wake_up(tags=[part])
            self._asleep.discard(part)

    def _parameters(self, sampling: Sampling, width: int, seed: int) -> Any:
        from vllm import SamplingParams  # pyright: ignore[reportMissingImports]

        return SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            min_p=sampling.min_p,
            max_tokens=sampling.max_tokens,
            seed=seed,
            logprobs=width,
            flat_logprobs=True,
            # One end token, the trainer's: the model's own list may differ from it.
            stop_token_ids=[self.eos_token_id],
            ignore_eos=True,
            detokenize=False,
            **self.request,
        )

    def _completion(self, output: Any, top: int, vocabulary: int | None) -> Completion:
        """One response; every position reports equally many tokens, the sampled one first."""
        rows = len(output.token_ids)
        ids = torch.tensor(output.logprobs.token_ids).view(rows, -1)
        logprobs = torch.tensor(output.logprobs.logprobs).view(rows, -1)
        fields: dict[str, Tensor] = split_rows(ids, logprobs, top=top, vocabulary=vocabulary)
        return Completion(
            token_ids=tuple(output.token_ids),
            finish_reason=str(output.finish_reason),
            policy_version=self._version,
            **fields,
        )

    def _running(self) -> Any:
        if self._llm is None:
            raise EngineError("the engine is closed: make a new one")
        if self._broken:
            raise EngineError(f"vLLM failed before ({self._broken}): make a new engine")
        return self._llm

    @contextmanager
    def _guarded(self, doing: str) -> Iterator[None]:
        """Leave the trainer's random numbers alone; after a failure no later answer can be trusted."""
        try:
            with _own_random_numbers():
                yield
        except Exception as error:
            self._broken = f"{type(error).__name__}: {error}"
            raise EngineError(f"vLLM failed while {doing}: {self._broken}") from error


def experts_of(output: Any, tokens: int, name: str) -> Int[Tensor, "M layers K"]:
    """The experts in vLLM's CompletionOutput: [prompt + response - 1, layers, K].

    Raises:
        EngineError: there are none, or not for this many tokens.
    """
    chosen = getattr(output, "routed_experts", None)
    found = "none" if chosen is None else f"those of {len(chosen)} tokens"
    if chosen is None or len(chosen) != tokens:
        raise EngineError(
            f"vLLM, {name}: {tokens} tokens were read, and vLLM reports {found} as routed_experts: experts cannot be "
            "replayed; leave engine.replay_experts out"
        )
    return torch.from_numpy(chosen.astype("int16"))


def utilization(folder: Path, precision: str, cache_gib: float) -> float:
    """The share of the card that vLLM may take: (keys and values + weights + 3 GiB) / all of it.

    vLLM refuses to start where that share is not free, even though the size of its cache is given.

    Raises:
        ConfigError: it is more than the whole card.
    """
    _, total = torch.cuda.mem_get_info()
    weights = weight_bytes(folder, precision)
    share = (cache_gib * GIB + weights + OVERHEAD) / total
    if share > 1:
        raise ConfigError(
            f"vLLM would need {share * total / 1e9:.1f} GB of a card of {total / 1e9:.1f} GB: engine.cache_gib = "
            f"{cache_gib:g} GiB, weights {weights / 1e9:.1f} GB, {OVERHEAD / GIB:g} GiB for itself; lower "
            "engine.cache_gib, or take a smaller model"
        )
    return share


def weight_bytes(folder: Path, precision: str) -> int:
    """Bytes of a folder's weights in this precision; a head that is tied to the embedding counts once more."""
    from safetensors import safe_open

    numbers = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            numbers += sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    return numbers * getattr(torch, precision).itemsize


def _load(options: Mapping[str, Any]) -> Any:
    """`vllm.LLM`, without what it would change in the trainer: random numbers and the number of threads."""
    # Read by vLLM when it is imported. In-process, because weights are handed over as tensors; not bound to cores of
    # its own, because the trainer computes on the same ones.
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    set_num_threads = torch.set_num_threads
    try:
        import vllm  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ConfigError(
            f"engine.kind = 'vllm' needs vLLM beside the trainer ({error}); install it (on a CPU: "
            "requirements/test-vllm.txt) or use engine.kind = 'server'"
        ) from error
    if options.get("return_sampling_mask") and "return_sampling_mask" not in signature(vllm.LLM).parameters:
        raise ConfigError(
            f"engine.sampling_mask = true: vLLM {getattr(vllm, '__version__', 'of this version')} reports no sampling "
            "masks; install 0.32 or newer, or leave it out"
        )
    try:
        with _own_random_numbers():
            return vllm.LLM(**options)
    except Exception as error:
        raise EngineError(f"vLLM cannot run {options['model']}: {type(error).__name__}: {error}") from error
    finally:
        torch.set_num_threads = set_num_threads


def _own_random_numbers() -> Any:
    """What happens inside draws nothing from the trainer's generators."""
    return torch.random.fork_rng(devices=[torch.cuda.current_device()] if torch.cuda.is_available() else [])
