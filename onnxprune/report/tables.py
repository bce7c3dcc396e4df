"""Rows of figures that all reporters for people share."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np

from onnxprune.report.report import BarrierResult, Report

_EXAMPLES = 2
_SHORT = 10.0
_HELD_OUT = 5  # every fifth batch is (`onnxprune.repair.rows`), and small batches are made of few samples


def number(value: float) -> str:
    """A count with thousands marked."""
    return f"{value:,.0f}"


def share(part: float, whole: float) -> str:
    """`part` as a percentage of `whole`."""
    return f"{part / whole:.1%}" if whole else "-"


def plural(count: int, noun: str) -> str:
    """`1 group`, `2 groups`.

    Examples
    --------
    >>> plural(1, "group"), plural(1200, "unit")
    ('1 group', '1,200 units')
    """
    return f"{number(count)} {noun}{'' if count == 1 else 's'}"


def some(names: Sequence[str], limit: int = 6) -> str:
    """The first few of many names.

    Examples
    --------
    >>> some(["a", "b", "c"], limit=2)
    'a, b and 1 more'
    """
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def shortened(name: str, limit: int) -> str:
    """A long name without its middle: exporters join the names of all the nodes that they have merged into one.

    Examples
    --------
    >>> shortened("model/conv2d_1/BiasAdd;model/conv2d_1/Conv2D;model/bn_1/Fused", 24)
    'model/conv2d...l/bn_1/Fused'
    """
    if len(name) <= limit + 3:
        return name
    return f"{name[: limit // 2]}...{name[len(name) - (limit - limit // 2) :]}"


def fidelity_head(report: Report) -> str:
    """What stands before the figures of an output: on generated samples they say little about real ones."""
    return "fidelity on synthetic samples" if report.calibration["measured"] == "synthetic" else "fidelity"


def repair_line(report: Report) -> str:
    """How many layers were repaired, and what that did to their errors; empty where none was to be."""
    if not report.repairs:
        return ""
    done = [layer for layer in report.repairs if layer.kind != "none"]
    lost = [layer for layer in report.repairs if layer.lost]
    left = [layer for layer in report.repairs if layer.why]
    text = f"repaired {len([r for r in done if r.lost])} of {plural(len(lost), 'layer')} that lost inputs"
    if len(report.repairs) > len(lost):
        behind = len(report.repairs) - len(lost)
        text += f" and {len([r for r in done if not r.lost])} of {behind} behind them"
    if mended := [layer for layer in done if layer.lost]:
        # an error of nothing is rounded to either side of it
        before, after = (
            max(float(np.median([getattr(r, k) for r in mended])), 0.0) for k in ("before", "after")
        )
        text += f": median error of the former's outputs {before:.1%} -> {after:.1%} of the variance, {_on(report)}"
    if left:
        text += f"; {some([f'{layer.name} ({layer.why})' for layer in left], 2)} left as they are"
    return text


def _on(report: Report) -> str:
    """On which rows errors were measured: batches are too few to hold some out where samples are."""
    return "held out" if report.calibration["samples"] >= _HELD_OUT else "on the samples themselves"


def time_line(report: Report) -> str:
    """Where most of the time went; empty for what took no time."""
    total = sum(report.seconds.values())
    if total < _SHORT:
        return ""
    longest = sorted(report.seconds.items(), key=lambda item: -item[1])[:4]
    parts = ", ".join(f"{stage} {seconds:.0f} s" for stage, seconds in longest if seconds >= total / 20)
    return f"took {total:.0f} s: {parts}"


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
    kept = report.units - report.dropped
    units = report.units + (report.slim.units if report.slim is not None else 0)
    rows.append(["prunable units", number(units), number(kept), share(kept, units)])
    return rows


def target_line(report: Report) -> str:
    """What was asked for and what came out, in one line."""
    target = report.target
    if target.kind == "plan":
        return f"plan replayed: {target.achieved:.1%} of the MACs kept"
    what = {
        "macs": "of the MACs kept",
        "params": "of the parameters kept",
        "latency": "of the run time kept",
        "ratio": "of the units dropped",
    }
    bound = "at least" if target.kind == "ratio" else "at most"
    verdict = "met" if target.met else "NOT met"
    if target.kind == "ratio" and report.scope == "uniform":
        bound = "a level of"
        verdict = "met" if target.met else f"widths are rounded up to multiples of {report.round_to}"
    asked = f"requested {bound} {target.requested:.1%} {what[target.kind]}"
    return f"{asked}, achieved {target.achieved:.1%}: {verdict}"


def slim_line(report: Report) -> str:
    """What contributed nothing and went first; empty where that was nothing."""
    first = report.slim
    if first is None:
        return ""
    more = f", and {plural(len(first.branches), 'sum')} with zero" if first.branches else ""
    return (
        f"slim: {plural(first.units, 'unit')} that contributed nothing{more} went first ({first.zero} multiplied "
        f"by zero, {first.constant} constant, {first.duplicate} multiples of others): "
        f"{share(first.macs, report.before.macs)} of the MACs and "
        f"{share(first.params, report.before.params)} of the parameters were left"
    )


def latency_line(report: Report) -> str:
    """Run times before and after, what was predicted, and under which conditions; empty where none was measured."""
    found = report.latency
    if found is None:
        return ""
    more = f", {plural(len(found.trials), 'cut')} measured on the way" if len(found.trials) > 1 else ""
    shapes = ", ".join(
        f"{name} {'x'.join(map(str, shape)) or 'scalar'}" for name, shape in found.inputs.items()
    )
    whose = " (without the units that are masked)" if report.mode == "mask" else ""
    return (
        f"{found.before_ms:.3g} -> {found.after_ms:.3g} ms{whose}, {found.measured:.1%} +- {found.noise:.1%} "
        f"of the original's; predicted {found.predicted:.1%}{more}; {found.conditions}; {shapes}"
    )


def soundness_line(report: Report) -> str:
    """The proof in one line."""
    s = report.soundness
    inner = f" and {plural(s.inner, 'inner result')}" if s.inner else ""
    if s.branches:
        inner += f", with {number(s.branches)} branch{'' if s.branches == 1 else 'es'} of Ifs forced"
    if s.loops:
        inner += f", with {plural(s.loops, 'Loop')} made to run twice"
    where = "all that onnxruntime can run" if s.detached else "all outputs"
    return (
        f"masked == removed on {plural(s.samples, f'{s.tier} input')}, in {where}{inner}{_FORMS[s.form]}: "
        + ("equal bit for bit, " if s.form and s.equal else f"max |difference| {s.max_abs_diff:.2g}, ")
        + f"max |output| {s.max_abs_output:.3g}"
    )


_FORMS = {
    "": "",
    "integer": ", in integers as written",
    "unrounded": ", without the rounding of activations (with it, last digits decide some of them)",
}


def coverage_line(macs: float, params: float) -> str:
    """How much of the model pruning can reach."""
    return f"{macs:.1%} of the MACs and {params:.1%} of the parameters lie in layers that can become smaller"


def by_reason(barriers: Sequence[BarrierResult]) -> list[tuple[BarrierResult, list[BarrierResult]]]:
    """Barriers of the same reason together: their sum, and themselves; the costliest first.

    The sum lists the layers of all and has no place of its own.
    """
    found: dict[str, list[BarrierResult]] = {}
    for barrier in barriers:
        found.setdefault(barrier.reason, []).append(barrier)
    sums = [
        (
            BarrierResult(
                reason,
                members[0].explanation,
                "",
                tuple(name for member in members for name in member.layers),
                sum(member.params for member in members),
                sum(member.macs for member in members),
            ),
            members,
        )
        for reason, members in found.items()
    ]
    return sorted(sums, key=lambda pair: (-pair[0].macs, -pair[0].params))


def barrier_lines(
    barriers: Sequence[BarrierResult],
    macs: int,
    params: int,
    *,
    verbose: bool = False,
    width: int | None = None,
) -> list[str]:
    """What is blocked and why, reason by reason, for a terminal.

    Parameters
    ----------
    macs, params
        Of the whole model.
    verbose
        Name every layer and place instead of a few.
    width
        Of the terminal; None: lines are not broken.
    """
    if not barriers:
        return []
    lines = ["", *wrap("layers whose output channels all stay (their input channels may still go):", width)]
    lines.append(f"  {'MACs':>6}  {'params':>6}  because")
    for total, members in by_reason(barriers):
        head = f"  {share(total.macs, macs):>6}  {share(total.params, params):>6}  "
        count = plural(len(total.layers), "layer")
        lines += wrap(f"{head}{count}: {total.explanation}", width, indent=len(head) + 2)
        for member in members if verbose else members[:_EXAMPLES]:
            whole = verbose or width is None
            layers = [name if whole else shortened(name, _longest(width)) for name in member.layers]
            names = some(layers, 10**6 if verbose else _EXAMPLES)
            itself = any(member.where == name or repr(name) in member.where for name in member.layers)
            where = member.where if whole else shortened(member.where, _longest(width))
            place = "" if itself else f", held by {where}"
            lines += wrap(f"{' ' * len(head)}  {names}{place}", width, indent=len(head) + 4)
        if not verbose and len(members) > _EXAMPLES:
            lines.append(
                f"{' ' * len(head)}  and at {plural(len(members) - _EXAMPLES, 'other place')} (-v lists all)"
            )
    return lines


def wrap(line: str, width: int | None, *, indent: int = 2) -> list[str]:
    """A line broken to fit a terminal; continued lines are indented. Names are never broken."""
    if width is None or len(line) <= width:
        return [line]
    text = line.lstrip(" ")
    margin = " " * (len(line) - len(text))
    return textwrap.wrap(
        text,
        max(width, indent + 30),
        initial_indent=margin,
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def columns(
    rows: Sequence[Sequence[str]], *, right: Sequence[int] = (), width: int | None = None
) -> list[str]:
    """Rows aligned into columns; the columns in `right` are set flush right.

    Parameters
    ----------
    width
        Cells that take too much of this lose their middle, and lines longer than this are cut off; None: nothing
        is.

    Examples
    --------
    >>> columns([["a", "10"], ["bb", "9"]], right=[1])
    ['a   10', 'bb   9']
    """
    if width is not None:
        rows = [[*(shortened(cell, _longest(width)) for cell in row[:-1]), row[-1]] for row in rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))] if rows else []
    lines = [
        "  ".join(
            cell.rjust(size) if i in right else cell.ljust(size)
            for i, (cell, size) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return lines if width is None else [_fit(line, width) for line in lines]


def _longest(width: int | None) -> int:
    """Characters of a name in a terminal of this width."""
    return max((width or 0) * 2 // 5, 24)


def _fit(line: str, width: int) -> str:
    return line if len(line) <= width else line[: max(width - 3, 0)] + "..."
