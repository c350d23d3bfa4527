"""Trainer log-probabilities against plain full-logit passes, one unpadded sequence at a time."""

import copy
from dataclasses import replace

import pytest
import torch

from holdfast.errors import DataError
from holdfast.rollout.embedded.embedded import EmbeddedEngine
from holdfast.rollout.engine import Sampling, sampling_logprobs
from holdfast.rollout.models import character_tokenizer, tiny_model
from holdfast.rollout.support import support_of
from holdfast.train.policy.forward import Policy, gather_stats, micro_batches, stats_of
from holdfast.train.policy.head import HeadForm, find_head
from holdfast.train.sampling.data import pack
from holdfast.types import TokenStats

PROMPTS = [(1, 5, 6), (1, 7, 8, 9, 10), (1, 4), (1, 4, 4, 4)]
RESPONSES = [(8, 9, 10, 2), (5, 2), (6, 7, 8, 9, 4, 2), (5, 5, 5)]
ROWS = torch.arange(4)


@pytest.fixture(scope="module")
def model():
    return tiny_model(character_tokenizer("0123456789"), hidden=32, layers=2, heads=2, seed=3).eval()


def logits_of(model, row):
    """Raw float64 logits at the response's positions, from the sequence alone."""
    ids = torch.tensor([[*PROMPTS[row], *RESPONSES[row]]])
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0].double()
    return logits[len(PROMPTS[row]) - 1 : -1]


def packed(distributions=None):
    plain = pack(PROMPTS, RESPONSES, pad=0)
    return replace(plain, distributions=distributions)


@pytest.mark.parametrize("head", [HeadForm(), None])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_and_entropy_are_those_of_the_unpadded_sequences(model, head, temperature):
    stats = Policy(model, temperature=temperature, head=head).stats(packed())
    for row, response in enumerate(RESPONSES):
        expected = torch.log_softmax(logits_of(model, row) / temperature, dim=-1)
        sampled = expected[torch.arange(len(response)), torch.tensor(response)]
        assert torch.allclose(stats.logprobs[row, : len(response)].double(), sampled, atol=1e-5)
        entropy = -(expected.exp() * expected).sum(-1)
        assert torch.allclose(stats.entropy[row, : len(response)].double(), entropy, atol=1e-5)
        assert not stats.logprobs[row, len(response) :].any() and not stats.entropy[row, len(response) :].any()
    assert stats.kl_rollout is None and stats.logprobs.requires_grad and not stats.entropy.requires_grad


@pytest.mark.parametrize("head", [HeadForm(), None])
def test_entropy_has_a_gradient_where_it_is_asked_for(model, head):
    assert Policy(model, entropy_gradient=True, head=head).stats(packed()).entropy.requires_grad


@pytest.mark.parametrize("head", [HeadForm(), None])
def test_divergences_from_the_engine_s_whole_distribution(model, head):
    """KL = Σ q (log q - log p), TV = ½ Σ |q - p|, χ² = Σ q (p/q - 1)² at every response token."""
    generator = torch.Generator().manual_seed(1)
    rollout = tuple(torch.log_softmax(torch.randn(len(r), 14, generator=generator), dim=-1) for r in RESPONSES)
    stats = Policy(model, head=head, temperature=1.3).stats(packed(rollout))
    for row, response in enumerate(RESPONSES):
        q, p = rollout[row].double().exp(), torch.softmax(logits_of(model, row) / 1.3, dim=-1)
        length = len(response)
        kl = (q * (q / p).log()).sum(-1)
        assert torch.allclose(stats.kl_rollout[row, :length].double(), kl, rtol=1e-4, atol=1e-6)
        assert torch.allclose(stats.tv_rollout[row, :length].double(), 0.5 * (q - p).abs().sum(-1), rtol=1e-4)
        assert torch.allclose(stats.chi2_rollout[row, :length].double(), (q * (p / q - 1) ** 2).sum(-1), rtol=1e-4)


def test_the_head_s_gradient_is_that_of_all_logits(model):
    gradients = []
    for head in (HeadForm(), None):
        stats = Policy(model, head=head, entropy_gradient=True, temperature=0.8).stats(packed())
        gradients.append(torch.autograd.grad((2 * stats.logprobs + stats.entropy).sum(), list(model.parameters())))
    assert all(torch.allclose(a, b, atol=2e-5) for a, b in zip(*gradients, strict=True))


