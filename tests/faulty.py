"""Engines that do what engines do wrong, for tests of what must find it."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch

from holdfast.rollout.embedded.embedded import EmbeddedEngine
from holdfast.rollout.engine import Completion, sampling_logprobs


class Faulty:
    """The embedded engine with a fault: it changes the sampling, the weights, the sync or the numbers it reports."""

    def __init__(self, model, tokenizer, settings, *, sampling=None, weights=None, sync=None, report=None):
        self.engine = EmbeddedEngine(
            weights or model,
            precision=settings.precision,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        self.change, self.broken_sync, self.report = sampling or {}, sync, report

    @property
    def policy_version(self):
        return self.engine.policy_version

    def generate(self, prompts, sampling, **options):
        completions = self.engine.generate(prompts, replace(sampling, **self.change), **options)
        return completions if self.report is None else [self.report(c) for c in completions]

    def sync(self, model, version):
        if self.broken_sync is not None:
            model = self.broken_sync(model)
        if model is not None:
            self.engine.sync(model, version)

    def close(self):
        self.engine.close()

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


class Penalised:
    """A plain sampler with a repetition penalty, as servers apply it: that of `request`, else the `default`."""

    def __init__(self, model, tokenizer, default=1.0):
        self.model, self.eos, self.default = copy.deepcopy(model), tokenizer.eos_token_id, default
        self.request = {}
        self.policy_version = 0

    @torch.no_grad()
    def generate(
        self, prompts, sampling, *, seed, sequence_ids, return_distributions=False, return_top=0, return_support=False
    ):
        return [self._one(list(p), sampling, seed, i) for p, i in zip(prompts, sequence_ids, strict=True)]

    def _one(self, ids, sampling, seed, number):
        generator = torch.Generator().manual_seed(seed * 1000 + number)
        penalty, start = float(self.request.get("repetition_penalty", self.default)), len(ids)
        rows = []
        while len(ids) - start < sampling.max_tokens and (len(ids) == start or ids[-1] != self.eos):
            logits = self.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1:].float()
            seen = torch.tensor(sorted(set(ids)))
            logits[0, seen] = torch.where(logits[0, seen] > 0, logits[0, seen] / penalty, logits[0, seen] * penalty)
            rows.append(sampling_logprobs(logits, sampling)[0])
            ids.append(int(torch.multinomial(rows[-1].exp(), 1, generator=generator)))
        drawn = torch.tensor(ids[start:])
        table = torch.stack(rows)
        reason = "stop" if ids[-1] == self.eos else "length"
        chosen = table.gather(1, drawn[:, None])[:, 0]
        return Completion(tuple(ids[start:]), chosen, reason, self.policy_version, distributions=table)

    def sync(self, model, version):
        self.model.load_state_dict(model.state_dict())
        self.policy_version = version

    def close(self): ...

    def state_dict(self):
        return {}

    def load_state_dict(self, state): ...
