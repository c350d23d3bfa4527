"""Audit of logged rollouts: loaders, checks, findings."""
