"""Mixtures of experts: training one, and how often engine and trainer choose other experts."""

import copy
import math
import pickle
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from holdfast.errors import ConfigError
from holdfast.rollout.embedded.quantize import engine_copy
from holdfast.rollout.models import character_tokenizer
from holdfast.rollout.store import read_rollouts
from holdfast.tasks.base import Problem
from holdfast.train.keep.folder import RunFolder
from holdfast.train.loop import train
from holdfast.train.policy.replay import routers
from holdfast.train.sampling.data import pack
from holdfast.train.sampling.episodes import Episode
from holdfast.train.sampling.routing import at_responses, chosen_experts, drift_without_replay, rerouted, with_experts
from holdfast.train.sampling.worker import Scribe
from holdfast.train.settings.configfile import build_config
from holdfast.train.show.display import Quiet

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


def drift_of(policy, engine, budget=1000):
    return rerouted(policy, SEQUENCES, chosen_experts(engine, SEQUENCES, budget), budget).metrics


def test_experts_are_those_of_all_tokens_but_the_last(mixture):
    """3 + 4, 2 + 2 and 3 + 3 tokens; responses are predicted from the last of the prompt on."""
    for budget in (1000, 8):
        chosen = chosen_experts(mixture, SEQUENCES, budget)
        assert [tuple(one.shape) for one in chosen] == [(6, 2, 2), (3, 2, 2), (5, 2, 2)]
        alone = chosen_experts(mixture, pack([(1, 7)], [(5, 2)], pad=0), 1000)
        assert torch.equal(alone[0].sort().values, chosen[1].sort().values)
        at = at_responses(chosen, SEQUENCES)
        assert torch.equal(at[0], chosen[0][2:]) and torch.equal(at[1], chosen[1][1:])
    held = replace(SEQUENCES, response_mask=SEQUENCES.response_mask & torch.tensor([[True, False, True, True]]))
    assert torch.equal(at_responses(chosen, held)[0], chosen[0][[2, 4, 5]])


def test_the_same_weights_choose_the_same_experts(mixture):
    drift = drift_of(mixture, engine_copy(mixture, "float32"))
    assert drift == {"router_drift": 0.0, "router_drift_tokens": 0.0}


def test_turning_one_layer_s_choice_upside_down_is_half_of_all_pairs_and_every_token(mixture):
    """Two layers; in the last one the scores are negated, so the 2 best of 8 become the 2 worst: never the same set."""
    other = copy.deepcopy(mixture)
    with torch.no_grad():
        routers(other)[-1].weight.neg_()
    for budget in (1000, 8):
        drift = drift_of(mixture, other, budget)
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
    drift = drift_of(mixture, other)
    assert drift == {"router_drift": pytest.approx(1 / 18), "router_drift_tokens": pytest.approx(1 / 9)}


