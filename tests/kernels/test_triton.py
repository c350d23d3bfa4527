"""The GPU programs against the oracle: on CUDA where there is one, otherwise under Triton's interpreter."""

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

triton = pytest.importorskip("triton", reason="Triton is not installed")
tl = pytest.importorskip("triton.language")
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter's NumPy reports overflow

import holdfast.kernels  # noqa: E402
from holdfast.kernels.blocks import Blocks, Sizes  # noqa: E402
from holdfast.kernels.function import RowGradient, two_pass  # noqa: E402
from holdfast.kernels.head import make_problem  # noqa: E402
from holdfast.kernels.triton import Triton  # noqa: E402

# Triton reads the source of its programs: the shape checks that tests put around every function would be in its way.
NAME = "holdfast.kernels.triton_kernels"
spec = importlib.util.spec_from_file_location(NAME, Path(holdfast.kernels.__file__).with_name("triton_kernels.py"))
sys.modules[NAME] = holdfast.kernels.triton_kernels = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules[NAME])

_position = sys.modules[NAME]._position
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SMALL = Blocks(64, 32, 32, 4, 1)
HOW = Triton(Sizes(SMALL, SMALL, SMALL, SMALL), workspace=37 * 256)
WIDE = Triton(Sizes(Blocks(32, 64, 32, 4, 1), SMALL, SMALL, Blocks(64, 64, 16, 4, 1)), workspace=37 * 256)
VOCABULARY = 701  # 22 tiles of 32 columns: two splits with an empty tile at the end, the last full one ragged


def run(case, how=HOW, **more):
    settings = {**case.settings, **more}
    arguments = {name: move(value) for name, value in {"hidden": case.hidden, "targets": case.targets}.items()}
    settings = {name: move(value) for name, value in settings.items()}
    return two_pass(make_problem(head=move(case.head), **arguments, **settings), how)[0]


def move(value):
    if isinstance(value, torch.Tensor):
        return value.to(DEVICE)
    if isinstance(value, tuple) and any(isinstance(x, torch.Tensor) for x in value):
        return tuple(move(x) for x in value)
    if hasattr(value, "weight"):
        bias = None if value.bias is None else move(value.bias)
        return type(value)(move(value.weight), bias, value.scale, value.softcap)
    return value


@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize("from_logits", [True, False])
def test_statistics(tools, plain, from_logits):
    case = tools.make_case(vocabulary=VOCABULARY, plain=plain)
    expected = tools.oracle(case)
    rollout = case.rollout
    if from_logits:
        other = case.__class__(rollout[0], rollout[1], case.targets, rollout, case.settings)
        rollout = tools.oracle(other)["log_p"].float() + 3.0
    ids = torch.randint(VOCABULARY, (37, 4), generator=torch.Generator().manual_seed(1))
    found = run(case, rollout=rollout, outputs=tools.ALL, gather_ids=ids)
    for name in ("logprobs", *tools.ALL):
        limit = 2e-5 if name.endswith("_rollout") else 2e-6
        assert tools.error(getattr(found, name).cpu(), expected[name]) < limit, name
    assert tools.error(found.gathered_logprobs.cpu(), expected["log_p"].gather(1, ids)) < 1e-6


@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize("with_entropy", [True, False])
def test_gradients(tools, plain, with_entropy):
    case = tools.make_case(vocabulary=VOCABULARY, plain=plain)
    reference, leaves = case.to(torch.float64).trainable(), case.trainable()
    a, b = torch.randn(2, 37, generator=torch.Generator().manual_seed(2))
    a[::3] = b[::3] = 0
    values, found = tools.oracle(reference), run(leaves)

    def loss(logprobs, entropy):
        total = (logprobs.cpu() * a).sum()
        return total + (entropy.cpu() * b).sum() if with_entropy else total

    loss(values["logprobs"], values["entropy"]).backward()
    loss(found.logprobs, found.entropy).backward()
    pairs = [(leaves.hidden, reference.hidden), (leaves.head.weight, reference.head.weight)]
    pairs += [] if plain else [(leaves.head.bias, reference.head.bias)]
    for found_leaf, expected_leaf in pairs:
        assert tools.error(found_leaf.grad, expected_leaf.grad) < 1e-5


def test_small_kl_and_truncated_support(tools):
    case = tools.make_case(vocabulary=VOCABULARY, plain=True, drift=1e-4)
    expected = tools.oracle(case)
    found = run(case, rollout=case.rollout, outputs=("kl_rollout",))
    assert expected["kl_rollout"].max() < 1e-7
    assert ((found.kl_rollout.cpu() - expected["kl_rollout"]).abs() / expected["kl_rollout"]).max() < 0.02
    assert (found.kl_rollout >= 0).all()
    logits = torch.full((37, VOCABULARY), -torch.inf)
    logits[:, 5], logits[:, 600] = 0.0, 1.0
    cut = run(case, rollout=logits, outputs=("kl_rollout", "chi2_rollout"))
    r = torch.tensor([0.0, 1.0], dtype=torch.float64).softmax(0)
    direct = (r * (r.log() - expected["log_p"][:, [5, 600]])).sum(dim=1)
    assert tools.error(cut.kl_rollout.cpu(), direct) < 1e-6
    assert (cut.chi2_rollout == torch.inf).all()


