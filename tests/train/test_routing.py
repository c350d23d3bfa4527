"""Mixtures of experts: training one, and how often engine and trainer choose other experts."""

import copy

import pytest
import torch

from holdfast.rollout.models import character_tokenizer
from holdfast.rollout.quantize import engine_copy
from holdfast.train.configfile import build_config
from holdfast.train.data import pack
from holdfast.train.display import Quiet
from holdfast.train.folder import RunFolder
from holdfast.train.loop import train
from holdfast.train.routing import _other_sets, router_drift, routers

SEQUENCES = pack([(1, 5, 6), (1, 7), (1, 4, 4)], [(8, 9, 10, 2), (5, 2), (6, 7, 8)], pad=0)


@pytest.fixture(scope="module")
def mixture():
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    config = Qwen3MoeConfig(
        vocab_size=24,
        hidden_size=32,
        intermediate_size=48,
        moe_intermediate_size=24,
        num_experts=8,
        num_experts_per_tok=2,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=256,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    model = Qwen3MoeForCausalLM(config).eval()
    with torch.no_grad():
        for router in routers(model):
            router.weight.normal_(generator=torch.Generator().manual_seed(1))
    return model


def test_the_same_weights_choose_the_same_experts(mixture):
    drift = router_drift(mixture, engine_copy(mixture, "float32"), SEQUENCES, 1000)
    assert drift == {"router_drift": 0.0, "router_drift_tokens": 0.0}


def test_turning_one_layer_s_choice_upside_down_is_half_of_all_pairs_and_every_token(mixture):
    """Two layers; in the last one the scores are negated, so the 2 best of 8 become the 2 worst: never the same set."""
    other = copy.deepcopy(mixture)
    with torch.no_grad():
        routers(other)[-1].weight.neg_()
    for budget in (1000, 8):
        drift = router_drift(mixture, other, SEQUENCES, budget)
        assert drift == {"router_drift": 0.5, "router_drift_tokens": 1.0}


def test_only_positions_that_predict_response_tokens_count(mixture):
    """The last router goes wrong where the second prompt's 7 is read: that predicts one of 9 response tokens."""
    other = copy.deepcopy(mixture)
    router = routers(other)[-1]
    forward = router.forward
    heard = []
    handle = routers(mixture)[-1].register_forward_pre_hook(lambda module, inputs: heard.append(inputs[0]))
    with torch.no_grad():
        mixture.base_model(input_ids=torch.tensor([[1, 7]]), use_cache=False)
    handle.remove()
    seven = heard[0].reshape(-1, 32)[-1]

    def wrong_at_seven(states):
        logits, scores, chosen = forward(states)
        hit = (states - seven).abs().sum(-1) < 1e-4
        return logits, scores, torch.where(hit[:, None], (chosen + 4) % 8, chosen)

    router.forward = wrong_at_seven
    drift = router_drift(mixture, other, SEQUENCES, 1000)
    assert drift == {"router_drift": pytest.approx(1 / 18), "router_drift_tokens": pytest.approx(1 / 9)}


def test_experts_are_compared_as_sets():
    first, second = torch.tensor([[[0, 1], [0, 1]]]), torch.tensor([[[1, 0], [0, 2]]])
    assert _other_sets(first, second).tolist() == [[False, True]]


def test_models_without_routers_have_no_drift(mixture):
    from holdfast.rollout.models import tiny_model

    dense = tiny_model(character_tokenizer("01"), hidden=32, layers=1, heads=2)
    assert router_drift(dense, dense, SEQUENCES, 1000) == {} and router_drift(mixture, dense, SEQUENCES, 1000) == {}


def test_a_mixture_is_trained_and_its_drift_is_logged(mixture, tmp_path):
    tokenizer = character_tokenizer("0123456789abc=:;#")
    model = copy.deepcopy(mixture)
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(tmp_path / "moe")
    tokenizer.save_pretrained(tmp_path / "moe")
    config = build_config(
        {
            "steps": 2,
            "task": {"name": "ledger", "entries": 1},
            "model": {"source": str(tmp_path / "moe")},
            "warm_start": {"clean_steps": 20, "batch_size": 8, "learning_rate": 5e-3},
            "engine": {"precision": "bfloat16", "lag": 1},
            "sampling": {"max_tokens": 12},
            "batch": {"prompts": 2, "group_size": 4},
            "objective": {"preset": "reinforce"},
            "evaluation": {"every": 0, "problems": 2},
        }
    )
    folder = RunFolder.create(tmp_path / "run", config)
    train(config, folder, display=Quiet())
    first, second = folder.read_metrics()[1:]
    assert 0 <= first["router_drift"] <= first["router_drift_tokens"] <= 1
    assert second["kl_exact_mean"] > 0 and "router_drift" in second and first["warnings"] is not None