def test_experts_are_compared_as_sets_and_counted_by_choice(mixture):
    """Swapped: the same set. One of both layers' two replaced at the first response token: 2 choices, both layers."""
    chosen = chosen_experts(mixture, SEQUENCES, 1000)
    found = rerouted(mixture, SEQUENCES, [one.flip(-1) for one in chosen], 1000)
    assert not found.changed.any() and found.metrics["router_drift"] == 0
    other = [one.clone() for one in chosen]
    for layer in range(2):
        own = set(other[0][2, layer].tolist())
        other[0][2, layer, 0] = min(set(range(8)) - own)
    found = rerouted(mixture, SEQUENCES, other, 1000)
    assert found.changed.tolist() == [[2, 0, 0, 0], [0] * 4, [0] * 4]
    assert found.metrics == {"router_drift": pytest.approx(2 / 18), "router_drift_tokens": pytest.approx(1 / 9)}


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_compiled_layers_tell_their_choices_too(mixture):
    """A compiled layer calls no hook that came after it was compiled."""
    compiled = copy.deepcopy(mixture)
    for layer in compiled.model.layers:
        layer.compile(backend="eager")
    with torch.no_grad():  # the same pass as is made for the experts, which therefore is not compiled again
        compiled.base_model(input_ids=SEQUENCES.input_ids, use_cache=False)
    expected, found = (chosen_experts(model, SEQUENCES, 1000) for model in (mixture, compiled))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_models_without_routers_have_no_drift(mixture):
    from holdfast.rollout.models import tiny_model

    dense = tiny_model(character_tokenizer("01"), hidden=32, layers=1, heads=2)
    assert chosen_experts(dense, SEQUENCES, 1000) == []
    chosen = chosen_experts(mixture, SEQUENCES, 1000)
    assert rerouted(dense, SEQUENCES, chosen, 1000) is None
    assert rerouted(mixture, SEQUENCES, [experts[:, :1] for experts in chosen], 1000) is None, "another depth"
    plain = [Episode(0, Problem("?", "", None, "test"), (1,), (5,), (True,))]
    for engine in (SimpleNamespace(model=dense), SimpleNamespace(model="a server's name"), SimpleNamespace()):
        assert with_experts(engine, plain, plain, 1000) == plain


def test_each_piece_keeps_the_experts_of_the_weights_that_wrote_it(mixture):
    """Two tokens under the mixture, a tool's word, then one token under a model whose last layer chooses the worst."""
    other = copy.deepcopy(mixture)
    with torch.no_grad():
        routers(other)[-1].weight.neg_()
    start = Episode(0, Problem("?", "", None, "test"), (1, 5, 6))
    one = replace(start, token_ids=(8, 9, 7), sampled=(True, True, False))
    two = replace(one, token_ids=(8, 9, 7, 4), sampled=(True, True, False, True))
    (first,) = with_experts(SimpleNamespace(model=mixture), [start], [one], 1000)
    (second,) = with_experts(SimpleNamespace(model=other), [first], [replace(two, experts=first.experts)], 1000)
    assert second.experts.shape == (6, 2, 2) and torch.equal(second.experts[:5], first.experts)
    sequences = pack([start.prompt_ids], [two.token_ids], 0, [two.sampled])
    assert rerouted(mixture, sequences, [second.experts], 1000).metrics == {
        "router_drift": pytest.approx(1 / 6),  # of three tokens in two layers, the last token in the last layer
        "router_drift_tokens": pytest.approx(1 / 3),
    }


@pytest.fixture
def mixture_config(mixture, tmp_path):
    """mixture_config(engine's table, whole tables): a run of a small mixture."""
    tokenizer = character_tokenizer("0123456789abc=:;#")
    model = copy.deepcopy(mixture)
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(tmp_path / "moe")
    tokenizer.save_pretrained(tmp_path / "moe")

    def config(engine, **tables):
        return build_config(
            {
                "steps": 2,
                "task": {"name": "ledger", "entries": 1},
                "model": {"source": str(tmp_path / "moe")},
                "warm_start": {"clean_steps": 20, "batch_size": 8, "learning_rate": 5e-3},
                "engine": engine,
                "sampling": {"max_tokens": 12},
                "batch": {"prompts": 2, "group_size": 4},
                "objective": {"preset": "reinforce"},
                "evaluation": {"every": 0, "problems": 2},
                **tables,
            }
        )

    return config


def test_a_mixture_is_trained_and_its_drift_is_logged(mixture_config, tmp_path):
    folder = RunFolder.create(tmp_path / "run", config := mixture_config({"precision": "bfloat16", "lag": 1}))
    train(config, folder, display=Quiet())
    first, second = folder.read_metrics()[1:]
    assert 0 <= first["router_drift"] <= first["router_drift_tokens"] <= 1
    assert second["kl_exact_mean"] > 0 and "router_drift" in second and first["warnings"] is not None
    assert "own_experts_rollout_k3_mean" not in second
    for record, file in zip((first, second), sorted((folder.path / "rollouts").glob("*.parquet")), strict=True):
        changed = [
            n for r in read_rollouts(file) for n, own in zip(r.experts_changed, r.response_mask, strict=True) if own
        ]
        assert sum(n > 0 for n in changed) / len(changed) == pytest.approx(record["router_drift_tokens"])


