"""Engines in other programs: vLLM in process or as a server, any server that speaks its protocol, a child process.

Weights go out with every sync, completions come in; whatever arrives from outside is checked before it is believed.
"""