def test_no_more_than_a_tile_of_logits_is_made(model, monkeypatch):
    """With a reachable head the model's output layer is never called."""
    monkeypatch.setattr(type(model.get_output_embeddings()), "forward", None)
    linear = torch.nn.functional.linear
    for module in model.base_model.modules():
        if isinstance(module, torch.nn.Linear):
            monkeypatch.setattr(module, "forward", lambda x, m=module: linear(x, m.weight, m.bias), raising=False)
    assert Policy(model, head=HeadForm()).stats(packed()).logprobs.any()
    with pytest.raises(TypeError):
        Policy(model).stats(packed())


@pytest.mark.parametrize(
    ("name", "extra", "form"),
    [
        ("Gemma2", {"final_logit_softcapping": 3.0, "head_dim": 16}, HeadForm(1.0, 3.0)),
        ("Cohere", {"logit_scale": 0.25}, HeadForm(0.25)),
        ("Granite", {"logits_scaling": 4.0}, HeadForm(0.25)),
        ("Qwen2", {}, HeadForm()),
    ],
)
def test_scale_and_cap_of_real_architectures_are_found(name, extra, form):
    import transformers

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = getattr(transformers, f"{name}Config")(vocab_size=14, num_key_value_heads=2, **sizes, **extra)
    torch.manual_seed(0)
    other = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    with torch.no_grad():
        other.get_output_embeddings().weight.mul_(20)  # large enough for the cap to bend
    assert find_head(other) == (form, "")
    by_head, by_logits = (Policy(other, head=head).stats(packed()) for head in (form, None))
    assert torch.allclose(by_head.logprobs, by_logits.logprobs, atol=1e-5)


@pytest.mark.parametrize("renormalize", [True, False])
def test_divergences_on_a_truncated_support(model, renormalize):
    """KL = Σ q (log q - log p), TV = ½ Σ |q - p|, χ² = Σ q (p/q - 1)², p renormalised on the support of q."""
    generator = torch.Generator().manual_seed(0)
    rollout = []
    for response in RESPONSES:
        noise = torch.randn(len(response), 14, generator=generator)
        dropped = torch.rand(noise.shape, generator=generator) < 0.3
        dropped[torch.arange(len(response)), torch.tensor(response)] = False
        rollout.append(torch.log_softmax(noise.masked_fill(dropped, -torch.inf), dim=-1))
    stats = Policy(model, renormalize=renormalize).stats(packed(tuple(rollout)))
    for row, response in enumerate(RESPONSES):
        q = rollout[row].double().exp()
        full = torch.softmax(logits_of(model, row), dim=-1)
        kept = (full * (q > 0)).sum(-1, keepdim=True)
        inside = full * (q > 0) / kept
        p = inside if renormalize else full
        sampled = p[torch.arange(len(response)), torch.tensor(response)]
        assert torch.allclose(stats.logprobs[row, : len(response)].double(), sampled.log(), atol=1e-5)
        kl = torch.where(q > 0, q * (q.clamp_min(1e-300).log() - p.clamp_min(1e-300).log()), 0.0).sum(-1)
        assert torch.allclose(stats.kl_rollout[row, : len(response)].double(), kl, atol=1e-5)
        tv = 0.5 * (q - inside).abs().sum(-1)
        assert torch.allclose(stats.tv_rollout[row, : len(response)].double(), tv, atol=1e-5)
        chi2 = torch.where(q > 0, (inside - q) ** 2 / q.clamp_min(1e-300), 0.0).sum(-1)
        assert torch.allclose(stats.chi2_rollout[row, : len(response)].double(), chi2, rtol=1e-4)


def test_entropy_counts_the_support_only(model):
    rollout = tuple(torch.full((len(r), 14), -torch.inf) for r in RESPONSES)
    for row, response in enumerate(RESPONSES):
        rollout[row][torch.arange(len(response)), torch.tensor(response)] = 0.0
    stats = Policy(model, renormalize=True, entropy_gradient=True).stats(packed(rollout))
    # One token is left of every distribution: probability 1, entropy 0, and a gradient that is not NaN.
    assert not stats.entropy.any() and not stats.logprobs.any()
    gradients = torch.autograd.grad((stats.entropy + stats.logprobs).sum(), list(model.parameters()), allow_unused=True)
    assert all(bool(torch.isfinite(g).all()) for g in gradients if g is not None)


def of_lengths(lengths, prompts=None):
    """Sequences of these lengths, each with a prompt of its own or, where `prompts` says so, of another row."""
    heads = [(number,) for number in prompts or range(len(lengths))]
    return pack(heads, [(9,) * (length - 1) for length in lengths], pad=0)


