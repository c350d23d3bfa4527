"""Checks of how far engine and trainer are apart, where along a response, and with what it grows.

Views in, findings of kind "drift" out.
"""
