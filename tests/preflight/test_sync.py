"""A sync that breaks in the middle leaves neither the trainer nor the engine with changed weights."""

from types import SimpleNamespace

import pytest
import torch

from faulty import Faulty
from holdfast.errors import ConfigError, EngineError
from holdfast.preflight import sync
from holdfast.preflight.numerics import numerics
from holdfast.preflight.observe import Observation
from holdfast.preflight.sync import check_sync


@pytest.fixture
def watched(bench_for, tokenizer):
    """watched(error): a bench whose engine raises it when it samples after a sync, and the weights it was given."""

    def make(error):
        given = []

        class Breaking(Faulty):
            def sync(self, model, version):
                given.append({name: tensor.clone() for name, tensor in model.state_dict().items()})

            def generate(self, prompts, sampling, **options):
                if given:
                    raise error
                return super().generate(prompts, sampling, **options)

        return bench_for(lambda settings, model: Breaking(model, tokenizer, settings), responses=16), given

    return make


def same(ours, theirs):
    return all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


@pytest.mark.parametrize("error", [EngineError("the engine died"), KeyboardInterrupt()])
def test_what_breaks_in_the_middle_is_put_back(watched, error):
    bench, given = watched(error)
    first = {name: tensor.clone() for name, tensor in bench.model.state_dict().items()}
    if isinstance(error, EngineError):
        found = check_sync(bench)
        assert (found.verdict, found.said) == ("failed", "the engine died")
    else:
        with pytest.raises(KeyboardInterrupt):
            check_sync(bench)
    assert not same(given[0], first) and same(given[1], first) and len(given) == 2
    assert same(bench.model.state_dict(), first)


def test_an_engine_that_does_not_run_otherwise_does_not_allow_the_switch(bench_for, tokenizer):
    def made(settings, model):
        if settings.precision != "int8":
            raise ConfigError("one precision only")
        return Faulty(model, tokenizer, settings)

    bench = bench_for(made, "--engine.precision", "int8", responses=8)
    causes = {cause.name: cause for cause in numerics(bench, bench.observe("here"))}
    assert {causes[name].state for name in ("head precision", "engine precision")} == {"not allowed"}
    assert "one precision only" in causes["head precision"].said
    assert causes["trainer precision"].state == causes["KV-cache precision"].state == "not set"
    assert bench.engine is None


@pytest.mark.parametrize(
    ("gap", "moved", "noise"),
    [
        (0.001, 0.2, 0.02),  # .2 nats are enough where the gap is small
        (0.001, 0.19, 1.28),
        (0.05, 0.49, 1.28),  # ten times the gap
        (0.05, 0.5, 0.02),
        (0.5, 1.0, 0.02),  # and a nat at the most
    ],
)
def test_weights_are_changed_until_the_policy_is_surely_another(bench_for, monkeypatch, gap, moved, noise):
    bench = bench_for(responses=8)
    before = bench.observe("here", bench.asked.first(8))
    size = SimpleNamespace(size=SimpleNamespace(value=gap))
    monkeypatch.setattr(sync, "gap_of", lambda view: size)
    monkeypatch.setattr(Observation, "moved", lambda was, now: moved)
    assert sync._change(bench, before, dict(bench.model.state_dict())) == pytest.approx(noise)
