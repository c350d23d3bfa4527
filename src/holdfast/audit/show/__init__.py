"""Findings in; a page, a terminal text, or JSON out. Nothing is computed here that a reader would quote.

Every text from a log is escaped on its way out.
"""
