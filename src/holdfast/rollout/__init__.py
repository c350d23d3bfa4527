"""Rollout engines and the store of logged rollouts: prompts in, tokens with the engine's own log-probabilities out.

`engine` says what every engine promises, `engines` makes one by name, `rescore` holds it to its word, `models` loads
or makes a model, `store` writes and reads rollouts. `embedded` samples in this process, `outside` in another program.
"""
