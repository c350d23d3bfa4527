"""A preflight as plain data in a versioned schema (docs/preflight.md)."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import holdfast
from holdfast.audit.show.jsonout import audit_dict, plain
from holdfast.preflight.causes import Cause
from holdfast.preflight.inspect import Preflight
from holdfast.preflight.sync import SyncCheck

SCHEMA = "holdfast.preflight/1"
"""Grows with new keys; a key that changes its meaning or goes away makes it /2."""


def preflight_dict(found: Preflight) -> dict[str, Any]:
    """The document as plain values, ready for `json.dumps`; numbers are finite or null."""
    plan, proposal = found.plan, found.proposal
    config = plan.config
    document = {
        "schema": SCHEMA,
        "holdfast": holdfast.__version__,
        "verdict": {"tone": found.tone, "headline": found.headline},
        "plan": {
            "model": config.model.model_dump(mode="json", exclude_none=True),
            "engine": config.engine.model_dump(mode="json", exclude_none=True),
            "sampling": config.sampling.model_dump(mode="json"),
            "request": dict(plan.request),
            "framework": plan.framework,
            "responses": found.audit.facts.sequences,
            "length": plan.planned_length,
            "staleness": plan.planned_staleness,
            "update_kl": plan.update_kl,
        },
        "findings": [finding.to_dict() for finding in found.findings],
        "gap": found.gap,
        "by_entropy": found.entropy,
        "causes": [_cause(cause) for cause in found.causes],
        "sync": _sync(found.sync),
        "stability": {"again": found.stability.again, "alone": found.stability.alone},
        "proposal": None if proposal is None else asdict(proposal),
        "notes": found.notes,
        "audit": audit_dict(found.audit, found.advice),
    }
    return plain(document)


def _cause(cause: Cause) -> dict[str, Any]:
    switched = cause.change
    return {
        "name": cause.name,
        "state": cause.state,
        "said": cause.said,
        "share": None if switched is None else switched.share,
        "left": None if switched is None else switched.left,
        "kl_removed": None if switched is None else switched.kl_removed,
        "usual": cause.usual,
    }


def _sync(sync: SyncCheck) -> dict[str, Any]:
    names = ("verdict", "said", "before", "to_new", "to_old", "after", "restored", "noise", "version")
    return {name: getattr(sync, name) for name in names}
