"""Numbers in, sentences out: findings of the checks, one verdict over them, thresholds advised, settings to change.

`auditor` sends chunks through the `checks`; each returns a `Finding` or nothing. What a finding says must follow from
its evidence; how it looks is `show`'s affair.
"""
