"""The policy that is trained: the model, its head, adapters, and the forward pass with or without padding.

Token ids in, `TokenStats` of the sampled tokens out, with the gradient.
"""
