"""Sampling masks need a GPU; vLLM's own classes for them, and its refusal on a CPU, do not."""

import json

import pytest

from holdfast.errors import EngineError
from holdfast.rollout.engine import Sampling
from holdfast.rollout.outside import masked
from holdfast.rollout.outside.vllm import VllmEngine

pytest.importorskip("vllm")


def test_a_request_and_an_answer_are_those_of_its_classes():
    from vllm.entrypoints.scale_out.token_in_token_out import protocol

    sampling = Sampling(top_k=8, top_p=0.9, max_tokens=4)
    body = masked.body("m", [1, 2], sampling, seed=3, eos_token_id=2, top=2)
    asked = protocol.GenerateRequest(**body)
    wanted = asked.sampling_params
    assert (asked.token_ids, wanted.top_k, wanted.top_p, wanted.logprobs, wanted.seed) == ([1, 2], 8, 0.9, 3, 3)
    assert (wanted.max_tokens, wanted.stop_token_ids, wanted.ignore_eos) == (4, [2], True)
    top = [protocol.GenerateLogProb(token_id=token, logprob=value) for token, value in ((7, -0.5), (8, -0.7))]
    content = []
    for token in (4, 5):
        own = protocol.GenerateLogProb(token_id=token, logprob=-1.0)
        content.append(protocol.GenerateLogProbsContent(token_id=token, logprob=-1.0, top_logprobs=[own, *top]))
    choice = protocol.GenerateTokensChoice(
        index=0,
        token_ids=[4, 5],
        sampling_mask=[[4, 7], [5, 7, 8]],
        logprobs=protocol.GenerateLogProbs(content=content),
    )
    answer = json.loads(protocol.GenerateTokensResponse(choices=[choice]).model_dump_json())
    found = masked.read(answer, top=2, version=1, most=4, name="here")
    assert found.token_ids == (4, 5) and found.support_ids.tolist() == [4, 7, 5, 7, 8]
    assert found.support_sizes.tolist() == [2, 3]
    assert found.top_ids.tolist() == [[7, 8], [7, 8]] and found.logprobs.tolist() == [-1.0, -1.0]


def test_the_cpu_build_says_why_it_reports_none(model_folder):
    with pytest.raises(EngineError, match="sampling distribution replay requires Model Runner V2"):
        VllmEngine(model_folder, eos_token_id=2, context=512, cache_gib=0.25, options={"return_sampling_mask": True})
