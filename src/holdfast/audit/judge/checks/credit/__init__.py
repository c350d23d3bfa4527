"""Checks of what a token is paid for: advantages against rewards, the mask against what was sampled.

Views in, findings out. They look at who gets which credit, not at how far engine and trainer are apart.
"""