@pytest.mark.parametrize(("max_tokens", "count"), [(2, 4), (8, 4), (14, 3), (100, 1)])
def test_micro_batches_cover_every_row_once_within_the_limit(max_tokens, count):
    sequences, rows = of_lengths([3, 9, 2, 9, 4, 7]), torch.tensor([5, 0, 3, 1])
    parts = list(micro_batches(sequences, rows, max_tokens))
    assert sorted(torch.cat(parts).tolist()) == [0, 1, 3, 5]
    for part in parts:
        assert len(part) == 1 or len(part) * int(sequences.lengths[part].max()) <= max_tokens
    assert len(parts) == count


def test_rows_of_a_prompt_stay_together():
    """Prompts in the order of their longest row: 3 (10 tokens) with its short row, then 1 (8), then 2 (7)."""
    sequences = of_lengths([8, 10, 7, 2, 3], prompts=[1, 3, 2, 3, 1])
    assert [part.tolist() for part in micro_batches(sequences, torch.arange(5), 1000)] == [[1, 3, 0, 4, 2]]
    # 2 rows of 10, then 8 beside 2 would be 3 rows of 10: over 20; 2 rows of 8, and a third of 7 is 3 rows of 8.
    assert [part.tolist() for part in micro_batches(sequences, torch.arange(5), 20)] == [[1, 3], [0, 4], [2]]
    assert [part.tolist() for part in micro_batches(sequences, torch.tensor([3, 0]), 15)] == [[0], [3]]


def test_statistics_come_back_in_the_order_that_was_asked_for(model):
    policy, sequences = Policy(model, head=HeadForm()), packed()
    whole = stats_of(policy, sequences, ROWS, 1000)
    for rows in (torch.tensor([2, 0, 3, 1]), torch.tensor([3, 1])):
        cut = stats_of(policy, sequences, rows, 8)
        assert torch.allclose(cut.logprobs, whole.logprobs[rows], atol=1e-6)
        assert torch.allclose(cut.entropy, whole.entropy[rows], atol=1e-6)


def test_gathering_restores_rows():
    parts = [torch.tensor([4, 0]), torch.tensor([7])]
    pieces = [TokenStats(logprobs=torch.tensor([[-4.0], [-0.0]])), TokenStats(logprobs=torch.tensor([[-7.0]]))]
    rows = torch.tensor([7, 4, 0])
    assert gather_stats(pieces, parts, rows).logprobs.flatten().tolist() == [-7.0, -4.0, 0.0]


def test_selected_rows_lose_padding_that_none_needs():
    short = packed().select(torch.tensor([1, 0]))
    assert short.input_ids.shape == (2, 7) and short.response_mask.shape == (2, 6)
    assert short.lengths.tolist() == [7, 7]