def test_a_row_alone_and_in_a_batch_is_the_same_to_the_last_bit(tools):
    case = tools.make_case(vocabulary=VOCABULARY, plain=True)
    whole = run(case)
    for row in (0, 20, 36):
        part = case.__class__(case.hidden[row : row + 1], case.head, case.targets[row : row + 1], case.rollout)
        assert torch.equal(run(part, outputs=()).logprobs, whole.logprobs[row : row + 1])


def test_larger_tiles_give_the_same_bits(tools):
    """On numbers whose products are exact, since NumPy's GEMM may sum in another order at another size."""
    case = tools.make_case(vocabulary=VOCABULARY, plain=False)
    hidden, weight = (x.mul(8).round().div(8) for x in (case.hidden, case.head.weight))
    case = replace(case, hidden=hidden, head=replace(case.head, weight=weight))
    outputs = ("entropy", "sum_p2", "entropy_change")
    small, wide = run(case, outputs=outputs), run(case, WIDE, outputs=outputs)
    assert all(torch.equal(getattr(small, name), getattr(wide, name)) for name in ("logprobs", *outputs))
    beside_kl = run(case, WIDE, rollout=case.rollout, outputs=("entropy", "kl_rollout"))
    assert torch.equal(beside_kl.logprobs, wide.logprobs)


@pytest.fixture
def bfloat16_products(monkeypatch):
    """NumPy has no bfloat16, and the interpreter multiplies its bits as integers: widened first, which is exact."""
    if DEVICE == "cuda":
        return
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    original = InterpreterBuilder.create_dot

    def widened(handle):
        if handle.dtype.scalar != tl.bfloat16:
            return handle
        return TensorHandle((handle.data.astype("uint32") << 16).view("float32"), tl.float32)

    def create_dot(self, a, b, *rest):
        return original(self, widened(a), widened(b), *rest)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", create_dot)


@pytest.mark.usefixtures("bfloat16_products")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("how", [HOW, WIDE], ids=["small", "wide"])
def test_16_bits(tools, how, dtype):
    """Values are as exact as in float32; gradients are rounded twice, dL/dlogits and the result."""
    case = tools.make_case(vocabulary=VOCABULARY, plain=False).to(dtype)
    reference, leaves = case.to(torch.float64).trainable(), case.trainable()
    a, b = torch.randn(2, 37, generator=torch.Generator().manual_seed(2))
    values, found = tools.oracle(reference), run(leaves, how, rollout=case.rollout, outputs=tools.ALL)
    for name in ("logprobs", *tools.ALL):
        limit = 3e-5 if name.endswith("_rollout") else 3e-6
        assert tools.error(getattr(found, name).detach().cpu(), values[name].detach()) < limit, name
    (values["logprobs"] * a + values["entropy"] * b).sum().backward()
    (found.logprobs.cpu() * a + found.entropy.cpu() * b).sum().backward()
    # The interpreter cuts bfloat16 off (2^-8) where a GPU rounds (2^-9).
    limit = 2**-7 if dtype == torch.bfloat16 else 2**-11
    pairs = [(leaves.hidden, reference.hidden), (leaves.head.weight, reference.head.weight)]
    for found_leaf, expected_leaf in [*pairs, (leaves.head.bias, reference.head.bias)]:
        assert found_leaf.grad.dtype == dtype
        assert tools.error(found_leaf.grad, expected_leaf.grad) < limit


@pytest.mark.parametrize("upstream", [2.0**-30, 2.0**20])
def test_small_and_large_gradients_survive_float16(tools, upstream):
    """dL/dz of 2^-30·p is 0 in float16, and 2^20·p infinite; a power of two takes them through, exactly."""
    case = tools.make_case(vocabulary=VOCABULARY, plain=False).to(torch.float16)
    problem = make_problem(case.hidden, case.head, case.targets, temperature=case.settings["temperature"])
    _, totals, _ = HOW.forward(problem, False)
    ones, gradients = torch.ones(37), []
    for factor in (1.0, upstream):
        rows = RowGradient.of(totals, ones * factor, ones * factor, torch.float32)
        found = HOW.backward(problem, rows, (True, False, False)).hidden
        gradients.append(found.double() / factor)
    assert torch.equal(*gradients)
    assert gradients[0].abs().max() > 1e-3


def test_programs_side_by_side_share_few_blocks():
    """Every (row block, part) once; 132 programs in a row touch 12 + 11 of them, not 1 + 132."""
    blocks, parts, band = 50, 37, 11
    seen = positions(blocks, parts, band)
    assert sorted(seen) == [(block, part) for block in range(blocks) for part in range(parts)]
    # A window of 132 = 12 x 11 programs covers at most 13 row blocks; where a band ends, parts of two bands meet.
    touched = [
        (len({b for b, _ in seen[i : i + 132]}), len({p for _, p in seen[i : i + 132]}))
        for i in range(blocks * band - 132)
    ]
    assert max(b for b, _ in touched) <= 13
    assert max(p for _, p in touched) == 11


def positions(blocks, parts, band):
    """Where each program works, in their order, from the function that the programs call."""
    out = torch.zeros(blocks * parts, 2, dtype=torch.int64, device=DEVICE)
    _write_positions[(blocks * parts,)](out, blocks, parts, BAND=band)
    return [tuple(pair) for pair in out.tolist()]


@triton.jit
def _write_positions(out, n_blocks, n_parts, BAND: tl.constexpr):
    block, part = _position(n_blocks, n_parts, BAND)
    place = out + 2 * tl.program_id(0)
    tl.store(place, block)
    tl.store(place + 1, part)
