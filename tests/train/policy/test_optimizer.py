"""AdamW in 32 and in 8 bits; with torchao where it is installed, else with a stand-in that takes the same arguments."""

import sys
from types import ModuleType

import pytest
import torch

from holdfast.errors import ConfigError
from holdfast.train.policy.optimizer import make_optimizer
from holdfast.train.settings.config import OptimizerConfig
from holdfast.train.settings.schedule import set_learning_rate

SETTINGS = OptimizerConfig(learning_rate=1e-3, beta1=0.8, beta2=0.9, epsilon=1e-7, weight_decay=0.1)


def weights():
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(64, 128, generator=generator)), torch.nn.Parameter(torch.zeros(3))]


def test_adamw_is_torchs():
    optimizer = make_optimizer(SETTINGS, weights())
    assert type(optimizer) is torch.optim.AdamW
    found = {name: optimizer.defaults[name] for name in ("lr", "betas", "eps", "weight_decay", "fused")}
    assert found == {"lr": 1e-3, "betas": (0.8, 0.9), "eps": 1e-7, "weight_decay": 0.1, "fused": True}


def test_without_torchao_the_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao", None)
    monkeypatch.setitem(sys.modules, "torchao.optim", None)
    with pytest.raises(
        ConfigError, match=r'optimizer.kind = "adamw8bit" needs the package torchao.*holdfast-rl\[adamw8bit\]'
    ):
        make_optimizer(OptimizerConfig(kind="adamw8bit"), weights())


def test_what_torchao_is_given(monkeypatch):
    given = {}
    module = ModuleType("torchao.optim")

    class AdamW8bit(torch.optim.SGD):
        def __init__(self, parameters, **options):
            given.update(options, count=len(parameters))
            super().__init__(parameters, lr=options["lr"])

    module.AdamW8bit = AdamW8bit
    monkeypatch.setitem(sys.modules, "torchao", ModuleType("torchao"))
    monkeypatch.setitem(sys.modules, "torchao.optim", module)
    make_optimizer(SETTINGS.model_copy(update={"kind": "adamw8bit"}), weights())
    assert given == {"count": 2, "lr": 1e-3, "betas": (0.8, 0.9), "eps": 1e-7, "weight_decay": 0.1}


@pytest.mark.filterwarnings("ignore")
def test_eight_bits_are_close_and_go_on_exactly_after_a_checkpoint(tmp_path):
    """Through a file, with weights_only and onto the CPU, as a checkpoint is read."""
    pytest.importorskip("torchao.optim")
    settings = SETTINGS.model_copy(update={"kind": "adamw8bit", "weight_decay": 0.0})
    exact, small = weights(), weights()
    wide, narrow = make_optimizer(settings.model_copy(update={"kind": "adamw"}), exact), make_optimizer(settings, small)

    def go(parameters, optimizer, step):
        set_learning_rate(optimizer, 1e-3 / (step + 1))
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(step))
        optimizer.step()

    before = small[0].detach().clone()
    for step in range(3):
        go(exact, wide, step)
        go(small, narrow, step)
    change, error = (small[0] - before).norm(), (small[0] - exact[0]).norm()
    assert 0 < error < 0.1 * change
    moment = narrow.state[small[0]]["exp_avg"]
    assert type(moment).__name__ == "OptimState8bit" and moment.codes.dtype == torch.uint8
    torch.save(narrow.state_dict(), tmp_path / "state.pt")
    copies = [torch.nn.Parameter(p.detach().clone()) for p in small]
    resumed = make_optimizer(settings, copies)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True, map_location="cpu"))
    go(small, narrow, 3)
    go(copies, resumed, 3)
    assert all(torch.equal(a, b) for a, b in zip(small, copies, strict=True))
