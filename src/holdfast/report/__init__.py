"""Self-contained HTML pages: a run folder or results in, one file that loads nothing out.

`run`, `compare` and `presets` are pages, `page` and `tokens` what they are put together from, `charts` the drawings.
"""