def test_a_run_with_replay_says_what_the_drift_would_be_without(mixture_config, tmp_path, monkeypatch):
    """float32 on both sides, the engine one update behind: other weights choose other experts in the second step."""
    monkeypatch.setattr("holdfast.tasks.chains.ChainTask.reward", lambda self, problem, text: float(len(text) % 2))
    config = mixture_config(
        {"precision": "float32", "lag": 1, "replay_experts": True}, optimizer={"learning_rate": 3e-2}
    )
    folder = RunFolder.create(tmp_path / "run", config)
    train(config, folder, display=Quiet())
    first, second = folder.read_metrics()[1:]
    assert first["router_drift"] == 0
    assert first["abs_log_ratio_mean"] == pytest.approx(first["own_experts_abs_log_ratio_mean"], abs=1e-5)
    assert second["router_drift"] > 0
    assert second["abs_log_ratio_mean"] != pytest.approx(second["own_experts_abs_log_ratio_mean"], rel=1e-3)


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"engine": {"kind": "server", "replay_experts": True}}, 'replay_experts = true with engine.kind = "server"'),
        ({"engine": {"replay_experts": True}, "model": {"compile": True}}, "compiled layers choose their own experts"),
    ],
)
def test_replay_that_cannot_be_is_refused(tables, message):
    with pytest.raises(ConfigError, match=message):
        build_config(tables)


class Here:
    """The asynchronous engine in this process."""

    def __init__(self, config, folder, running):
        self.scribe, self.asked = Scribe(config, folder, running), []

    def send(self, task):
        self.asked.append(pickle.dumps(task))

    def receive(self, timeout):
        return pickle.loads(pickle.dumps(self.scribe.play(pickle.loads(self.asked.pop(0)))))

    def end(self): ...


def test_an_asynchronous_mixture_drifts_with_the_age_of_its_tokens(mixture_config, tmp_path, monkeypatch):
    """float32 on both sides: the first step's rollouts are of its own weights, the next ones are older."""
    monkeypatch.setattr("holdfast.tasks.chains.ChainTask.reward", lambda self, problem, text: float(len(text) % 2))
    monkeypatch.setattr("holdfast.train.sampling.pipeline._EngineProcess", Here)
    tables = {"optimizer": {"learning_rate": 3e-2}, "async": {"staleness": 2, "segments": 2}}
    short, whole = (mixture_config({"precision": "float32"}, steps=steps, **tables) for steps in (1, 3))
    train(short, RunFolder.create(tmp_path / "run", short), display=Quiet())
    folder, _ = RunFolder.open(tmp_path / "run", whole)
    train(whole, folder, display=Quiet(), resume=True)
    drift = [record["router_drift"] for record in folder.read_metrics()[1:]]
    assert len(drift) == 3 and drift[0] == 0 and min(drift[1:]) > 0


def test_the_drift_without_replay_is_that_of_the_trainer_s_own_experts():
    """log ρ = ln 2 and ln 4 under the mask: mean |log ρ| = 1.5 ln 2, mean k3 = ((1 - ln 2) + (3 - 2 ln 2)) / 2."""
    rollout, moved = torch.tensor([[-2.0, -1.0, 0.0]]), torch.tensor([[math.log(2), math.log(4), -9.0]])
    assert drift_without_replay(rollout + moved, rollout, torch.tensor([[True, True, False]])) == {
        "own_experts_abs_log_ratio_mean": pytest.approx(1.5 * math.log(2)),
        "own_experts_rollout_k3_mean": pytest.approx(2 - 1.5 * math.log(2)),
    }
