"""Rows of figures that all reporters for people share."""

from __future__ import annotations

from collections.abc import Sequence

from onnxprune.report.report import Report


def number(value: float) -> str:
    """A count with thousands marked."""
    return f"{value:,.0f}"


def share(part: float, whole: float) -> str:
    """`part` as a percentage of `whole`."""
    return f"{part / whole:.1%}" if whole else "-"


def size_rows(report: Report) -> list[list[str]]:
    """Name, before, after, kept: MACs, parameters, bytes, nodes, units."""
    before, after = report.before, report.after
    rows = [
        [name, number(a), number(b), share(b, a)]
        for name, a, b in (
            ("MACs per sample", before.macs, after.macs),
            ("parameters", before.params, after.params),
            ("bytes", before.bytes, after.bytes),
            ("nodes", before.nodes, after.nodes),
        )
    ]
    units = sum(group.units for group in report.groups)
    kept = units - report.dropped
    rows.append(["prunable units", number(units), number(kept), share(kept, units)])
    return rows


def target_line(report: Report) -> str:
    """What was asked for and what came out, in one line."""
    target = report.target
    verdict = "met" if target.met else "NOT met"
    if target.kind == "plan":
        return f"plan replayed: {target.achieved:.1%} of the MACs kept"
    what = {"macs": "of the MACs kept", "params": "of the parameters kept", "ratio": "of the units dropped"}
    bound = "at least" if target.kind == "ratio" else "at most"
    return (
        f"requested {bound} {target.requested:.1%} {what[target.kind]}, achieved {target.achieved:.1%}: {verdict}"
    )


def soundness_line(report: Report) -> str:
    """The proof in one line."""
    s = report.soundness
    return (
        f"masked == removed on {s.samples} {s.tier} inputs: max |difference| {s.max_abs_diff:.2g}, "
        f"max |output| {s.max_abs_output:.3g}"
    )


def columns(rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> list[str]:
    """Rows aligned into columns; the columns in `right` are set flush right.

    Examples
    --------
    >>> columns([["a", "10"], ["bb", "9"]], right=[1])
    ['a   10', 'bb   9']
    """
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))] if rows else []
    return [
        "  ".join(
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
