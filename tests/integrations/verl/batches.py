"""verl's batches as its engine hands them to a loss: nested tensors over ragged sequences, padded rows at no place."""

from types import SimpleNamespace

import torch
from tensordict import TensorDict
from verl.workers.config import FSDPActorConfig, PolicyLossConfig

from holdfast.integrations.verl.config import HoldfastLossConfig
from holdfast.integrations.verl.step import ROW, SEQUENCE, sequence_ids


def nested(rows):
    return torch.nested.as_nested_tensor(rows, layout=torch.jagged)


def sequences(count=6, seed=0, drift=0.3):
    """Ragged sequences with tool tokens: prompts, responses, log-probabilities of three policies, advantages."""
    g = torch.Generator().manual_seed(seed)
    rows = []
    for number in range(count):
        prompt, length = 2 + number % 3, 3 + (5 * number) % 7
        mask = torch.ones(length, dtype=torch.int64)
        mask[1 : 1 + number % 3] = 0
        logprobs = -3 * torch.rand(length, generator=g) - 0.1
        rows.append(
            SimpleNamespace(
                prompt=torch.randint(5, 50, (prompt,), generator=g),
                response=torch.randint(5, 50, (length,), generator=g),
                mask=mask,
                logprobs=logprobs,
                old=(logprobs + drift * torch.randn(length, generator=g)).clamp(max=0),
                rollout=(logprobs + drift * torch.randn(length, generator=g)).clamp(max=0),
                ref=(logprobs + drift * torch.randn(length, generator=g)).clamp(max=0),
                entropy=2 * torch.rand(length, generator=g),
                advantage=torch.randn((), generator=g),
            )
        )
    return rows


def batch(rows):
    """The TensorDict of an optimiser step (or of a rank's share of it)."""
    fields = {
        "prompts": nested([row.prompt for row in rows]),
        "responses": nested([row.response for row in rows]),
        "input_ids": nested([torch.cat([row.prompt, row.response]) for row in rows]),
        "response_mask": nested([row.mask for row in rows]),
        "old_log_probs": nested([row.old for row in rows]),
        "rollout_log_probs": nested([row.rollout for row in rows]),
        "ref_log_prob": nested([row.ref for row in rows]),
        "advantages": nested([row.advantage * row.mask for row in rows]),
        "rm_scores": nested([torch.eye(len(row.mask))[-1] * row.advantage for row in rows]),
        ROW: torch.arange(len(rows)),
    }
    data = TensorDict(fields, batch_size=len(rows))
    data[SEQUENCE] = sequence_ids(data)
    return data


def outputs(rows):
    """What the engine's forward pass returns: a value per packed token, at the place of the token before."""

    def packed(name):
        return nested([torch.cat([torch.zeros(len(r.prompt) - 1), getattr(r, name), torch.zeros(1)]) for r in rows])

    return {"log_probs": packed("logprobs"), "entropy": packed("entropy")}


def actor(settings=None, **changes):
    """An actor configuration; `settings` are fields of HoldfastLossConfig, or a loss_mode for verl's class."""
    loss = PolicyLossConfig(loss_mode=settings) if isinstance(settings, str) else HoldfastLossConfig(**settings)
    return FSDPActorConfig(strategy="fsdp2", rollout_n=1, ppo_micro_batch_size_per_gpu=1, policy_loss=loss, **changes)
