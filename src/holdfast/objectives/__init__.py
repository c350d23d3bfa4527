"""Objectives: parts (gates, pools, masks, weights, penalties), their composition, and the table of presets."""
