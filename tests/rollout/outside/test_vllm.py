"""What vLLM is asked for, and when: its memory on a card, sleep, weights. A stand-in records it; tests/vllm_engine runs
the real one on a CPU."""

import sys
import types
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from holdfast.errors import ConfigError, EngineError
from holdfast.rollout.engine import Sampling, Sleeper
from holdfast.rollout.outside import vllm as ours
from holdfast.rollout.outside.vllm import VllmEngine

GIB = 2**30


class StandIn:
    """vllm.LLM as far as it is used, with a log of what is asked of it."""

    def __init__(self, **options):
        self.options, self.log, self.read = options, [], []
        model = types.SimpleNamespace(max_model_len=64, get_vocab_size=lambda: 30)
        self.llm_engine = types.SimpleNamespace(vllm_config=types.SimpleNamespace(model_config=model))

    def collective_rpc(self, name, kwargs):
        assert not isinstance(kwargs["weights_iterator"], list | dict), "all weights at once"
        self.read = [name for name, _ in kwargs["weights_iterator"]]
        self.log.append(name)

    def reset_prefix_cache(self):
        self.log.append("reset")
        return True

    def sleep(self, level):
        self.log.append(f"sleep {level}")

    def wake_up(self, tags):
        self.log.append(f"wake {' '.join(tags)}")

    def generate(self, prompts, parameters, use_tqdm):
        self.log.append("generate")
        reported = types.SimpleNamespace(token_ids=[4, 4], logprobs=[-0.5, -0.5])
        answer = types.SimpleNamespace(token_ids=[4, 4], logprobs=reported, finish_reason="length")
        self.asked = parameters
        if self.options.get("enable_return_routed_experts"):  # [prompt + response - 1, layers, K]
            answer.routed_experts = np.arange(3 * 2 * 2, dtype=np.uint8).reshape(3, 2, 2)
        if self.options.get("return_sampling_mask"):  # vllm.outputs.SamplingMask
            answer.sampling_mask = types.SimpleNamespace(token_ids=[[4], [3, 4, 9]])
        return [types.SimpleNamespace(prompt_token_ids=p["prompt_token_ids"], outputs=[answer]) for p in prompts]


@pytest.fixture
def make(monkeypatch, tmp_path):
    """make(gpu, **settings): an engine on a folder of 3 million weights, on a card of 80 GiB."""
    stand_in = types.ModuleType("vllm")
    stand_in.LLM, stand_in.SamplingParams = StandIn, lambda **settings: settings
    monkeypatch.setitem(sys.modules, "vllm", stand_in)
    monkeypatch.setattr(ours, "_own_random_numbers", nullcontext)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (10 * GIB, 80 * GIB))
    save_file({"a": torch.zeros(1000, 2000), "b": torch.zeros(10**6)}, tmp_path / "model.safetensors")

    def made(gpu=True, **settings):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
        engine = VllmEngine(tmp_path, eos_token_id=1, **settings)
        return engine, engine._llm

    return made


def drawn(engine):
    return engine.generate([[2, 3]], Sampling(max_tokens=2), seed=0, sequence_ids=[0])


@pytest.mark.parametrize(("precision", "size"), [("bfloat16", 2), ("float32", 4)])
def test_the_share_of_the_card_is_cache_and_weights_and_three_gib(make, precision, size):
    """vLLM refuses to start where the share that it assumes, .92, is not free, whatever the size of its cache."""
    _, llm = make(precision=precision, cache_gib=20.0)
    assert llm.options["gpu_memory_utilization"] == pytest.approx((20 * GIB + 3e6 * size + 3 * GIB) / (80 * GIB))
    assert llm.options["kv_cache_memory_bytes"] == 20 * GIB
    assert "enable_sleep_mode" not in llm.options


def test_the_user_s_own_share_stands_and_a_cpu_has_none(make):
    _, llm = make(cache_gib=200.0, options={"gpu_memory_utilization": 0.5})
    assert llm.options["gpu_memory_utilization"] == 0.5
    _, llm = make(gpu=False, sleep=True)
    assert not {"gpu_memory_utilization", "enable_sleep_mode"} & set(llm.options)


def test_more_than_the_card_is_refused_with_the_setting(make):
    with pytest.raises(ConfigError, match=r"need 8\d\.\d GB of a card of 85\.9 GB: engine.cache_gib = 78 GiB.*; lower"):
        make(cache_gib=78.0)


