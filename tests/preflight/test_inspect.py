"""Whole preflights: a healthy engine is cleared, and each planted fault is named, with its share of the gap."""

import copy
from dataclasses import replace

import pytest
import torch

from faulty import Faulty, Penalised


def cause(found, name):
    return next(c for c in found.causes if c.name == name)


def named(found):
    return {f.name: f for f in found.findings if f.severity != "info"}


def test_a_healthy_engine_is_cleared_and_gets_thresholds(healthy):
    found = healthy
    assert found.tone == "clean" and found.exit_code() == 0
    assert found.headline.startswith("Ready")
    assert found.gap.size.value < 1e-5 and found.gap.tokens > 1000
    assert found.sync.verdict == "synced" and found.sync.version == 1
    assert found.sync.to_old.size.low > 0.1 > 1e-4 > found.sync.to_new.size.high
    assert found.sync.restored.exact and found.stability.again.exact
    assert "rollout_correction" in found.proposal.lines["trm_max"]
    assert found.proposal.length == 96 and found.proposal.planned_kl == pytest.approx(1e-4, rel=1e-3)
    assert sum(row.tokens for row in found.entropy) == found.gap.tokens


@pytest.mark.parametrize(
    ("precision", "name"), [("float32,head=bfloat16", "head precision"), ("int4_weight", "engine precision")]
)
def test_the_precision_that_makes_the_gap_is_named(fly, precision, name):
    found = fly(None, "--engine.precision", precision, sync=False)
    assert cause(found, name).state == "measured"
    assert cause(found, name).change.share.low > 0.95
    assert found.sync.verdict == "not tried"
    if name == "head precision":
        assert found.tone == "clean"
        assert any(f.name == "head_precision" and f.severity == "info" for f in found.findings)


def test_an_engine_at_another_temperature_is_named(fly, tokenizer):
    found = fly(lambda settings, model: Faulty(model, tokenizer, settings, sampling={"temperature": 0.7}))
    assert found.exit_code() == 1
    assert named(found)["temperature_mismatch"].evidence["share of the gap"].low > 0.9
    told = cause(found, "temperature")
    assert "temperature 0.70" in told.said and "told 1" in told.said
    assert "other_weights" not in named(found) and found.sync.verdict == "synced"
    assert found.proposal is None and "temperature_mismatch" in found.notes[0]


def test_an_engine_that_reports_before_the_temperature_is_named(fly, tokenizer):
    class Raw(Faulty):
        def generate(self, prompts, sampling, **options):
            drawn = self.engine.generate(prompts, sampling, **{**options, "return_distributions": True})
            whole = [(c.distributions * sampling.temperature).log_softmax(-1) for c in drawn]
            return [
                replace(c, logprobs=w.gather(1, torch.tensor(c.token_ids)[:, None])[:, 0], distributions=None)
                for c, w in zip(drawn, whole, strict=True)
            ]

    found = fly(lambda settings, model: Raw(model, tokenizer, settings), "--sampling.temperature", "0.7", sync=False)
    assert "temperature_mismatch" in named(found)
    assert "temperature 1.0" in cause(found, "temperature").said and "told 0.7" in cause(found, "temperature").said


def test_truncation_that_nobody_asked_for_is_named(fly, tokenizer):
    found = fly(lambda settings, model: Faulty(model, tokenizer, settings, sampling={"top_p": 0.8}), sync=False)
    assert {"support_mismatch", "truncation"} & named(found).keys()
    assert cause(found, "truncation").change.share.low > 0.9
    assert "nobody asked for it" in cause(found, "truncation").said


@pytest.mark.parametrize(("framework", "known"), [("Holdfast", True), ("TRL", False)])
@pytest.mark.slow
def test_truncation_is_a_fault_where_the_trainer_does_not_know_it(fly, framework, known):
    found = fly(None, "--sampling.top_p", "0.8", framework=framework, sync=False)
    assert (found.tone == "clean") == known
    assert ("does not know" in cause(found, "truncation").said) != known
    assert (cause(found, "truncation").change.share.low > 0.9) != known


