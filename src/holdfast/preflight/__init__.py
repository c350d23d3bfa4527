"""Whether an engine and a trainer are one policy, asked before any training: drift, its causes, the sync, thresholds.

`inspect.preflight` runs it; `holdfast preflight` is its command.
"""
