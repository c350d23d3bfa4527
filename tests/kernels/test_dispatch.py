"""Which implementation a head gets, and what is refused."""

import re

import pytest
import torch

from holdfast.errors import ConfigError, DataError
from holdfast.kernels import Head, VocabShard, choose, dispatch, lm_head_stats
from holdfast.kernels.head import HeadStats, make_problem


def test_the_choice_depends_on_the_head_alone_and_gives_a_reason(monkeypatch):
    monkeypatch.setattr(dispatch, "triton_obstacle", lambda device, dtype: "no Triton here")
    small, large = (Head(torch.zeros(v, 4)) for v in (32, 4000))
    assert choose(small).name == "naive"
    assert "fastest" in choose(small).reason
    assert choose(large).name == "chunked"
    assert choose(large).reason == "no Triton here"
    assert choose(small, "chunked").name == "chunked"
    assert choose(Head(torch.zeros(32, 4), shard=VocabShard(0, 64))).name == "chunked"


def test_without_triton_falls_back_and_says_so_once(monkeypatch):
    monkeypatch.setattr(dispatch, "triton_obstacle", lambda device, dtype: "Triton is not installed")
    dispatch.warn_once.cache_clear()
    head, hidden, targets = Head(torch.ones(300, 2)), torch.zeros(3, 2), torch.arange(3)
    with pytest.warns(RuntimeWarning, match="not installed"):
        first = lm_head_stats(hidden, head, targets, implementation="triton")
    again = lm_head_stats(hidden, head, targets, implementation="triton")  # a second warning would be an error
    assert torch.equal(first.logprobs, again.logprobs)


def test_obstacles(monkeypatch):
    monkeypatch.setattr(dispatch.importlib.util, "find_spec", lambda name: None)
    assert dispatch.triton_obstacle(torch.device("cuda"), torch.float32) == "Triton is not installed"
    monkeypatch.setattr(dispatch.importlib.util, "find_spec", lambda name: object())
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert dispatch.triton_obstacle(torch.device("cuda"), torch.float32) is None
    assert "cpu" in dispatch.triton_obstacle(torch.device("cpu"), torch.float32)
    assert "float64" in dispatch.triton_obstacle(torch.device("cuda"), torch.float64)


HIDDEN, WEIGHT, TARGETS = torch.ones(3, 4), torch.ones(300, 4), torch.arange(3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden": torch.ones(3, 5)}, "hidden [3, 5] and weight [300, 4]"),
        ({"head": torch.ones(0, 4)}, "V > 0"),
        ({"hidden": torch.ones(3, 4, dtype=torch.bfloat16)}, "cast one"),
        ({"hidden": torch.ones(3, 4, device="meta")}, "move them to one device"),
        ({"head": Head(WEIGHT, torch.ones(300, device="meta"))}, "bias [300] on meta"),
        ({"targets": torch.arange(4)}, "targets is [4]: [3] is needed"),
        ({"targets": torch.ones(3)}, "int64 token ids"),
        ({"targets": torch.tensor([0, -100, 5])}, "spans -100 to 5: allowed are 0 to 299"),
        ({"targets": torch.tensor([0, 300, 5])}, "spans 0 to 300"),
        ({"gather_ids": torch.zeros(2, 7, dtype=torch.int64)}, "gather_ids is [2, 7]: [3, 7] is needed"),
        ({"gather_ids": torch.full((3, 2), 300)}, "gather_ids spans"),
        ({"temperature": torch.ones(2)}, "temperature is [2]: a scalar or [3]"),
        ({"rollout": torch.ones(3, 299), "outputs": ("kl_rollout",)}, "[3, 300]"),
        ({"rollout": (torch.ones(2, 4), WEIGHT), "outputs": ("kl_rollout",)}, "2 rows over 300 tokens"),
        ({"rollout": (torch.ones(3, 4), WEIGHT[:9]), "outputs": ("kl_rollout",)}, "3 rows over 9 tokens"),
        ({"rollout": (torch.ones(3, 5), WEIGHT), "outputs": ("kl_rollout",)}, "rollout hidden [3, 5]"),
    ],
)
def test_tensors_that_do_not_fit(changes, message):
    # Below lm_head_stats, whose annotated shapes the test run itself would refuse first.
    arguments = {"hidden": HIDDEN, "head": WEIGHT, "targets": TARGETS} | changes
    with pytest.raises(DataError, match=re.escape(message)):
        make_problem(**arguments)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": 0.0}, "temperature 0.0 is not above 0"),
        ({"temperature": torch.tensor([1.0, -0.5, 1.0])}, "temperature -0.5"),
        ({"temperature": torch.tensor([1.0, float("inf"), 1.0])}, "temperature inf"),
        ({"temperature": float("nan")}, "temperature nan"),
        ({"outputs": ("entropie",)}, "did you mean entropy"),
        ({"outputs": ("kl_rollout",)}, "kl_rollout needs the rollout policy"),
        ({"rollout": (HIDDEN, WEIGHT)}, "no output reads it"),
        ({"implementation": "tritn"}, "did you mean triton"),
        ({"head": Head(WEIGHT, scale=0.0)}, "scale is 0.0"),
        ({"head": Head(WEIGHT, softcap=0.0)}, "softcap is 0.0"),
        ({"head": Head(WEIGHT, shard=VocabShard(10, 300))}, "shard 10+300"),
        ({"head": Head(WEIGHT, shard=VocabShard(0, 600)), "implementation": "naive"}, "vocabulary-parallel"),
    ],
)
def test_settings_out_of_range(changes, message):
    arguments = {"hidden": HIDDEN, "head": WEIGHT, "targets": TARGETS} | changes
    with pytest.raises(ConfigError, match=re.escape(message)):
        if changes.get("implementation") == "tritn":  # the annotated names would refuse it first
            choose(Head(WEIGHT), "tritn")
        else:
            lm_head_stats(**arguments)


@pytest.mark.parametrize("softcap", [None, 30.0])
@pytest.mark.parametrize("vocabulary", [30, 300])
def test_non_finite_rows_are_named(softcap, vocabulary):
    hidden = torch.ones(40, 4)
    hidden[7, 2] = float("nan")
    hidden[31] = float("inf")
    with pytest.raises(DataError, match=r"2 of 40 rows \(7, 31\): hidden holds"):
        lm_head_stats(hidden, Head(torch.ones(vocabulary, 4), softcap=softcap), torch.zeros(40, dtype=torch.int64))
    weight = torch.ones(vocabulary, 4)
    weight[3] = float("nan")
    with pytest.raises(DataError, match=r"40 of 40 rows \(0, 1, .*, \.\.\.\): weight"):
        lm_head_stats(torch.ones(40, 4), Head(weight, softcap=softcap), torch.zeros(40, dtype=torch.int64))


def test_a_mask_of_another_size():
    with pytest.raises(DataError, match="3 rows do not fit a response_mask with 4"):
        HeadStats(logprobs=torch.zeros(3)).token_stats(torch.ones(2, 2, dtype=torch.bool))
