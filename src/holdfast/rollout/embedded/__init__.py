"""The engine in this process: a quantised, delayed copy of the policy and the decoders that run it.

A state dict goes in with every sync, completions come out. The decoders compute the same numbers: whatever is changed
in one is held against the model's own forward pass.
"""
