"""Rollout engines, sampling support, and the store of logged rollouts."""
