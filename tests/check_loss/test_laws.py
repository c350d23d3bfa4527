"""Every law against a loss that breaks it, and a sound loss against all of them."""

import pytest
import torch

from holdfast import DataError
from holdfast.check_loss import laws
from holdfast.check_loss.report import check_loss
from holdfast.check_loss.shapes import SHAPES
from holdfast.check_loss.split import split_law


def plain(function):
    return SHAPES["plain"](function.__name__, function, {})


def clipped(logprobs, old_logprobs, advantages):
    ratio = (logprobs - old_logprobs).clamp(-20, 20).exp()
    return -torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages)


def sound(logprobs, old_logprobs, advantages, mask, num_items_in_batch):
    losses = clipped(logprobs, old_logprobs, advantages)
    return torch.where(mask > 0, losses, 0).sum() / num_items_in_batch


def test_a_sound_loss_breaks_nothing():
    report = check_loss(plain(sound))
    assert [finding.status for finding in report.findings] == ["holds"] * 8
    assert report.below == "old" and str(report.divisor) == "the step's tokens"


def reversed_sign(logprobs, old_logprobs, advantages, mask, num_items_in_batch):
    return -sound(logprobs, old_logprobs, advantages, mask, num_items_in_batch)


def of_the_probability(logprobs, advantages, mask, num_items_in_batch):
    return -(logprobs.exp() * advantages * mask).sum() / num_items_in_batch


def silent_where_equal(logprobs, old_logprobs, advantages, mask, num_items_in_batch):
    return -((logprobs - old_logprobs).square() * advantages * mask).sum() / num_items_in_batch


def half_silent(logprobs, old_logprobs, advantages, mask, num_items_in_batch):
    losses = clipped(logprobs, old_logprobs, advantages)
    return (losses * (advantages > 0) * mask).sum() / num_items_in_batch


def first_tokens_count_more(logprobs, old_logprobs, advantages, mask, num_items_in_batch):
    weight = 1 / (1 + torch.arange(mask.shape[1]))
    return (clipped(logprobs, old_logprobs, advantages) * weight * mask).sum() / num_items_in_batch


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        (reversed_sign, "opposite sign"),
        (of_the_probability, "gradient is of π, not of log π"),
        (silent_where_equal, "the gradient is 0: nothing would be learned"),
        (half_silent, "of the tokens have no gradient"),
        (first_tokens_count_more, "differs within one response"),
    ],
)
def test_gradients_that_are_not_reinforce_on_policy(loss, words):
    finding, divisor = laws.on_policy_law(plain(loss))
    assert finding.status == "broken" and words in finding.says and divisor is None


def of_high_entropy(logprobs, old_logprobs, advantages, mask, entropy, num_items_in_batch):
    kept = mask * (entropy >= torch.quantile(entropy[mask > 0], 0.8))
    return (clipped(logprobs, old_logprobs, advantages) * kept).sum() / num_items_in_batch


def test_a_mask_by_entropy_is_no_fault_on_policy():
    finding, divisor = laws.on_policy_law(plain(of_high_entropy))
    assert finding.status == "holds" and "on the tokens of highest entropy; the other" in finding.says
    assert str(divisor) == "the step's tokens"


def sequence_mean(logprobs, old_logprobs, advantages, mask):
    per_sequence = (clipped(logprobs, old_logprobs, advantages) * mask).sum(-1) / mask.sum(-1).clamp(min=1)
    return per_sequence.mean()


def fixed_length(logprobs, old_logprobs, advantages, mask):
    return (clipped(logprobs, old_logprobs, advantages) * mask).sum() / (64 * len(mask))


def padded_width(logprobs, old_logprobs, advantages, mask):
    return (clipped(logprobs, old_logprobs, advantages) * mask).mean()


def token_mean(logprobs, old_logprobs, advantages, mask):
    return (clipped(logprobs, old_logprobs, advantages) * mask).sum() / mask.sum()


def a_sum(logprobs, old_logprobs, advantages, mask):
    return (clipped(logprobs, old_logprobs, advantages) * mask).sum()


