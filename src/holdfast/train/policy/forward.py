"""Forward passes of the policy being trained: token ids in, `TokenStats` of the sampled tokens out.

Only response positions reach the LM head, and rows of similar length share a micro-batch, so that padding costs
little. Right padding needs no attention mask: under causal attention no real token sees the padding after it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from holdfast.core.divergences import exact_from_logits, top_k
from holdfast.errors import DataError
from holdfast.kernels import lm_head_stats
from holdfast.rollout.support import outside
from holdfast.train.policy.head import HeadForm, hidden_states
from holdfast.train.policy.replay import Replay
from holdfast.train.policy.unpadded import VARLEN, Layout, Packed, lay_out, pack_rows
from holdfast.train.policy.unpadded import hidden_states as unpadded_states
from holdfast.types import STATS_BOUNDS, TokenStats

DIVERGENCES = ("kl_rollout", "tv_rollout", "chi2_rollout")
ENGINE_FIELDS = ("distributions", "top_ids", "top_logprobs", "support_ids", "support_sizes")
"""Of `Sequences`: what an engine may report of each draw beside its log-probability."""
ROUNDED = 64
"""Tokens of which an unpadded micro-batch has a multiple, in bfloat16 on a CPU."""
Places = tuple[Tensor | Layout | Packed, Tensor, Tensor]
"""Token ids [b, L], padded or laid out, with the row [N] and position [N] of each token that is predicted."""


@dataclass(frozen=True)
class Sequences:
    """Prompts with their responses, concatenated and right padded: B sequences, L tokens, T response tokens.

    `response_lengths` count a tool's tokens too; `response_mask` is True on the policy's own alone. `distributions`
    are the engine's full log-distributions, one row per sampled token of each sequence, -inf outside its support;
    `top_ids` and `top_logprobs` those of its K likeliest tokens alone, which take [N, K] where the others take [N, V];
    `support_ids` are all that it could sample, draw after draw, of which each has `support_sizes`. `experts` are those
    that the engine's model chose for the first tokens of each sequence, all but its last one if all are known.
    """

    input_ids: Int[Tensor, "B L"]
    prompt_lengths: Int[Tensor, " B"]
    response_lengths: Int[Tensor, " B"]
    response_mask: Bool[Tensor, "B T"]
    distributions: tuple[Float[Tensor, "_ V"], ...] | None = None
    top_ids: tuple[Int[Tensor, "_ K"], ...] | None = None
    top_logprobs: tuple[Float[Tensor, "_ K"], ...] | None = None
    support_ids: tuple[Int[Tensor, " _"], ...] | None = None
    support_sizes: tuple[Int[Tensor, " _"], ...] | None = None
    experts: tuple[Int[Tensor, "_ layers K"], ...] | None = None

    @property
    def lengths(self) -> Int[Tensor, " B"]:
        """Tokens per sequence, prompt included."""
        return self.prompt_lengths + self.response_lengths

    def select(self, rows: Int[Tensor, " b"]) -> Sequences:
        """These rows, without the padding that none of them needs; T stays, so that it matches the batch's."""
        longest = int(self.lengths[rows].max())
        reported = (*ENGINE_FIELDS, "experts")
        known = {name: values for name in reported if (values := getattr(self, name)) is not None}
        return Sequences(
            input_ids=self.input_ids[rows, :longest],
            prompt_lengths=self.prompt_lengths[rows],
            response_lengths=self.response_lengths[rows],
            response_mask=self.response_mask[rows],
            **{name: tuple(values[i] for i in rows.tolist()) for name, values in known.items()},
        )

    def same_prompts(self) -> Int[Tensor, " B"]:
        """A number for each row, by first occurrence; rows whose prompts are the same tokens have the same number."""
        beyond = torch.arange(max(1, int(self.prompt_lengths.max()))) >= self.prompt_lengths[:, None]
        prompts = self.input_ids[:, : beyond.shape[1]].masked_fill(beyond, -1)
        distinct, number = prompts.unique(dim=0, return_inverse=True)
        rows = torch.arange(len(number))
        first = torch.full((len(distinct),), len(number)).scatter_reduce(0, number, rows, "amin")
        return first.argsort().argsort()[number]

    def reported(self, device: torch.device) -> Reported:
        """What the engine said of all sampled tokens, in one piece."""
        parts = {name: values for name in ENGINE_FIELDS if (values := getattr(self, name)) is not None}
        joined = {name: torch.cat(values).to(device) for name, values in parts.items()}
        if "top_ids" in joined:
            joined["top_ids"] = joined["top_ids"].long()
        return Reported(**joined)


