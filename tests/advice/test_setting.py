"""Settings: what a run's file says, whether a line speaks to it, how far the nearest measured one is."""

import math

import pytest

from holdfast.advice.lines import Where
from holdfast.advice.setting import SCRATCH, Setting, common, differences, distance, fits, setting_of
from holdfast.train.settings.configfile import build_config

HERE = Setting(lag=8, updates=1, precision="int8", tokens=48, rate=3e-4, model=SCRATCH, kl=0.1)


def test_a_run_tells_its_setting():
    config = build_config(
        {"engine": {"lag": 3}, "batch": {"minibatches": 4, "epochs": 2}, "sampling": {"max_tokens": 9}}
    )
    assert setting_of(config) == Setting(3, 8, "int8", 9, 2e-4, SCRATCH)
    assert setting_of(build_config({"async": {"staleness": 5}})).lag == 5
    assert setting_of(build_config({"model": {"source": "x"}}, spelt_out=True)).model == "x"


def test_only_what_is_written_is_known_where_asked():
    config = build_config({"batch": {"minibatches": 2}}, spelt_out=True)
    assert setting_of(config, written=True) == Setting(updates=2)
    assert setting_of(build_config({"engine": {"lag": 0}}), written=True).lag == 0


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        (Where(lag=(8, 16)), (True, [])),
        (Where(lag=(9, 16)), (False, [])),
        (Where(lag=(1, 8), updates=(2, 4)), (False, [])),
        (Where(tokens=(1, 47)), (False, [])),
        (Where(precision=["int8"]), (True, [])),
        (Where(precision=["bfloat16"]), (False, [])),
    ],
)
def test_a_line_speaks_within_its_limits(where, expected):
    assert fits(where, HERE) == expected


def test_what_is_not_known_is_asked_for_unless_something_known_excludes():
    assert fits(Where(lag=(1, 8), updates=(1, 1), precision=["int8"]), Setting(lag=2)) == (
        True,
        ["updates", "precision"],
    )
    assert fits(Where(lag=(1, 8), updates=(1, 1)), Setting(lag=0)) == (False, [])


def test_distance_is_in_doublings():
    assert distance(HERE, HERE) == 0
    assert distance(HERE, Setting(lag=17)) == pytest.approx(1.0)
    assert distance(HERE, Setting(updates=4)) == pytest.approx(2.0)
    assert distance(HERE, Setting(precision="bfloat16")) == 2.0
    assert distance(HERE, Setting(tokens=96)) == pytest.approx(0.1)
    assert distance(HERE, Setting(lag=0, updates=2)) == pytest.approx(math.log2(9) + 1)
    assert distance(HERE, Setting()) == 0


def test_what_was_not_measured_is_said():
    yours = Setting(lag=1, updates=4, precision="bfloat16", tokens=4096, rate=1e-6, model="Qwen/Qwen3-8B", kl=1e-4)
    assert differences(HERE, yours) == [
        "1 update behind (8 there)",
        "4 optimiser steps a rollout batch (1 there)",
        "a bfloat16 engine (int8 there)",
        "up to 4,096 tokens (48 there)",
        "learning rate 1e-6 (3e-4 there)",
        "0.0001 nats of KL a token (up to 0.1 there)",
        "the model Qwen/Qwen3-8B (a tiny model made from scratch there)",
    ]
    assert differences(HERE, HERE) == differences(HERE, Setting()) == []
    # Shorter responses than were measured lie within; so does a drift within a factor of two.
    assert differences(HERE, Setting(tokens=20, kl=0.06)) == []


def test_what_settings_have_in_common():
    other = Setting(lag=8, updates=1, precision="int8", tokens=48, rate=1e-2, model=SCRATCH, kl=0.3)
    assert common([HERE, other]) == Setting(8, 1, "int8", 48, None, SCRATCH, 0.2)
    assert common([HERE]) == HERE and common([Setting(), Setting(lag=1)]) == Setting()


def test_words():
    assert HERE.words == (
        "int8 engine, 8 updates behind, 1 optimiser step a rollout batch, up to 48 tokens, learning rate 3e-4"
    )
    assert Setting(lag=0).words == "in step" and Setting().words == ""
