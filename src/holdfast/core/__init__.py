"""Pure mathematics over tensors: ratios, divergences, bounds, certificates, normalisers, entropy."""