def test_it_sleeps_between_a_batch_and_the_next_weights(make):
    """First the weights come back, then they are replaced, and the cache comes back when it is needed."""
    engine, llm = make(sleep=True)
    assert llm.options["enable_sleep_mode"] is True and isinstance(engine, Sleeper)
    drawn(engine)
    engine.sleep()
    engine.sleep()
    with pytest.raises(EngineError, match="a sleeping vLLM engine has no weights: call sync"):
        drawn(engine)
    engine.sync(torch.nn.Linear(2, 3), 1)
    assert llm.read == ["weight", "bias"] and engine.policy_version == 1
    drawn(engine)
    drawn(engine)
    expected = "generate, sleep 2, wake weights, reload_weights, reset, wake kv_cache, generate, generate"
    assert ", ".join(llm.log) == expected


def test_without_sleep_mode_it_never_sleeps(make):
    engine, llm = make()
    engine.sleep()
    drawn(engine)
    assert llm.log == ["generate"]
    engine, llm = make(options={"enable_sleep_mode": True})
    engine.sleep()
    assert llm.log == ["sleep 2"]


def test_further_fields_go_into_every_request_and_prefixes_are_dropped_on_demand(make):
    engine, llm = make()
    engine.request["repetition_penalty"] = 1.1
    asked = []
    llm.generate = lambda prompts, parameters, use_tqdm: (
        asked.extend(parameters) or StandIn.generate(llm, prompts, parameters, use_tqdm)
    )
    drawn(engine)
    assert asked[0]["repetition_penalty"] == 1.1 and asked[0]["max_tokens"] == 2
    assert engine.forget_prefixes() and llm.log[-1] == "reset"


class WithMasks(StandIn):
    def __init__(self, return_sampling_mask=False, **options):
        super().__init__(return_sampling_mask=return_sampling_mask, **options)


def test_masks_are_a_setting_of_the_engine_and_come_with_each_response(make, monkeypatch):
    monkeypatch.setattr(sys.modules["vllm"], "LLM", WithMasks)
    engine, llm = make(options={"return_sampling_mask": True})
    assert llm.options["return_sampling_mask"] is True and llm.options["logprobs_mode"] == "processed_logprobs"
    arguments = {"prompts": [[2, 3]], "seed": 0, "sequence_ids": [7]}
    sampling = Sampling(top_k=8, top_p=0.9, max_tokens=2)
    (completion,) = engine.generate(sampling=sampling, return_support=True, **arguments)
    assert (completion.support_ids.tolist(), completion.support_sizes.tolist()) == ([4, 3, 4, 9], [1, 3])
    (plain,) = engine.generate(sampling=sampling, **arguments)
    assert plain.support_ids is None
    # vLLM refuses greedy requests of such an engine: one of the likeliest token alone is the same.
    (greedy,) = engine.generate(sampling=Sampling(temperature=0.0, top_p=0.9, max_tokens=2), **arguments)
    asked = llm.asked[0]
    assert (asked["temperature"], asked["top_k"], asked["top_p"]) == (1.0, 1, 1.0) and not greedy.logprobs.any()
    with pytest.raises(ConfigError, match=r"takes no request without top_k, .*top_k = 0: set .*1024"):
        engine.generate(sampling=Sampling(top_p=0.9, max_tokens=2), **arguments)


def test_masks_of_an_engine_without_them_and_of_an_older_vllm_are_errors(make):
    engine, _ = make()
    with pytest.raises(EngineError, match=r"sequence 0: no sampling mask in the answer: start vLLM 0.32"):
        engine.generate([[2, 3]], Sampling(top_k=8, max_tokens=2), seed=0, sequence_ids=[0], return_support=True)
    with pytest.raises(ConfigError, match=r"sampling_mask = true: vLLM of this version reports no .*0.32 or newer"):
        make(options={"return_sampling_mask": True})


def test_experts_come_with_each_response_where_the_engine_was_started_for_them(make):
    engine, llm = make(options={"enable_return_routed_experts": True})
    (completion,) = drawn(engine)
    assert torch.equal(completion.experts, torch.arange(12).reshape(3, 2, 2).short())
    engine, llm = make()
    assert drawn(engine)[0].experts is None and "enable_return_routed_experts" not in llm.options


@pytest.mark.parametrize(("prompt", "found"), [([2, 3, 4], "those of 3 tokens"), ([2, 3], "none")])
def test_experts_of_other_tokens_or_none_are_an_error(make, monkeypatch, prompt, found):
    engine, llm = make(options={"enable_return_routed_experts": True})
    llm.options["enable_return_routed_experts"] = len(prompt) == 3
    with pytest.raises(
        EngineError, match=rf"sequence 0: {len(prompt) + 1} tokens were read, and vLLM reports {found} "
    ):
        engine.generate([prompt], Sampling(max_tokens=2), seed=0, sequence_ids=[0])
