"""The plug-in's tests run where TRL is installed (`make test-trl`); elsewhere they are not collected."""

import sys
from importlib.util import find_spec

collect_ignore_glob = ["test_*.py"] if find_spec("trl") is None else []

if not collect_ignore_glob:
    # These tests feed TRL's vLLM path themselves: a folder of tests named vllm on the path must not pass for it.
    sys.modules.setdefault("vllm", None)  # pyright: ignore[reportArgumentType]
