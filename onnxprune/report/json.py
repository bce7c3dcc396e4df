"""The report as JSON, for programs. The schema's name carries its version."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import Any

from onnxprune.report.report import SCHEMA, Report


def to_dict(report: Report) -> dict[str, Any]:
    """The report as plain values, in the layout of schema `onnxprune-report/1`.

    Infinite and undefined figures become null: JSON has no spelling for them.
    """
    body: dict[str, Any] = {
        "schema": SCHEMA,
        "model": {"path": report.path, "sha256": report.sha256},
        "output": report.output,
        "mode": report.mode,
        "criterion": report.criterion,
        "scope": report.scope,
        "round_to": report.round_to,
        "seed": report.seed,
        "bindings": dict(report.bindings),
        "target": asdict(report.target),
        "latency": None if report.latency is None else asdict(report.latency),
        "slim": None if report.slim is None else {"units": report.slim.units, **asdict(report.slim)},
        "before": asdict(report.before),
        "after": asdict(report.after),
        "groups": [asdict(group) for group in report.groups],
        "barriers": [asdict(barrier) for barrier in report.barriers],
        "coverage": dict(report.coverage),
        "refitted_io": [asdict(io) for io in report.refitted],
        "repairs": [asdict(layer) for layer in report.repairs],
        "soundness": asdict(report.soundness),
        "quantised": None if report.quantised is None else asdict(report.quantised),
        "calibration": dict(report.calibration),
        "metric": None if report.metric is None else asdict(report.metric),
        "fidelity": None if report.fidelity is None else asdict(report.fidelity),
        "warnings": list(report.warnings),
    }
    return finite(body)  # type: ignore[no-any-return]


def render(report: Report) -> str:
    """The report as JSON text."""
    return json.dumps(to_dict(report), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def finite(value: Any) -> Any:
    """Nested plain values with None in place of infinite and undefined numbers."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value