def test_a_model_that_caps_its_logits_is_not_taken_apart(model):
    class Capped(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.config = model, model.config

        @property
        def base_model(self):
            return self.inner.base_model

        def get_output_embeddings(self):
            return self.inner.get_output_embeddings()

        def forward(self, **inputs):
            output = self.inner(**inputs)
            output.logits = 0.1 * torch.tanh(output.logits / 0.1)
            return output

    form, reason = find_head(Capped())
    assert form is None and "changes them afterwards" in reason and find_head(model) == (HeadForm(), "")


def test_an_adapted_output_layer_is_not_taken_apart(model):
    """LoRA on the head: its weight is only a part of it, equal at the start and wrong from the first update on."""

    class Adapted(torch.nn.Linear):
        pass

    twin = copy.deepcopy(model)
    layer = twin.get_output_embeddings()
    adapted = Adapted(layer.in_features, layer.out_features, bias=False)
    adapted.weight = layer.weight
    twin.set_output_embeddings(adapted)
    form, reason = find_head(twin)
    assert form is None and "Adapted" in reason


def likeliest(distributions, count):
    """What an engine that reports its K likeliest tokens says of these distributions."""
    tops = [d.topk(count, dim=-1) for d in distributions]
    return {"top_ids": tuple(t.indices.int() for t in tops), "top_logprobs": tuple(t.values for t in tops)}


def some_distributions(dropped=0.0):
    generator = torch.Generator().manual_seed(4)
    found = []
    for response in RESPONSES:
        noise = 2 * torch.randn(len(response), 14, generator=generator)
        gone = torch.rand(noise.shape, generator=generator) < dropped
        gone[torch.arange(len(response)), torch.tensor(response)] = False
        found.append(torch.log_softmax(noise.masked_fill(gone, -torch.inf), dim=-1))
    return tuple(found)


@pytest.mark.parametrize("head", [HeadForm(), None])
@pytest.mark.parametrize(("count", "tight"), [(3, False), (14, True)])
def test_the_engine_s_likeliest_tokens_bound_the_exact_divergences(model, head, count, tight):
    """KL >= Σ_K p log(p/q) + tail, TV within its interval; with all 14 tokens reported both are exact."""
    whole = some_distributions()
    policy = Policy(model, head=head, temperature=0.8)
    exact = policy.stats(packed(whole))
    bounds = policy.stats(replace(packed(), **likeliest(whole, count)))
    assert bounds.kl_rollout is None and torch.equal(bounds.logprobs, exact.logprobs)
    assert not bounds.kl_rollout_lower.requires_grad and not bounds.tv_rollout_upper.requires_grad
    for row, response in enumerate(RESPONSES):
        inside = slice(0, len(response))
        p, q = whole[row].double().exp(), torch.softmax(logits_of(model, row) / 0.8, dim=-1)
        kl, tv = (p * (p / q).log()).sum(-1), 0.5 * (p - q).abs().sum(-1)
        lower, least, most = (
            getattr(bounds, name)[row, inside].double()
            for name in ("kl_rollout_lower", "tv_rollout_lower", "tv_rollout_upper")
        )
        if tight:
            assert torch.allclose(lower, kl, atol=1e-4) and torch.allclose(least, tv, atol=1e-4)
            assert torch.allclose(most, tv, atol=1e-4)
        else:
            assert (lower < kl).all() and (least < tv).any() and (most > tv).all()
            top = p.topk(3, dim=-1).indices
            ours, theirs = q.gather(1, top), p.gather(1, top)
            tails = 2 - ours.sum(-1) - theirs.sum(-1)
            assert torch.allclose(most, (0.5 * ((ours - theirs).abs().sum(-1) + tails)).clamp(max=1), atol=1e-5)
        assert not bounds.tv_rollout_upper[row, len(response) :].any()


@pytest.mark.parametrize("head", [HeadForm(), None])
def test_a_support_that_is_reported_in_full_needs_no_whole_distributions(model, head):
    """At most 5 of 14 tokens can be sampled and 6 are reported: the numbers are those of whole distributions."""
    kept = tuple(
        torch.log_softmax(d.masked_fill(d < d.topk(5, dim=-1).values[:, -1:], -torch.inf), dim=-1)
        for d in some_distributions()
    )
    for row, response in enumerate(RESPONSES):  # what was sampled is among them
        kept[row].scatter_(1, torch.tensor(response)[:, None], -2.0)
    kept = tuple(torch.log_softmax(d, dim=-1) for d in kept)
    policy = Policy(model, renormalize=True, entropy_gradient=True, head=head)
    whole, top = policy.stats(packed(kept)), policy.stats(replace(packed(), **likeliest(kept, 7)))
    for name in ("logprobs", "entropy", "kl_rollout", "tv_rollout", "chi2_rollout"):
        assert torch.allclose(getattr(top, name), getattr(whole, name), rtol=1e-4, atol=1e-5), name
    assert torch.allclose(top.kl_rollout_lower, whole.kl_rollout, atol=1e-4)
    slopes = [torch.autograd.grad((s.logprobs + s.entropy).sum(), list(model.parameters())) for s in (whole, top)]
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*slopes, strict=True))


