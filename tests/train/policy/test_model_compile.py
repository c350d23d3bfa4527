"""Compiled layers against plain ones; the graphs run without a C++ compiler here, which is all that is different."""

import jaxtyping
import pytest
import torch
from torch import nn

from holdfast.errors import ConfigError
from holdfast.rollout.models import character_tokenizer, tiny_model
from holdfast.train.policy.forward import Policy
from holdfast.train.policy.head import HeadForm
from holdfast.train.policy.model import compile_layers, keep_only_inputs
from holdfast.train.policy.unpadded import make_unpadded
from holdfast.train.sampling.data import pack

SEQUENCES = [
    pack([(1, 5, 6)] * 2 + [(1, 7)], [(8, 9, 10, 2), (5, 2), (6, 7, 8)], pad=0),
    pack([(1, 5, 6, 7)] * 2, [(8, 9, 10, 2, 4), (5, 2)], pad=0),
]


@pytest.fixture
def graphs_only(monkeypatch):
    torch.compiler.reset()
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # shape checks cannot be traced
    plain, asked = nn.Module.compile, []

    def compile_graph(self, *, dynamic, options):
        asked.append(options)
        plain(self, dynamic=dynamic, backend="aot_eager")

    monkeypatch.setattr(nn.Module, "compile", compile_graph)
    yield asked
    torch.compiler.reset()


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.slow
def test_compiled_layers_give_the_same_values_and_gradients(graphs_only, recompute):
    plain, compiled = (tiny_model(character_tokenizer("0123456789"), hidden=32, layers=2, heads=2) for _ in range(2))
    assert make_unpadded(compiled) == ""
    if recompute:
        keep_only_inputs(compiled)
    compile_layers(compiled, recomputed=recompute)
    assert graphs_only == [{"cpp_wrapper": not recompute}] * 3, "inductor fails on a layer that is computed twice"
    assert all(part._compiled_call_impl is not None for part in (*compiled.model.layers, compiled.model.norm))
    assert compiled.model.layers[0].input_layernorm._compiled_call_impl is None  # a layer is one graph
    for sequences in SEQUENCES:
        found = Policy(compiled, head=HeadForm(), unpadded=True).stats(sequences).logprobs
        expected = Policy(plain, head=HeadForm()).stats(sequences).logprobs
        assert torch.allclose(found, expected, atol=1e-5)
        found.sum().backward()
        expected.sum().backward()
    for a, b in zip(compiled.parameters(), plain.parameters(), strict=True):
        assert a.grad is not None and b.grad is not None and torch.allclose(a.grad, b.grad, atol=1e-4)


def test_a_model_without_such_layers_is_refused():
    with pytest.raises(ConfigError, match=r"model.compile: Linear has no layers"):
        compile_layers(nn.Linear(2, 2), recomputed=False)


def test_calls_are_made_from_cpp_on_a_cpu_only(graphs_only):
    compile_layers(
        tiny_model(character_tokenizer("0123456789"), hidden=32, layers=2, heads=2).to("meta"), recomputed=False
    )
    assert graphs_only == [{"cpp_wrapper": False}] * 3
