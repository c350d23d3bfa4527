"""The memory of a preflight, part by part, from shapes alone."""

import pytest

from holdfast.preflight.session import check_fits, memory_of
from holdfast.train.estimate import shape_of_run


def test_parts_are_counted_from_shapes(plan_of):
    plan = plan_of("--model.dtype", "float32")
    shape = shape_of_run(plan.config, "")
    parts = memory_of(plan, shape, "cpu").parts
    assert parts["trainer weights"] == 4 * shape.parameters == parts["kept weights"]
    # the engine's report and what is scored of it: 128 rows of 24 tokens over the vocabulary in float32
    assert parts["whole distributions"] == 2 * 128 * 24 * shape.vocabulary * 4
    assert parts["engine weights"] > 4 * shape.parameters


def test_what_is_left_out_takes_no_memory(plan_of):
    plan = plan_of("--engine.exact_kl", "false", "--engine.top_logprobs", "20", sync=False)
    parts = memory_of(plan, shape_of_run(plan.config, ""), "cpu").parts
    assert parts["kept weights"] == parts["whole distributions"] == 0
    half = plan_of("--model.dtype", "bfloat16")
    shape = shape_of_run(half.config, "")
    assert memory_of(half, shape, "cpu").parts["trainer weights"] == 2 * shape.parameters


def test_what_fits_to_the_byte_is_not_refused(plan_of, monkeypatch):
    plan = plan_of()
    needed = memory_of(plan, shape_of_run(plan.config, ""), "cpu").total
    monkeypatch.setattr("holdfast.preflight.session.free_memory", lambda device: needed)
    check_fits(plan)
    monkeypatch.setattr("holdfast.preflight.session.free_memory", lambda device: needed - 1)
    with pytest.raises(ValueError, match="the preflight needs about"):
        check_fits(plan)
