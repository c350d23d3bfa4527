"""The trainer: configuration, loop, data, checkpoints, metrics, display."""