@pytest.mark.slow
def test_a_penalty_that_the_engine_sets_by_itself_is_named(fly, tokenizer):
    found = fly(lambda settings, model: Penalised(model, tokenizer, 1.3), sync=False)
    assert named(found)["repetition_penalty"].evidence["share of the gap"].low > 0.9
    assert cause(found, "repetition penalty").change.share.low > 0.9


def test_a_chat_template_of_the_engine_s_own_is_named(fly, tokenizer):
    found = fly(None, engine_template="User: {{ messages[0]['content'] }} Answer:", sync=False)
    assert {"drift_at_start", "chat_template"} & named(found).keys()
    assert cause(found, "chat template").change.share.low > 0.9
    assert "100% of the prompts" in cause(found, "chat template").said


@pytest.mark.slow
def test_other_weights_are_named_by_the_sync_that_mends_them(fly, make_model, tokenizer):
    other = make_model(1)
    found = fly(lambda settings, model: Faulty(model, tokenizer, settings, weights=other), switches=False)
    assert "syncing them took" in named(found)["other_weights"].headline
    assert found.sync.verdict == "synced"


def test_other_weights_are_what_is_left_where_nothing_else_explains_the_gap(fly, make_model, tokenizer):
    other = make_model(1)
    found = fly(lambda settings, model: Faulty(model, tokenizer, settings, weights=other), sync=False)
    assert "nothing that can be switched explains it" in named(found)["other_weights"].headline


def head_left_behind(model):
    """The model with the head and embedding of before."""
    left = copy.deepcopy(model)
    with torch.no_grad():
        left.model.embed_tokens.weight.copy_(head_left_behind.first)
    return left


@pytest.mark.parametrize(("how", "verdict"), [("nothing", "nothing happened"), ("head", "in part")])
@pytest.mark.slow
def test_a_sync_that_does_not_do_it_is_named(fly, make_model, tokenizer, how, verdict):
    head_left_behind.first = make_model(0).model.embed_tokens.weight.detach()
    broken = {"nothing": lambda model: None, "head": head_left_behind}[how]
    found = fly(lambda settings, model: Faulty(model, tokenizer, settings, sync=broken), switches=False)
    assert found.sync.verdict == verdict
    assert named(found)["weight_sync"].severity == "critical" and found.exit_code() == 1


@pytest.mark.slow
def test_weights_that_do_not_come_back_are_named(fly, tokenizer):
    calls = []

    def once(model):
        calls.append(1)
        return model if len(calls) == 1 else None

    found = fly(lambda settings, model: Faulty(model, tokenizer, settings, sync=once), switches=False)
    assert found.sync.verdict == "synced" and "weights_not_restored" in named(found)


def test_log_probabilities_of_the_token_before_are_named(fly, tokenizer):
    def shift(completion):
        return replace(completion, logprobs=completion.logprobs.roll(1), distributions=None)

    found = fly(lambda settings, model: Faulty(model, tokenizer, settings, report=shift), sync=False)
    assert "shifted_by_one" in named(found) and found.tone == "critical"


def test_an_engine_whose_batch_changes_its_numbers_is_named(fly, tokenizer):
    class Crowded(Faulty):
        def generate(self, prompts, sampling, **options):
            drawn = super().generate(prompts, sampling, **options)
            return [replace(c, logprobs=(c.logprobs - 1e-3 * (len(prompts) - 1))) for c in drawn]

    found = fly(lambda settings, model: Crowded(model, tokenizer, settings), switches=False, sync=False)
    assert cause(found, "batch size").change.share.low > 0.9
    assert found.stability.alone.largest == pytest.approx(0.007, abs=1e-4) and found.stability.alone.same == 8


def test_the_trainer_s_weights_are_the_same_bits_afterwards(bench_for, tokenizer):
    from holdfast.preflight.sync import check_sync

    bench = bench_for(None)
    before = {name: tensor.clone() for name, tensor in bench.model.state_dict().items()}
    assert check_sync(bench).verdict == "synced"
    assert all(torch.equal(tensor, before[name]) for name, tensor in bench.model.state_dict().items())


def test_few_tokens_are_not_judged(fly):
    found = fly(None, "--sampling.max_tokens", "4", responses=8, sync=False, switches=False)
    assert "not_judged" in named(found) and found.exit_code() == 1 and found.exit_code("critical") == 0
