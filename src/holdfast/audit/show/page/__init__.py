"""`report.html`: the audit as one page that loads nothing."""

from holdfast.audit.show.page.document import audit_page, write_audit_page
from holdfast.audit.show.page.index import Entry, write_index

__all__ = ["Entry", "audit_page", "write_audit_page", "write_index"]
