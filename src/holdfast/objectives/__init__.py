"""Objectives: parts, their composition, and the table of presets.

A `Batch` and `TokenStats` go in, a loss with its gradient and metrics come out (`objective`). `parts` holds the gates,
masks, weights and penalties, `table` a row for each published objective, `presets` joins rows by name.
"""
