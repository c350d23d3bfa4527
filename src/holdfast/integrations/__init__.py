"""Adapters to other trainers: rename tables and hooks, no mathematics."""
