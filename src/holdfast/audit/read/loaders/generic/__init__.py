"""Logs of nobody's format: rows whose columns have names that some framework or person uses."""
