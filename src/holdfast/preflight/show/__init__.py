"""A preflight as a page, in the terminal and as JSON."""