@pytest.mark.parametrize("head", [HeadForm(), None])
def test_a_sampling_mask_renormalises_on_the_tokens_that_it_names(model, head):
    """log q(x) - log Σ_{y in S} q(y) at temperature .7, in float64; entropy and slopes are those of whole ones."""
    kept = some_distributions(dropped=0.4)
    ids, sizes = zip(*(support_of(d) for d in kept), strict=True)
    masked = replace(packed(), support_ids=ids, support_sizes=sizes)
    policy = Policy(model, temperature=0.7, renormalize=True, entropy_gradient=True, head=head)
    found, whole = policy.stats(masked), policy.stats(packed(kept))
    assert (found.kl_rollout, found.tv_rollout_upper) == (None, None)
    for row, response in enumerate(RESPONSES):
        logits = logits_of(model, row) / 0.7
        inside = logits.masked_fill(kept[row] == -torch.inf, -torch.inf)
        expected = logits.gather(1, torch.tensor(response)[:, None])[:, 0] - inside.logsumexp(-1)
        assert torch.allclose(found.logprobs[row, : len(response)].double(), expected, atol=1e-5)
    assert torch.allclose(found.entropy, whole.entropy, atol=1e-5)
    slopes = [torch.autograd.grad((s.logprobs + s.entropy).sum(), list(model.parameters())) for s in (whole, found)]
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*slopes, strict=True))
    # A mask and likeliest tokens: the mask is the support, and the bounds are those of the two on it.
    both = policy.stats(replace(masked, **likeliest(kept, 3)))
    assert torch.allclose(both.logprobs, whole.logprobs, atol=1e-5)
    assert (both.kl_rollout_lower <= whole.kl_rollout + 1e-5).all()
    assert (both.tv_rollout_upper >= whole.tv_rollout - 1e-5).all()
    rows = torch.tensor([2, 0])
    assert torch.allclose(policy.stats(masked.select(rows)).logprobs, found.logprobs[rows], atol=1e-5)
    plain = Policy(model, head=head).stats(packed())
    assert torch.equal(Policy(model, head=head).stats(masked).logprobs, plain.logprobs), "raw: the mask is not read"


def test_the_engine_s_mask_takes_away_the_drift_that_an_own_top_p_makes(model):
    """Drift before: the trainer's own top-p has other edges, and tokens off it. After: on the recorded sets."""
    sampling = Sampling(top_p=0.7, temperature=0.5, max_tokens=32)
    engine = EmbeddedEngine(model, precision="int4_weight", eos_token_id=2, pad_token_id=0)
    prompts = [(1, 4 + i % 9, 5 + i % 7) for i in range(63)]
    drawn = engine.generate(prompts, sampling, seed=0, sequence_ids=range(63), return_support=True)
    rollout = torch.cat([completion.logprobs for completion in drawn])
    sequences = pack(prompts, [completion.token_ids for completion in drawn], pad=0)
    mask, sets = (
        sequences.response_mask,
        {name: tuple(getattr(completion, name) for completion in drawn) for name in ("support_ids", "support_sizes")},
    )
    with torch.no_grad():
        logits = model(input_ids=sequences.input_ids).logits[:, 2:-1][mask]
        own = sampling_logprobs(logits, sampling).gather(
            1, torch.cat([torch.tensor(c.token_ids) for c in drawn])[:, None]
        )
        policy = Policy(model, temperature=0.5, renormalize=True)
        recorded = policy.stats(replace(sequences, **sets)).logprobs[mask]
    before, after = (own[:, 0] - rollout).abs(), (recorded - rollout).abs()
    gone = before.isinf()
    assert gone.sum() >= 3, "a token that the trainer's own top-p excludes has probability 0"
    assert after.isfinite().all()
    assert after.mean() < 0.85 * before[~gone].mean()


def test_a_support_beyond_the_reported_tokens_is_refused(model):
    reported = likeliest(some_distributions(dropped=0.3), 3)
    with pytest.raises(DataError, match=r"at \d+ of 15 tokens .* more than the 3 tokens .*raise engine.top_logprobs"):
        Policy(model, renormalize=True).stats(replace(packed(), **reported))
    # without renormalisation the rest is a tail, and the bounds hold
    assert Policy(model).stats(replace(packed(), **reported)).tv_rollout_upper.max() <= 1


def test_both_reports_together_give_both_kinds_of_numbers(model):
    whole = some_distributions(dropped=0.2)
    for renormalize in (True, False):
        stats = Policy(model, renormalize=renormalize).stats(replace(packed(whole), **likeliest(whole, 4)))
        mask = packed().response_mask
        assert (stats.kl_rollout_lower <= stats.kl_rollout + 1e-5)[mask].all()
        if renormalize:
            assert (stats.tv_rollout_lower <= stats.tv_rollout + 1e-5)[mask].all()
            assert (stats.tv_rollout_upper >= stats.tv_rollout - 1e-5)[mask].all()


def test_rows_and_order_keep_their_reports(model):
    whole = some_distributions()
    sequences = replace(packed(), **likeliest(whole, 3))
    together = Policy(model).stats(sequences)
    picked = torch.tensor([2, 0])
    apart = stats_of(Policy(model), sequences, picked, max_tokens=8)
    for name in ("kl_rollout_lower", "tv_rollout_lower", "tv_rollout_upper"):
        assert torch.allclose(getattr(apart, name), getattr(together, name)[picked], atol=1e-5)
