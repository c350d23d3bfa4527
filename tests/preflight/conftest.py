"""A small policy, and preflights of engines that have a fault, or none."""

from __future__ import annotations

import pytest
import torch

from faulty import Faulty
from holdfast.preflight.bench import bench_of
from holdfast.preflight.inspect import preflight
from holdfast.preflight.plan import Plan, configure
from holdfast.preflight.prompts import encode_prompts, read_prompts
from holdfast.rollout.models import character_tokenizer, tiny_model

ALPHABET = "0123456789+-*/=()<>abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOP .,?:"
SMALL = ("--sampling.max_tokens", "24", "--engine.precision", "float32", "--threads", "1")


@pytest.fixture(scope="session")
def tokenizer():
    return character_tokenizer(ALPHABET)


@pytest.fixture(scope="session")
def make_model(tokenizer):
    """make_model(seed): a random policy, open but far from uniform."""

    def make(seed: int = 0):
        model = tiny_model(tokenizer, hidden=32, layers=2, heads=2, seed=seed).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.mul_(6.0)
        return model

    return make


@pytest.fixture(scope="session")
def folder(make_model, tokenizer, tmp_path_factory):
    """make_model(0) as a trainer would save it."""
    path = tmp_path_factory.mktemp("model")
    make_model(0).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def plan_of(folder):
    """plan_of(*overrides, **options of Plan): 96 responses of 24 tokens."""

    def make(*overrides, engine="embedded", **options):
        config = configure({}, str(folder), engine, [*SMALL, *overrides])
        return Plan(config, **{"responses": 96} | options)

    return make


@pytest.fixture(scope="session")
def bench_for(make_model, tokenizer, plan_of):
    """bench_for(fault, *overrides, **options): a bench whose engines have the fault; `fault(settings, model)`."""

    def make(fault=None, *overrides, prompts=None, told=None, **options):
        plan = plan_of(*overrides, **options)
        model = make_model(0)

        def engine(settings):
            return Faulty(model, tokenizer, settings) if fault is None else fault(settings, model)

        given = prompts or encode_prompts(
            read_prompts(None), tokenizer, chat=False, engine_template=plan.engine_template, most=500
        )
        return bench_of(plan, given, model, tokenizer, engine, told or (lambda *_: None))

    return make


@pytest.fixture(scope="session")
def fly(bench_for):
    """fly(fault, *overrides, **options): the whole preflight."""
    return lambda *arguments, **options: preflight(bench_for(*arguments, **options))


@pytest.fixture(scope="session")
def healthy(fly):
    """The preflight of a healthy engine."""
    return fly(None, framework="verl", length=96, staleness=1)
