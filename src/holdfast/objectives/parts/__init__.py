"""The parts that objectives are put together from: gates, masks, weights, penalties, advantages, normalisers.

`Terms` of a batch in, a mask, a weight or a coefficient per token out. Parts are frozen and round-trip through TOML;
a new one is a class here and its row in the laws.
"""
