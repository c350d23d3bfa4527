"""Files in, `Chunk`s of columns out: which files there are, which framework wrote them, what each record says.

A new format is a file in `loaders`; nothing behind this folder knows which framework a record came from. Nothing here
judges: a record that cannot be read is left out and named.
"""
