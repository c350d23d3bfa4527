"""Shards on a Ray cluster: what is said where there is none. With one: `make test-verl` runs test_ray.py."""

import sys
import types

import pytest

from holdfast.audit.shards import cluster
from holdfast.errors import ConfigError


def test_without_ray_a_sentence_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"needs the package ray.*--workers N does without"):
        cluster.connect()


def test_without_a_cluster_a_sentence_says_so(monkeypatch):
    def init(**options):
        assert options["address"] == "auto"  # never one of our own
        raise ConnectionError("Could not find any running Ray instance.\nmore")

    monkeypatch.setitem(sys.modules, "ray", types.SimpleNamespace(is_initialized=lambda: False, init=init))
    with pytest.raises(ConfigError, match=r"no cluster that runs \(Could not find any running Ray instance\.\)"):
        cluster.connect()
