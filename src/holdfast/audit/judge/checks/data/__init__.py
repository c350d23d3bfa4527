"""Checks of whether the log can be believed at all: values, alignment, sampling that two sides describe differently.

Views in, findings of kind "data" out; most of them invalidate what is built on log-ratios.
"""
