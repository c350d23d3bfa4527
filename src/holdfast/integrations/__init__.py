"""Adapters that put Holdfast objectives into other trainers; rename tables, no mathematics."""