@dataclass(frozen=True)
class Reported:
    """What the engine said of N draws: whole log-distributions, its K likeliest tokens, all that it could draw."""

    distributions: Float[Tensor, "N V"] | None = None
    top_ids: Int[Tensor, "N K"] | None = None
    top_logprobs: Float[Tensor, "N K"] | None = None
    support_ids: Int[Tensor, " M"] | None = None
    support_sizes: Int[Tensor, " N"] | None = None

    @property
    def knows_support(self) -> bool:
        """Whether it tells which tokens the engine could sample, at least in part."""
        return any(known is not None for known in (self.distributions, self.top_ids, self.support_ids))

    @property
    def only_likeliest(self) -> bool:
        """Whether the support has to be found among the K likeliest tokens."""
        return self.top_ids is not None and self.distributions is None and self.support_ids is None

    def excluded(self, vocabulary: int) -> Bool[Tensor, "N V"] | None:
        """What the engine could not sample, where it says so for the whole vocabulary."""
        if self.distributions is not None:
            return self.distributions == -torch.inf
        if self.support_ids is None or self.support_sizes is None:
            return None
        return outside(self.support_ids, self.support_sizes, vocabulary)

    def bounds(self, chosen: Float[Tensor, "N K"] | None) -> dict[str, Tensor]:
        """Bounds of KL and TV, given the policy's log-probabilities of the same K tokens."""
        if chosen is None or self.top_logprobs is None:
            return {}
        found = top_k(chosen.detach(), self.top_logprobs)
        return dict(zip(STATS_BOUNDS, (found.kl_lower.value, found.tv_lower.value, found.tv_upper.value), strict=True))


@runtime_checkable
class Looks(Protocol):
    """Whatever can say how likely sampled tokens are."""

    def stats(self, sequences: Sequences) -> TokenStats: ...


