"""Where a step's rollouts come from: prompts drawn by seed, responses from an engine here or in its own process.

Problems in, `Rollouts` out: tokens, the engine's log-probabilities, versions, rewards. Draws depend on identity and
position only, so nothing here may draw in passing.
"""
