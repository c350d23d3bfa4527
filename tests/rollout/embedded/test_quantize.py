"""The grids against integer arithmetic done separately."""

from typing import get_args

import pytest
import torch

from holdfast.errors import ConfigError
from holdfast.rollout.embedded import quantize
from holdfast.rollout.embedded.quantize import EngineLinear, Precision, check_precision, engine_copy, load_weights

WEIGHT = torch.randn(7, 40, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 8)[:, None]
BIAS = torch.arange(7.0)
INPUT = torch.randn(5, 40, generator=torch.Generator().manual_seed(1)) * torch.tensor([[0.01], [1], [3], [50], [0]])


def test_int8_is_an_integer_product_with_one_scale_per_row_and_channel():
    layer = EngineLinear("int8", [WEIGHT], [BIAS])
    row_scale = INPUT.abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / 127
    channel_scale = WEIGHT.abs().amax(dim=1, keepdim=True) / 127
    levels = (INPUT / row_scale).round().to(torch.int64), (WEIGHT / channel_scale).round().to(torch.int64)
    assert all(int(level.abs().max()) == 127 for level in levels)
    expected = (levels[0] @ levels[1].T).double() * row_scale.double() * channel_scale.T.double() + BIAS
    assert torch.allclose(layer(INPUT).double(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("precision", "levels"), [("int8_weight", 127), ("int4_weight", 7)])
def test_weight_grids(precision, levels):
    layer = EngineLinear(precision, [WEIGHT], [None])
    step = WEIGHT.abs().amax(dim=1, keepdim=True) / levels
    found = layer.weight / step
    assert torch.allclose(found, found.round(), atol=1e-4)
    assert int(found.abs().max().round()) == levels
    assert torch.all((layer.weight - WEIGHT).abs() <= step / 2 + 1e-6)
    assert torch.equal(layer(INPUT), INPUT @ layer.weight.T)


def test_fp8_weights_keep_three_bits_of_mantissa():
    layer = EngineLinear("fp8_weight", [WEIGHT], [None])
    largest = WEIGHT.abs().amax(dim=1, keepdim=True)
    # half of the last of 3 mantissa bits: 2^-4 relative; below 2^-6 of 448ths the numbers are subnormal
    assert torch.all((layer.weight - WEIGHT).abs() <= WEIGHT.abs() / 16 + largest / 448 * 2**-10)
    assert len(layer.weight[0].unique()) < 40


def test_stacked_layers_are_the_layers_one_after_the_other():
    for precision in ("float32", "int8", "int4_weight", "fp8_weight"):
        stacked = EngineLinear(precision, [WEIGHT, 2 * WEIGHT[:3]], [BIAS, BIAS[:3]])
        single = [EngineLinear(precision, [w], [b]) for w, b in ((WEIGHT, BIAS), (2 * WEIGHT[:3], BIAS[:3]))]
        assert torch.allclose(stacked(INPUT), torch.cat([layer(INPUT) for layer in single], dim=1), atol=1e-5)


def test_rows_do_not_see_each_other():
    layer = EngineLinear("int8", [WEIGHT], [None])
    assert torch.allclose(layer(INPUT)[1:2], layer(INPUT[1:2]), atol=1e-6)


@pytest.mark.parametrize("precision", get_args(Precision))
@pytest.mark.parametrize("width", [40, 5000])
def test_columns_are_rows_turned(precision, width, monkeypatch):
    """At both widths: bfloat16 layers of few numbers multiply these in float32."""
    monkeypatch.setattr(quantize, "multiplies_bfloat16", lambda device: True)
    generator = torch.Generator().manual_seed(width)
    weight, inputs = torch.randn(7, width, generator=generator), torch.randn(5, width, generator=generator)
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    layer, inputs = EngineLinear(precision, [weight], [BIAS]), inputs.to(dtype)
    assert (layer.wide is not None) == (precision == "bfloat16" and width == 40)
    for biased in (True, False):
        layer.load([weight], [BIAS if biased else None])
        found, expected = layer.columns(inputs.t()), layer(inputs).t()
        assert found.dtype == dtype and torch.allclose(found, expected, rtol=1e-2, atol=width**0.5 / 100)
        if precision != "int8":
            exact = layer.weight.double() @ inputs.t().double() + (BIAS[:, None] if biased else 0.0)
            limit = (1 / 100 if dtype == torch.bfloat16 else 1e-5) * exact.abs().max()
            assert bool(((found - exact).abs() <= limit).all())


def test_precision_orders_the_error(make_model):
    model = make_model(initializer_range=0.1)
    tokens = torch.randint(3, 30, (4, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        exact = model(tokens).logits
        errors = [
            float((engine_copy(model, precision)(tokens).logits.float() - exact).abs().mean())
            for precision in ("float32", "int8_weight", "int8", "int4_weight")
        ]
    assert errors[0] == 0.0
    assert errors == sorted(errors)
    assert errors[1] > 0


def test_new_weights_replace_the_old(make_model):
    first, second = make_model("gpt2", seed=0), make_model("gpt2", seed=1)
    tokens = torch.tensor([[2, 5, 7]])
    for precision in ("float32", "bfloat16", "int8"):
        twin = engine_copy(first, precision)
        load_weights(twin, second.state_dict())
        with torch.no_grad():
            assert torch.equal(twin(tokens).logits, engine_copy(second, precision)(tokens).logits)


def test_unknown_precision():
    with pytest.raises(ConfigError, match=r"engine\.precision = 'bf16': (did you mean bfloat16|allowed: bfloat16)"):
        check_precision("bf16")


@pytest.mark.parametrize("form", ["rows", "columns"])
def test_bfloat16_is_rounded_the_same_with_and_without_products_of_it(form, monkeypatch):
    """Where a CPU has none, weights are held in float32; sums are in float32 both times, so an ulp may differ."""
    generator = torch.Generator().manual_seed(0)
    weight, bias = (torch.randn(shape, generator=generator) for shape in ((300, 200), (300,)))
    inputs = torch.randn(40, 200, generator=generator).bfloat16()
    outputs = []
    for native in (True, False):
        monkeypatch.setattr(quantize, "multiplies_bfloat16", lambda device, native=native: native)
        layer = EngineLinear("bfloat16", [weight], [bias])
        assert layer.weight.dtype == (torch.bfloat16 if native else torch.float32)
        assert torch.equal(layer.weight.float(), weight.bfloat16().float())
        outputs.append(layer(inputs) if form == "rows" else layer.columns(inputs.t()).t())
        assert outputs[-1].dtype == torch.bfloat16
    torch.testing.assert_close(*outputs, rtol=2**-7, atol=2**-7)
    assert (outputs[0] == outputs[1]).float().mean() > 0.9
