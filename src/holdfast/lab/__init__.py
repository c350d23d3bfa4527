"""Exact enumeration of small policies and miniature experiments: the oracle of the tests, and a teaching tool."""
