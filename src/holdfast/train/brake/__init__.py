"""Prompts held out of an update judge it: what does not pass is undone, and a controller sets the next rate.

docs/guard.md says when; docs/theory/certificates.md, [21] and [22], what is proved of it.
"""
