"""Checks of the run's own settings and progress: what masks, clips and weights do, entropy, repeated data.

Views in, findings of kind "training" out.
"""
