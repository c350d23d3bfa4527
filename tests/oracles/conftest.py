"""Oracles run where their peer is installed (`make test-trl`, `make test-verl`); elsewhere they are not collected."""

from importlib.util import find_spec

collect_ignore = [f"test_{peer}.py" for peer in ("trl", "verl") if find_spec(peer) is None]