@dataclass(frozen=True)
class Policy:
    """The model being trained and how its logits become the distribution that the engine claims to sample from.

    `temperature` divides the logits. With `renormalize`, tokens outside the engine's support S (top-p, top-k, min-p)
    are removed before the softmax, so that both policies are distributions over the same set: of a sampled token x,
    log q(x) - log Σ_{y in S} q(y). S is that of the engine's whole distributions, or of its sampling mask; else it must
    fit into its K likeliest tokens. Entropy carries a gradient only where `entropy_gradient` asks for one. `head` says
    how logits follow from hidden states, for `holdfast.kernels.lm_head_stats`; without it all logits are made. With
    `autocast` the model multiplies in bfloat16 whatever its weights are kept in. With `unpadded` (see `make_unpadded`;
    it needs a head) padding and shared prompts cost nothing. With `replay` a mixture's routers choose the experts that
    the engine's chose, where the sequences tell them.
    """

    model: Any
    temperature: float = 1.0
    renormalize: bool = False
    entropy_gradient: bool = False
    head: HeadForm | None = None
    autocast: bool = False
    unpadded: bool = False
    replay: Replay | None = None

    def stats(self, sequences: Sequences) -> TokenStats:
        """Log-probabilities (with gradient), entropy and what the engine's report allows of divergences.

        Whole distributions give exact KL, TV and χ², the likeliest tokens bounds of KL and TV. All [B, T] and zero
        outside the response mask; nats; on the device of the mask. Divergences are of this policy from the rollout
        policy; where this policy is not renormalised on the rollout's support, KL counts the mass that it wastes.

        Raises:
            DataError: this policy must be renormalised on a support that the engine did not report in full.
        """
        mask = sequences.response_mask
        row, offset = mask.nonzero(as_tuple=True)
        position = sequences.prompt_lengths[row] + offset
        device = self.model.device
        targets = sequences.input_ids[row, position].to(device)
        reported = sequences.reported(device)
        where = (self._layout(sequences) if self.unpadded else sequences.input_ids).to(device)
        places = (where, row.to(device), (position - 1).to(device))
        with self._routed(sequences, where):
            if self.head is None or (self.renormalize and reported.knows_support):
                values = self._from_logits(places, targets, reported)
            else:
                values = self._from_hidden(self.head, places, targets, reported)
        return TokenStats(**{name: _scatter(value.to(mask.device), mask) for name, value in values.items()})

    def _from_hidden(
        self, form: HeadForm, places: Places, targets: Int[Tensor, " N"], reported: Reported
    ) -> dict[str, Tensor]:
        """By the LM-head kernels: no [N, V] tensor but the engine's own, where it gave one."""
        with self._precision():
            hidden = _hidden_states(self.model, places)
        # The last norm answers in float32, and the head would be multiplied in it.
        hidden = hidden.to(torch.bfloat16) if self.autocast else hidden
        found = lm_head_stats(
            hidden,
            form.of(self.model, hidden.dtype),
            targets,
            temperature=self.temperature,
            rollout=reported.distributions,
            outputs=("entropy",) if reported.distributions is None else ("entropy", *DIVERGENCES),
            gather_ids=reported.top_ids,
        )
        if found.entropy is not None and not self.entropy_gradient:
            found = replace(found, entropy=found.entropy.detach())
        values = {name: getattr(found, name) for name in ("logprobs", "entropy", *DIVERGENCES)}
        known = {name: value for name, value in values.items() if value is not None}
        return known | reported.bounds(found.gathered_logprobs)

    def _from_logits(self, places: Places, targets: Int[Tensor, " N"], reported: Reported) -> dict[str, Tensor]:
        """By all logits: for heads that cannot be reached, and to remove what lies outside the support."""
        where, row, position = places
        with self._precision():
            if self.head is None:
                logits = self.model(input_ids=where, use_cache=False).logits[row, position]
            else:
                logits = self.head.logits(self.model, _hidden_states(self.model, places))
        logits = logits.float() if self.temperature == 1.0 else logits.float() / self.temperature
        if self.renormalize and reported.only_likeliest:
            logits, targets, reported = _on_support(logits, targets, reported)
        excluded = reported.excluded(logits.shape[1]) if self.renormalize else None
        rollout, top_ids = reported.distributions, reported.top_ids
        drift = {} if rollout is None else self._divergences(logits.detach(), rollout)
        if excluded is not None:
            logits = logits.masked_fill(excluded, -torch.inf)
        log_policy = torch.log_softmax(logits, dim=-1)
        sampled = log_policy.gather(1, targets.unsqueeze(1)).squeeze(1)
        return {
            "logprobs": sampled,
            "entropy": entropy(log_policy if self.entropy_gradient else log_policy.detach()),
            **drift,
            **reported.bounds(None if top_ids is None else log_policy.gather(1, top_ids)),
        }

    def _layout(self, sequences: Sequences) -> Layout | Packed:
        """On the model's device: masks are larger than what they are made from."""
        ids, width = sequences.input_ids.to(self.model.device), self.model.get_input_embeddings().weight.shape[1]
        if self.model.config._attn_implementation in VARLEN:
            return pack_rows(ids, sequences.lengths)
        prompts = sequences.same_prompts()
        if self._replays(sequences):  # the engine may have sent two copies of a prompt to different experts
            prompts = torch.arange(len(prompts))
        layout = lay_out(ids, sequences.prompt_lengths, sequences.lengths, prompts, width)
        # oneDNN writes its bfloat16 products anew for every number of tokens, which takes longer than to run them.
        narrow = self.autocast or self.model.dtype is torch.bfloat16
        return layout.rounded(ROUNDED) if narrow and self.model.device.type == "cpu" else layout

    def _replays(self, sequences: Sequences) -> bool:
        return self.replay is not None and sequences.experts is not None

    def _routed(self, sequences: Sequences, where: Tensor | Layout | Packed) -> AbstractContextManager[None]:
        if self.replay is None or sequences.experts is None:
            return nullcontext()
        return self.replay.choosing(self.replay.laid_out(sequences.experts, where))

    def _precision(self) -> torch.autocast:
        return torch.autocast(self.model.device.type, dtype=torch.bfloat16, enabled=self.autocast)

    def _divergences(self, logits: Float[Tensor, "N V"], rollout: Float[Tensor, "N V"]) -> dict[str, Tensor]:
        exact = exact_from_logits(logits, rollout)
        wasted = 0.0 if self.renormalize else -exact.kept_mass.log()
        return {
            "kl_rollout": (exact.kl.value + wasted).clamp_min(0.0),
            "tv_rollout": exact.tv.value.clamp(0.0, 1.0),
            "chi2_rollout": exact.chi2.value.clamp_min(0.0),
        }


