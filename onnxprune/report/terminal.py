"""The report as text for a terminal."""

from __future__ import annotations

from onnxprune.report.quantised import quantised_line, requantised_line
from onnxprune.report.report import Report
from onnxprune.report.tables import (
    barrier_lines,
    columns,
    coverage_line,
    fidelity_head,
    latency_line,
    repair_line,
    size_rows,
    slim_line,
    some,
    soundness_line,
    target_line,
    time_line,
    wrap,
)


def render(report: Report, *, verbose: bool = False, width: int | None = None) -> str:
    """A page that a person can read: before, after, requested, achieved, what was blocked and why.

    Parameters
    ----------
    verbose
        List every group and every barrier instead of the ones that matter most.
    width
        Of the terminal; None: lines are not broken.
    """
    rows = [["", "before", "after", "kept"], *size_rows(report)]
    lines = columns(rows, right=(1, 2, 3))
    lines += ["", *wrap(target_line(report), width), *wrap(f"sound: {soundness_line(report)}", width)]
    if first := slim_line(report):
        lines += wrap(first, width)
    if timed := latency_line(report):
        lines += wrap(f"run time: {timed}", width)
    how = quantised_line(report.quantised)
    for line in (
        repair_line(report),
        f"quantised: {how}" if how else "",
        requantised_line(report.quantised),
    ):
        lines += wrap(line, width) if line else []
    if report.metric is not None:
        lines += [f"before: {report.metric.before}", f"after:  {report.metric.after}"]
    if report.fidelity is not None:
        shown = report.fidelity.outputs[: None if verbose else 2]
        for output in shown:
            lines += wrap(f"{fidelity_head(report)} of {output}", width)
        if len(shown) < len(report.fidelity.outputs):
            lines.append(
                f"... and of {len(report.fidelity.outputs) - len(shown)} more outputs (-v lists all)"
            )
    lines += _groups(report, verbose, width)
    lines += _refitted(report, verbose, width)
    lines += ["", *wrap(coverage_line(report.coverage["macs"], report.coverage["params"]), width)]
    before = report.before
    lines += barrier_lines(report.barriers, before.macs, before.params, verbose=verbose, width=width)
    if spent := time_line(report):
        lines += ["", *wrap(spent, width)]
    if report.warnings:
        lines.append("")
        for warning in report.warnings:
            lines += wrap(f"note: {warning}", width, indent=6)
    return "\n".join(lines)


def _refitted(report: Report, verbose: bool, width: int | None) -> list[str]:
    changed = [str(io) for io in report.refitted if io.before != io.after]
    if not changed:
        return []
    shown = changed[: None if verbose else 4]
    lines = ["", "callers have to change, as allowed by --refit-io:"]
    for line in shown:
        lines += wrap(f"  {line}", width, indent=4)
    if len(shown) < len(changed):
        lines.append(f"  ... and {len(changed) - len(shown)} more (-v lists all)")
    return lines


def _groups(report: Report, verbose: bool, width: int | None) -> list[str]:
    if verbose and report.groups:
        rows = [[g.id, g.name, f"{g.kept}/{g.units}", g.explanation] for g in report.groups]
        return ["", *columns([["group", "layer", "kept", "left whole because"], *rows], right=(2,))]
    whole: dict[str, list[str]] = {}
    for group in report.groups:
        if group.reason:
            whole.setdefault(group.explanation, []).append(group.id)
    if not whole:
        return []
    lines = ["", "groups left whole:"]
    for why, ids in whole.items():
        lines += wrap(f"  {some(ids)}: {why}", width, indent=4)
    return lines
