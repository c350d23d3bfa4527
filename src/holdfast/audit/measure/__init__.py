"""Columns in, numbers with intervals out: masks, log-ratios, estimators, alignment, sums by stretch and by bin.

`tokens` -> `alignment` -> `stretches` -> `view` build what every check looks at; `statistics` adds chunks up in bounded
memory. Nothing here has an opinion: thresholds that separate good from bad stand in `judge`.
"""
