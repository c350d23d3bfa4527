"""Logs of numbers by step: who writes which names, and the files that hold them."""
