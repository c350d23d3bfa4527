"""`trl grpo` with an objective: python -m holdfast.integrations.trl --objective trm+sspo+kl_cov --config grpo.yaml.

Every flag and YAML key is that of `trl grpo`; `--objective`, `--rollouts_every`, `--lm_head` and `--top_logprobs` are
ours. On several GPUs: accelerate launch -m holdfast.integrations.trl ...
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from unittest.mock import patch

from trl import DatasetMixtureConfig, ModelConfig, TrlParser
from trl.scripts import grpo

from holdfast.errors import HoldfastError
from holdfast.integrations.trl import HoldfastGRPOConfig, HoldfastGRPOTrainer


def main(arguments: Sequence[str] | None = None) -> int:
    """Run TRL's own script with our trainer in the place of TRL's; 2 for settings that cannot be honoured."""
    kinds = (grpo.GRPOScriptArguments, HoldfastGRPOConfig, ModelConfig, DatasetMixtureConfig)
    parser = TrlParser(kinds, prog="python -m holdfast.integrations.trl")
    try:
        given = parser.parse_args_and_config(arguments)
        # The script imports its trainer when it runs.
        with patch("trl.GRPOTrainer", HoldfastGRPOTrainer):
            grpo.main(*given)
    except HoldfastError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
