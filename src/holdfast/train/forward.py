"""Forward passes of the policy being trained: token ids in, `TokenStats` of the sampled tokens out.

Only response positions reach the LM head, and rows of similar length share a micro-batch, so that padding costs
little. Right padding needs no attention mask: under causal attention no real token sees the padding after it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from holdfast.core.divergences import exact_from_logits
from holdfast.types import TokenStats


@dataclass(frozen=True)
class Sequences:
    """Prompts with their responses, concatenated and right padded: B sequences, L tokens, T response tokens.

    `distributions` are the engine's full log-distributions, one [T_i, V] per sequence, -inf outside its support.
    """

    input_ids: Int[Tensor, "B L"]
    prompt_lengths: Int[Tensor, " B"]
    response_mask: Bool[Tensor, "B T"]
    distributions: tuple[Float[Tensor, "_ V"], ...] | None = None

    @property
    def lengths(self) -> Int[Tensor, " B"]:
        """Tokens per sequence, prompt included."""
        return self.prompt_lengths + self.response_mask.sum(dim=1)

    def select(self, rows: Int[Tensor, " b"]) -> Sequences:
        """These rows, without the padding that none of them needs; T stays, so that it matches the batch's."""
        longest = int(self.lengths[rows].max())
        full = self.distributions
        return Sequences(
            input_ids=self.input_ids[rows, :longest],
            prompt_lengths=self.prompt_lengths[rows],
            response_mask=self.response_mask[rows],
            distributions=None if full is None else tuple(full[i] for i in rows.tolist()),
        )


@dataclass(frozen=True)
class Policy:
    """The model being trained and how its logits become the distribution that the engine claims to sample from.

    `temperature` divides the logits. With `renormalize`, tokens outside the engine's support (top-p, top-k, min-p)
    are removed before the softmax, so that both policies are distributions over the same set. Entropy carries a
    gradient only where `entropy_gradient` asks for one. With `separable_head`, prompt positions skip the LM head.
    """

    model: Any
    temperature: float = 1.0
    renormalize: bool = False
    entropy_gradient: bool = False
    separable_head: bool = False

    def stats(self, sequences: Sequences) -> TokenStats:
        """Log-probabilities (with gradient), entropy and, where distributions are known, exact KL, TV and χ².

        All [B, T] and zero outside the response mask; nats. Divergences are of this policy from the rollout policy,
        over the rollout's support; where this policy is not renormalised on it, KL counts the mass that it wastes.
        """
        mask = sequences.response_mask
        row, offset = mask.nonzero(as_tuple=True)
        position = sequences.prompt_lengths[row] + offset
        logits = self._logits(sequences.input_ids, row, position - 1).float()
        logits = logits if self.temperature == 1.0 else logits / self.temperature
        rollout = None if sequences.distributions is None else torch.cat(sequences.distributions)
        drift = {} if rollout is None else self._divergences(logits.detach(), rollout)
        if rollout is not None and self.renormalize:
            logits = logits.masked_fill(rollout == -torch.inf, -torch.inf)
        log_policy = torch.log_softmax(logits, dim=-1)
        sampled = log_policy.gather(1, sequences.input_ids[row, position].unsqueeze(1)).squeeze(1)
        return TokenStats(
            logprobs=_scatter(sampled, mask),
            entropy=_scatter(entropy(log_policy if self.entropy_gradient else log_policy.detach()), mask),
            **{name: _scatter(value, mask) for name, value in drift.items()},
        )

    def _logits(self, input_ids: Int[Tensor, "b L"], row: Int[Tensor, " N"], position: Int[Tensor, " N"]) -> Tensor:
        """Raw logits [N, V] at these positions."""
        if self.separable_head:
            return separate_logits(self.model, input_ids, row, position)
        return self.model(input_ids=input_ids, use_cache=False).logits[row, position]

    def _divergences(self, logits: Float[Tensor, "N V"], rollout: Float[Tensor, "N V"]) -> dict[str, Tensor]:
        exact = exact_from_logits(logits, rollout)
        wasted = 0.0 if self.renormalize else -exact.kept_mass.log()
        return {
            "kl_rollout": (exact.kl.value + wasted).clamp_min(0.0),
            "tv_rollout": exact.tv.value.clamp(0.0, 1.0),
            "chi2_rollout": exact.chi2.value.clamp_min(0.0),
        }


def separate_logits(
    model: Any, input_ids: Int[Tensor, "b L"], row: Int[Tensor, " N"], position: Int[Tensor, " N"]
) -> Float[Tensor, "N V"]:
    """Logits at a few positions: the backbone on everything, the LM head on those alone."""
    hidden = model.base_model(input_ids=input_ids, use_cache=False).last_hidden_state
    return model.get_output_embeddings()(hidden[row, position])


@torch.no_grad()
def has_separable_head(model: Any) -> bool:
    """Whether backbone and LM head are all there is: some models scale or cap their logits after the head."""
    ids, row = torch.arange(4).unsqueeze(0) % model.config.vocab_size, torch.zeros(4, dtype=torch.long)
    try:
        separate = separate_logits(model, ids, row, torch.arange(4))
    except (AttributeError, TypeError):
        return False
    return torch.allclose(separate, model(input_ids=ids, use_cache=False).logits[0], rtol=1e-4, atol=1e-5)


def entropy(log_policy: Float[Tensor, "N V"]) -> Float[Tensor, " N"]:
    """H = -Σ_v p_v log p_v in nats; tokens outside the support count as zero, in value and gradient."""
    finite = log_policy.masked_fill(log_policy == -torch.inf, 0.0)
    return -(log_policy.exp() * finite).sum(dim=-1)


def micro_batches(
    lengths: Int[Tensor, " B"], rows: Int[Tensor, " b"], max_tokens: int
) -> Iterator[Int[Tensor, " micro"]]:
    """Split rows into groups of similar length, each of at most `max_tokens` padded tokens (at least one row)."""
    order = rows[torch.argsort(lengths[rows], descending=True, stable=True)]
    start = 0
    while start < len(order):
        count = max(1, max_tokens // max(1, int(lengths[order[start]])))
        yield order[start : start + count]
        start += count


@torch.no_grad()
def stats_of(policy: Policy, sequences: Sequences, rows: Int[Tensor, " b"], max_tokens: int) -> TokenStats:
    """`TokenStats` of these rows, in their order, without a gradient."""
    parts = list(micro_batches(sequences.lengths, rows, max_tokens))
    return gather_stats([policy.stats(sequences.select(part)) for part in parts], parts, rows)


def gather_stats(
    pieces: Sequence[TokenStats], parts: Sequence[Int[Tensor, " _"]], rows: Int[Tensor, " b"]
) -> TokenStats:
    """Put the micro-batches' statistics back into the order of `rows`."""
    if len(pieces) == 1 and torch.equal(parts[0], rows):
        return pieces[0].detach()
    back = torch.argsort(torch.cat(list(parts)))[torch.argsort(torch.argsort(rows))]

    def joined(name: str) -> Tensor | None:
        values = [getattr(piece, name) for piece in pieces]
        return None if values[0] is None else torch.cat(values).detach()[back]

    return TokenStats(**{field.name: joined(field.name) for field in fields(TokenStats)})  # pyright: ignore[reportArgumentType]


def _scatter(values: Float[Tensor, " N"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    return torch.zeros(mask.shape, dtype=values.dtype).masked_scatter(mask, values)
