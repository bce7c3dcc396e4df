"""The report as text for a terminal."""

from __future__ import annotations

from onnxprune.report.report import Report
from onnxprune.report.tables import columns, number, share, size_rows, soundness_line, target_line


def render(report: Report, *, verbose: bool = False) -> str:
    """A page that a person can read: before, after, requested, achieved, what was blocked and why.

    Parameters
    ----------
    verbose
        List every group and every barrier instead of the ones that matter most.
    """
    rows = [["", "before", "after", "kept"], *size_rows(report)]
    lines = columns(rows, right=(1, 2, 3))
    lines += ["", target_line(report), f"sound: {soundness_line(report)}"]
    if report.metric is not None:
        lines += [f"before: {report.metric.before}", f"after:  {report.metric.after}"]
    if report.fidelity is not None:
        lines += [f"fidelity of {output}" for output in report.fidelity.outputs[: None if verbose else 2]]
    lines += _groups(report, verbose)
    lines += _barriers(report, None if verbose else 5)
    if report.warnings:
        lines += ["", *(f"note: {warning}" for warning in report.warnings)]
    return "\n".join(lines)


def _groups(report: Report, verbose: bool) -> list[str]:
    whole = [g for g in report.groups if g.reason]
    lines = []
    if verbose and report.groups:
        rows = [[g.id, g.name, f"{g.kept}/{g.units}", g.explanation] for g in report.groups]
        lines += ["", *columns([["group", "layer", "kept", "left whole because"], *rows], right=(2,))]
    elif whole:
        counts: dict[str, list[str]] = {}
        for group in whole:
            counts.setdefault(group.explanation, []).append(group.id)
        lines += ["", "groups left whole:"]
        for why, ids in counts.items():
            more = f" and {len(ids) - 6} more" if len(ids) > 6 else ""
            lines.append(f"  {', '.join(ids[:6])}{more}: {why}")
    return lines


def _barriers(report: Report, limit: int | None) -> list[str]:
    if not report.barriers:
        return []
    head = (
        f"blocked: {share(1 - report.coverage['macs'], 1)} of the MACs and "
        f"{share(1 - report.coverage['params'], 1)} of the parameters lie in no prunable group; "
        "layers whose output channels all stay:"
    )
    rows = [
        [
            f"  {barrier.layers[0]}" + (f" (+{len(barrier.layers) - 1})" if len(barrier.layers) > 1 else ""),
            share(barrier.macs, report.before.macs) + " of MACs",
            share(barrier.params, report.before.params) + " of params",
            f"{barrier.explanation} ({barrier.where})",
        ]
        for barrier in report.barriers[:limit]
    ]
    lines = ["", head, *columns(rows, right=(1, 2))]
    if limit is not None and len(report.barriers) > limit:
        lines.append(f"  ... and {number(len(report.barriers) - limit)} more (-v lists all)")
    return lines
