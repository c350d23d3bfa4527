"""The GPU programs against the oracle: on CUDA where there is one, otherwise under Triton's interpreter."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter's NumPy reports overflow

import holdfast.kernels  # noqa: E402
from holdfast.kernels.function import two_pass  # noqa: E402
from holdfast.kernels.head import make_problem  # noqa: E402
from holdfast.kernels.triton import Blocks, Triton  # noqa: E402

# Triton reads the source of its programs: the shape checks that tests put around every function would be in its way.
NAME = "holdfast.kernels.triton_kernels"
spec = importlib.util.spec_from_file_location(NAME, Path(holdfast.kernels.__file__).with_name("triton_kernels.py"))
sys.modules[NAME] = holdfast.kernels.triton_kernels = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules[NAME])

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SMALL = Blocks(64, 32, 32, 4, 1)
HOW = Triton(SMALL, SMALL, workspace=37 * 256)
VOCABULARY = 701  # 22 tiles of 32 columns: two splits with an empty tile at the end, the last full one ragged


def run(case, **more):
    settings = {**case.settings, **more}
    arguments = {name: move(value) for name, value in {"hidden": case.hidden, "targets": case.targets}.items()}
    settings = {name: move(value) for name, value in settings.items()}
    return two_pass(make_problem(head=move(case.head), **arguments, **settings), HOW)[0]


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