def _hidden_states(model: Any, places: Places) -> Float[Tensor, "N d"]:
    where, row, position = places
    if isinstance(where, Layout | Packed):
        return unpadded_states(model, where, row, position)
    return hidden_states(model, where, row, position)


def _on_support(
    logits: Float[Tensor, "N V"], targets: Int[Tensor, " N"], reported: Reported
) -> tuple[Float[Tensor, "N K"], Int[Tensor, " N"], Reported]:
    """The same tokens with the K reported ones for a vocabulary: all that the engine could sample is among them."""
    ids, logprobs = reported.top_ids, reported.top_logprobs
    assert ids is not None and logprobs is not None
    open_rows = int((logprobs[:, -1] > -torch.inf).sum())
    if open_rows:
        raise DataError(
            f"at {open_rows} of {len(ids)} tokens the engine could sample more than the {ids.shape[1]} tokens that it "
            "reported, so the trainer cannot renormalise on the same ones: raise engine.top_logprobs, or set "
            "engine.exact_kl = true for whole distributions"
        )
    places = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    targets = (ids == targets[:, None]).int().argmax(dim=1)
    return logits.gather(1, ids), targets, Reported(logprobs, places, logprobs)


def entropy(log_policy: Float[Tensor, "N V"]) -> Float[Tensor, " N"]:
    """H = -Σ_v p_v log p_v in nats; tokens outside the support count as zero, in value and gradient."""
    finite = log_policy.masked_fill(log_policy == -torch.inf, 0.0)
    return -(log_policy.exp() * finite).sum(dim=-1)


def micro_batches(sequences: Sequences, rows: Int[Tensor, " b"], max_tokens: int) -> Iterator[Int[Tensor, " micro"]]:
    """Split rows into parts of similar length, each of at most `max_tokens` padded tokens (at least one row).

    Rows with the same prompt stay together: prompts follow in the order of their longest row.
    """
    lengths, prompts = sequences.lengths, sequences.same_prompts()
    order = rows[torch.argsort(lengths[rows], descending=True, stable=True)].tolist()
    turn = {int(prompts[row]): number for number, row in reversed(list(enumerate(order)))}
    part, longest = [], 0
    for row in sorted(order, key=lambda row: turn[int(prompts[row])]):
        longest = max(longest, int(lengths[row]))
        if part and (len(part) + 1) * longest > max_tokens:
            yield torch.tensor(part)
            part, longest = [], int(lengths[row])
        part.append(row)
    if part:
        yield torch.tensor(part)


@torch.no_grad()
def stats_of(policy: Looks, sequences: Sequences, rows: Int[Tensor, " b"], max_tokens: int) -> TokenStats:
    """`TokenStats` of these rows, in their order, without a gradient."""
    parts = list(micro_batches(sequences, rows, max_tokens))
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