@pytest.mark.parametrize(
    ("loss", "name", "factor"),
    [
        (sound, "the step's tokens", 1.0),
        (sequence_mean, "each response's tokens, then the sequences", 1.0),
        (fixed_length, "the sequences", 1 / 64),
        (padded_width, "sequences times the longest response", 1.0),
        (a_sum, "nothing", 1.0),
    ],
)
def test_the_divisor_is_found(loss, name, factor):
    _, divisor = laws.on_policy_law(plain(loss))
    assert divisor.name == name and divisor.factor == pytest.approx(factor)


def squared(logprobs, old_logprobs, advantages, mask):
    return token_mean(logprobs, old_logprobs, advantages * advantages.abs(), mask)


def whitened(logprobs, old_logprobs, advantages, mask):
    return token_mean(logprobs, old_logprobs, advantages / advantages.std(), mask)


def test_advantages_that_do_not_enter_in_proportion():
    assert "9 times the gradient" in laws.homogeneous_law(plain(squared)).says
    assert "change nothing: they are normalised" in laws.homogeneous_law(plain(whitened)).says
    assert {laws.homogeneous_law(plain(f)).status for f in (squared, whitened)} == {"broken"}


def with_penalty(logprobs, old_logprobs, ref_logprobs, advantages, mask):
    penalty = (0.1 * (logprobs - ref_logprobs).square() * mask).sum() / mask.sum()
    return token_mean(logprobs, old_logprobs, advantages, mask) + penalty


def test_a_penalty_beside_the_policy_term_is_known_as_one():
    report = check_loss(plain(with_penalty))
    assert "a term beside it" in report.findings[1].says
    assert [f.law for f in report.broken] == ["split"]


def unmasked_penalty(logprobs, old_logprobs, ref_logprobs, advantages, mask):
    return token_mean(logprobs, old_logprobs, advantages, mask) + 0.1 * (logprobs - ref_logprobs).square().mean()


def centred_before_the_mask(logprobs, old_logprobs, advantages, mask):
    weight = torch.sigmoid(logprobs.detach() - logprobs.detach().median())
    return token_mean(logprobs, old_logprobs, advantages * weight, mask)


def test_masked_tokens():
    finding = laws.masked_law(plain(unmasked_penalty))
    assert finding.status == "broken" and "100% of the masked tokens have a gradient" in finding.says
    finding = laws.masked_law(plain(centred_before_the_mask))
    assert finding.status == "broken" and "enter a sum or quantile before the mask" in finding.says
    finding = laws.masked_law(plain(token_mean))
    assert finding.status == "note" and "0 · NaN is NaN" in finding.says


def empty_rows_are_nan(logprobs, old_logprobs, advantages, mask):
    return ((clipped(logprobs, old_logprobs, advantages) * mask).sum(-1) / mask.sum(-1)).mean()


def test_padding():
    finding = laws.padding_law(plain(padded_width))
    assert finding.status == "broken" and "every gradient times 0.8000: it divides by the padded width" in finding.says
    finding = laws.padding_law(plain(empty_rows_are_nan))
    assert finding.status == "broken" and "0/0 in its mean" in finding.says
    finding = laws.padding_law(plain(sequence_mean))
    assert finding.status == "note" and "times 0.8889: it counts as a sequence" in finding.says


def groups_by_place(logprobs, old_logprobs, advantages, mask):
    centred = advantages - advantages.view(-1, 2, mask.shape[1]).mean(1, keepdim=True).expand(-1, 2, -1).reshape_as(
        mask
    )
    return token_mean(logprobs, old_logprobs, centred, mask)


def test_the_order_of_the_sequences():
    finding = laws.order_law(plain(groups_by_place))
    assert finding.status == "broken" and "are groups read off it" in finding.says


def survivors(logprobs, old_logprobs, advantages, mask, num_items_in_batch):
    kept = mask * ((logprobs - old_logprobs).abs() < 0.2)
    return (clipped(logprobs, old_logprobs, advantages) * kept).sum() / kept.sum().clamp(min=1)


def longest(logprobs, old_logprobs, advantages, mask):
    return (clipped(logprobs, old_logprobs, advantages) * mask).sum() / mask.shape[1]


def own_tokens(logprobs, old_logprobs, advantages, mask, num_items_in_batch):
    return token_mean(logprobs, old_logprobs, advantages, mask)


