"""What an update changes is put back bit for bit."""

import pytest
import torch

from held_out import updater_of
from holdfast.objectives.presets import preset
from holdfast.train.brake.snapshot import Snapshot


@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_put_back_goes_on_as_if_nothing_had_been(steps, dtype):
    def updates(parameter, optimizer, count, size):
        for _ in range(count):
            parameter.grad = size * (parameter.detach() + 1)
            optimizer.step()

    weights = []
    for detour in (False, True):
        parameter = torch.nn.Parameter(torch.linspace(-1, 1, 50).to(dtype))
        optimizer = torch.optim.AdamW([parameter], lr=0.1, fused=True)
        updater = updater_of([parameter], optimizer, preset("ppo"))
        updates(parameter, optimizer, steps, 1.0)
        if detour:
            kept = Snapshot.of(updater)
            updater.objective, updater.moved = preset("gspo"), True
            updates(parameter, optimizer, 3, -5.0)
            kept.put_back(updater)
            assert (updater.objective, updater.moved) == (preset("ppo"), False)
            updates(parameter, optimizer, 1, 7.0)  # what was put back is a copy, not the state itself
            assert len(optimizer.state) == 1
            kept.put_back(updater)
        updates(parameter, optimizer, 2, 1.0)
        weights.append(parameter.detach())
    assert torch.equal(*weights)
