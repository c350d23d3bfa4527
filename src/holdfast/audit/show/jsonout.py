"""`report.json`: all of an audit as plain data in a versioned schema (docs/audit.md); numbers are finite or null."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np

import holdfast
from holdfast.audit.judge.advice import SampleAdvice
from holdfast.audit.judge.auditor import Audit
from holdfast.audit.judge.verdict import verdict_of
from holdfast.audit.measure.extremes import RATES, SIGNS
from holdfast.audit.measure.statistics.running import ESTIMATORS, PROVEN, Statistics, per
from holdfast.audit.measure.statistics.tables import Table
from holdfast.audit.measure.statistics.tails import SHARES, Tails, pareto_k
from holdfast.errors import DataError

SCHEMA = "holdfast.audit/1"
"""Grows with new keys; a key that changes its meaning or goes away makes it /2."""
QUANTILES = (0.5, 0.9, 0.99, 0.999, 0.9999)


def audit_dict(audit: Audit, advice: SampleAdvice) -> dict[str, Any]:
    """The document as plain values, ready for `json.dumps`."""
    facts = audit.facts
    advised = asdict(advice) | {"certificate": advice.certificate.to_dict() if advice.certificate else None}
    document = {
        "schema": SCHEMA,
        "holdfast": holdfast.__version__,
        "verdict": asdict(verdict_of(audit)),
        "sources": audit.sources,
        "facts": {
            "sequences": facts.sequences,
            "tokens": facts.tokens,
            "own_tokens": facts.own_tokens,
            "measured_tokens": facts.measured_tokens,
            "longest": facts.longest,
            "steps": sorted(facts.steps),
            "columns": sorted(facts.columns),
            "logprob_resolution": facts.logprob_resolution,
            "unit": facts.unit,
        },
        "findings": [f.to_dict() for f in audit.findings],
        "withheld": [f.to_dict() for f in audit.withheld],
        "unjudged": audit.unjudged,
        "skipped": audit.skipped,
        "bad_records": {
            "counts": Counter(audit.reading.rejected),
            "examples": [asdict(record) for record in audit.reading.examples],
        },
        "notes": audit.reading.notes,
        "framework": audit.framework,
        "course": {
            name: {"named": series.named, "steps": series.steps.tolist(), "values": series.values.tolist()}
            for name, series in audit.course.series.items()
        },
        "attribution": audit.attribution,
        "writers": audit.writers,
        "more": [{"what": what, "line": text} for what, text in audit.more],
        "statistics": _statistics(audit.statistics),
        "advice": advised,
    }
    return plain(document)


def write_json(path: Path, document: Mapping[str, Any]) -> Path:
    """Write a document; raises DataError where the place cannot be written."""
    try:
        path.write_text(json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror}; give a folder that you may write to") from error
    return path


def plain(value: Any) -> Any:
    """Any nesting of dataclasses, mappings and numpy numbers as JSON's own types; what is not finite is None."""
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):  # a lone surrogate from a broken log cannot be written as UTF-8
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    return value if value is None or isinstance(value, (bool, int)) else str(value)


def _statistics(statistics: Statistics) -> dict[str, Any]:
    return {
        "estimators": {name: statistics.mean(name) for name in ESTIMATORS},
        "regions": statistics.regions(),
        "abs_log_quantiles": {f"{share:g}": statistics.sizes.quantile(share) for share in QUANTILES},
        "tails": _tails(statistics.tails),
        "abs_log_largest": statistics.sizes.largest if statistics.sizes.counts.any() else None,
        "by_position": [
            {"from": 0 if place == 0 else 1 << (place - 1), "tokens": int(count), "abs_log": size, "k3": k3}
            for place, (count, size, k3) in enumerate(
                zip(
                    statistics.by_depth.count(),
                    statistics.by_depth.mean().tolist(),
                    statistics.k3_by_depth.mean().tolist(),
                    strict=True,
                )
            )
            if count
        ],
        "by_length": [
            {"from": 0 if key == 0 else 1 << (int(key) - 1), **row} for key, row in rows_of(statistics.by_length)
        ],
        "by_step": [
            {"from": key, "to": key + statistics.by_step.width - 1, **row} for key, row in rows_of(statistics.by_step)
        ],
        "by_environment": [{"environment": key, **row} for key, row in rows_of(statistics.by_environment)],
    }


def _tails(tails: Tails) -> dict[str, Any]:
    """Pareto's k, ratios at the tails' quantiles, rates of extreme tokens, and the signed skew."""
    sides = {"above": (tails.above, 1), "below": (tails.below, -1), "sequences": (tails.sequences, 1)}
    return {
        "pareto_k": {"tokens": pareto_k(tails.above), "sequences": pareto_k(tails.sequences)},
        "log_ratio_quantiles": {
            name: {f"{share:g}": None if (value := side.quantile(share)) is None else sign * value for share in SHARES}
            for name, (side, sign) in sides.items()
        },
        "rates": {name: tails.rate(name) for name in RATES},
        "signed_skew": {sign: tails.signed_skew(sign) for sign in SIGNS},
    }


def rows_of(table: Table) -> list[tuple[Any, dict[str, Any]]]:
    """Each key with its counts and means, in order."""
    return [
        (
            key,
            {
                "sequences": int(table.total("sequences", key)),
                "tokens": int(table.total("tokens", key)),
                **{name: table.mean(name, per(name), key) for name in ESTIMATORS},
                "accepted": table.mean("accepted", "judged", key),
                "within_trm_max": table.mean("within", "compared", key),
                **{name: table.mean(name, "bounded", key) for name in PROVEN},
                "reward": table.mean("reward", "paid", key),
            },
        )
        for key in sorted(table.sums)  # pyright: ignore[reportArgumentType]
    ]
