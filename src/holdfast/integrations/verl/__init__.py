"""The plug-in for verl: losses by name, a trainer mode, token records, and warnings of verl's silent traps.

verl itself is imported by the leaf modules only: `names` and `traps` work without it.
"""
