"""The sampled distribution: hand-worked supports, and draws that follow it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.errors import ConfigError
from holdfast.rollout.engine import Sampling, sampling_logprobs

LOGITS = torch.tensor([[0.4, 0.1, 0.3, 0.2]]).log()


def probabilities(**options) -> list[float]:
    return sampling_logprobs(LOGITS, Sampling(**options)).exp()[0].tolist()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [0.4, 0.1, 0.3, 0.2]),
        # squares .16 .01 .09 .04, sum .30
        ({"temperature": 0.5}, [0.16 / 0.30, 0.01 / 0.30, 0.09 / 0.30, 0.04 / 0.30]),
        ({"temperature": 0.0}, [1.0, 0.0, 0.0, 0.0]),
        ({"top_k": 2}, [4 / 7, 0.0, 3 / 7, 0.0]),
        ({"top_k": 9}, [0.4, 0.1, 0.3, 0.2]),
        # .4 < .6 and .4 + .3 crosses it: the crossing token stays
        ({"top_p": 0.6}, [4 / 7, 0.0, 3 / 7, 0.0]),
        ({"top_p": 0.39}, [1.0, 0.0, 0.0, 0.0]),
        # the least is .6 * .4 = .24
        ({"min_p": 0.6}, [4 / 7, 0.0, 3 / 7, 0.0]),
        # top-k leaves 4/9 3/9 2/9; .44 + .33 crosses .7
        ({"top_k": 3, "top_p": 0.7}, [4 / 7, 0.0, 3 / 7, 0.0]),
        # min-p first: .6 * .4 = .24 leaves 4/7 3/7, and 4/7 > .55 crosses top-p alone (on .4 .3 .2 .1 both would stay)
        ({"min_p": 0.6, "top_p": 0.55}, [1.0, 0.0, 0.0, 0.0]),
    ],
)
def test_supports_worked_by_hand(options, expected):
    assert probabilities(**options) == pytest.approx(expected, abs=1e-6)


@given(
    seed=st.integers(0, 10**6),
    temperature=st.floats(0.2, 3.0),
    top_p=st.floats(0.05, 1.0),
    top_k=st.integers(0, 12),
    min_p=st.floats(0.0, 0.9),
)
@settings(max_examples=60, deadline=None)
def test_every_support_is_a_distribution_with_the_likeliest_token(seed, temperature, top_p, top_k, min_p):
    logits = torch.randn(3, 10, generator=torch.Generator().manual_seed(seed)) * 4
    logprobs = sampling_logprobs(logits, Sampling(temperature, top_p, top_k, min_p))
    assert torch.allclose(logprobs.exp().sum(dim=-1), torch.ones(3), atol=1e-5)
    assert torch.equal(logprobs.argmax(dim=-1), logits.argmax(dim=-1))
    kept = logprobs.isfinite()
    # what is kept is kept in proportion
    plain = (logits / temperature).log_softmax(dim=-1)
    offset = (logprobs - plain)[kept.nonzero(as_tuple=True)].split(kept.sum(dim=-1).tolist())
    assert all(float(row.max() - row.min()) < 1e-4 for row in offset)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1.0}, "sampling.temperature = -1.0: must be at least 0"),
        ({"top_p": 0.0}, r"sampling.top_p = 0.0: must be in \(0, 1\]"),
        ({"top_k": -1}, "sampling.top_k = -1: must be at least 0"),
        ({"min_p": 1.0}, r"sampling.min_p = 1.0: must be in \[0, 1\)"),
        ({"max_tokens": 0}, "sampling.max_tokens = 0: must be at least 1"),
    ],
)
def test_impossible_sampling_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        Sampling(**options)