def batch_statistic(logprobs, old_logprobs, advantages, mask, num_items_in_batch):
    scale = torch.sigmoid(advantages - advantages.mean()).detach()
    return sound(logprobs, old_logprobs, advantages * scale, mask, num_items_in_batch)


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        (token_mean, "micro-batch's own tokens, and micro-batches are averaged"),
        (sequence_mean, "micro-batch's own sequences, and micro-batches are averaged"),
        (padded_width, "own sequences times its longest response, and micro-batches"),
        (longest, "own longest response, and micro-batches"),
        (own_tokens, "micro-batch's own tokens, where the step's is needed"),
        (survivors, "own surviving tokens"),
        (a_sum, "the loss is a sum, and micro-batches are averaged"),
        (batch_statistic, "a statistic (mean, standard deviation, quantile, group) is taken over the micro-batch"),
    ],
)
def test_splits_and_their_cause(loss, words):
    finding = split_law(plain(loss))
    assert finding.status == "broken" and words in finding.says
    assert split_law(plain(sound)).status == "holds"


def test_the_factor_of_a_split_is_told():
    # nine sequences, averaged over micro-batches: 9/(3 · 1) for the single one of three micro-batches, 9/(3 · 6)
    finding = split_law(plain(sequence_mean))
    assert "gives 0.5 to 3 times the right gradient, and the right one while all micro-batches have" in finding.says
    assert finding.numbers == {"least": pytest.approx(0.5), "most": pytest.approx(3.0)}


def likelier_tokens_count_more(logprobs, advantages, mask, num_items_in_batch):
    return -(logprobs.exp().detach() * logprobs * advantages * mask).sum() / num_items_in_batch


def test_advantages_that_do_not_depend_on_the_token():
    finding = laws.action_independent_law(plain(likelier_tokens_count_more))
    assert finding.status == "broken" and "moves the policy where there is nothing to learn" in finding.says
    held = laws.action_independent_law(plain(sound))
    assert held.status == "holds" and held.numbers["drift_0.05"] < 1e-9


def without_a_ratio(logprobs, advantages, mask, num_items_in_batch):
    return -(logprobs * advantages * mask).sum() / num_items_in_batch


def test_what_drift_leaves_without_a_weight_is_said():
    finding = laws.action_independent_law(plain(without_a_ratio))
    assert finding.status == "holds" and "at 5 % drift" in finding.says


def product_of_ratios(logprobs, old_logprobs, advantages, mask, num_items_in_batch):
    weight = ((logprobs - old_logprobs) * mask).abs().sum(-1, keepdim=True).exp()
    return -(weight * advantages * mask).sum() / num_items_in_batch


def test_extreme_ratios():
    finding = laws.extreme_law(plain(product_of_ratios))
    assert finding.status == "broken" and "limit the log-ratio before exp" in finding.says
    assert laws.extreme_law(plain(sound)).status == "holds"


def raises_on_empty(logprobs, old_logprobs, advantages, mask, num_items_in_batch):
    if not bool((mask.sum(-1) > 0).all()):
        raise ValueError("an empty row")
    return sound(logprobs, old_logprobs, advantages, mask, num_items_in_batch)


def test_a_loss_that_raises_in_one_law_breaks_that_law():
    report = check_loss(plain(raises_on_empty))
    assert [finding.law for finding in report.broken] == ["padding"]
    assert "raised ValueError: an empty row" in report.broken[0].says


def is_nan(logprobs, advantages, mask):
    return (logprobs * advantages * mask).sum() / 0 * 0


def no_gradient(logprobs, advantages, mask):
    return (logprobs.detach() * advantages * mask).sum()


def per_token(logprobs, advantages, mask):
    return -logprobs * advantages * mask


def a_number(logprobs, advantages, mask):
    return 1.0


def raises(logprobs, advantages, mask):
    raise RuntimeError("out of luck")


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        (is_nan, "is_nan has a value that is not finite on ordinary rollouts"),
        (no_gradient, "no_gradient returned a loss without a gradient.*were they detached"),
        (per_token, r"per_token returned a tensor of shape \(8, 12\): a loss is one number"),
        (a_number, "a_number returned float, not a tensor"),
        (raises, "raises raised RuntimeError: out of luck"),
    ],
)
def test_what_cannot_be_judged(loss, words):
    with pytest.raises(DataError, match=words):
        check_loss(plain(loss))
