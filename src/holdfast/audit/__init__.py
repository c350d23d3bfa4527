"""Reads logged rollouts of any framework and says where they drifted, why, what it costs and what to set.

A record's way is the order of the folders, and imports run one way along it: `read` (files to columns), `measure`
(columns to numbers with intervals), `judge` (numbers to findings, verdict and advice), `show` (findings to page,
terminal and JSON). `simulate` makes runs with planted faults and sends them down the same way.
"""
