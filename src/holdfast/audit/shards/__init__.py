"""An audit in parts: a log's files are dealt to workers, each audits its own, and what they found is added up.

Paths in; one `Auditor` out, the same as one process gives (`Auditor.merge`).
"""
