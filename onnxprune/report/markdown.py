"""The report as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from onnxprune.report.quantised import quantised_line, requantised_line
from onnxprune.report.report import Report
from onnxprune.report.tables import (
    coverage_line,
    fidelity_head,
    latency_line,
    number,
    repair_line,
    share,
    size_rows,
    slim_line,
    soundness_line,
    target_line,
)


def render(report: Report) -> str:
    """The whole report as one Markdown page."""
    step = report.round_to or "8 (4 in narrow groups)"
    parts = [
        f"# onnxprune: `{report.path}`",
        f"{target_line(report)}. Mode `{report.mode}`, criterion `{report.criterion}`, "
        f"scope `{report.scope}`, widths rounded to {step}, seed {report.seed}.",
        _table(["", "before", "after", "kept"], size_rows(report)),
        f"**Soundness.** {soundness_line(report)}.",
    ]
    if first := slim_line(report):
        parts.append(f"**Slim.** {first.removeprefix('slim: ')}.")
    if timed := latency_line(report):
        parts.append(f"**Run time.** {timed}.")
    if repaired := repair_line(report):
        parts.append(f"**Repair.** {repaired[0].upper()}{repaired[1:]}.")
    if how := quantised_line(report.quantised):
        again = requantised_line(report.quantised)
        parts.append(f"**Quantised.** {how}." + (f" {again[0].upper()}{again[1:]}." if again else ""))
    if report.metric is not None:
        parts.append(f"**Metric.** Before: {report.metric.before}. After: {report.metric.after}.")
    if report.fidelity is not None:
        head = fidelity_head(report).capitalize()
        parts.append(f"**{head}.** " + "; ".join(str(o) for o in report.fidelity.outputs) + ".")
    if report.bindings:
        sizes = ", ".join(f"`{name}` = {size}" for name, size in report.bindings.items())
        parts.append(f"MACs are counted with {sizes}.")
    changed = [f"- {io}" for io in report.refitted if io.before != io.after]
    if changed:
        parts += ["## Inputs and outputs that changed", "\n".join(changed)]
    parts += ["## Groups", _groups(report), "## Blocked", _barriers(report)]
    if report.warnings:
        parts += ["## Notes", "\n".join(f"- {warning}" for warning in report.warnings)]
    parts.append(
        f"Input sha256 `{report.sha256}`" + (f", output `{report.output}`." if report.output else ".")
    )
    return "\n\n".join(parts) + "\n"


def _groups(report: Report) -> str:
    if not report.groups:
        return "No group of channels can be cut."
    rows = [
        [g.id, f"`{g.name}`", number(g.units), number(g.kept), str(g.blocks), str(len(g.axes)), g.explanation]
        for g in report.groups
    ]
    return _table(["group", "layer", "units", "kept", "blocks", "axes", "left whole because"], rows)


def _barriers(report: Report) -> str:
    head = coverage_line(report.coverage["macs"], report.coverage["params"]) + "."
    if not report.barriers:
        return head
    rows = [
        [
            ", ".join(f"`{name}`" for name in barrier.layers[:3])
            + (f" and {len(barrier.layers) - 3} more" if len(barrier.layers) > 3 else ""),
            f"{barrier.explanation} ({barrier.where})",
            f"{number(barrier.macs)} ({share(barrier.macs, report.before.macs)})",
            f"{number(barrier.params)} ({share(barrier.params, report.before.params)})",
        ]
        for barrier in report.barriers
    ]
    table = _table(["layers whose output channels all stay", "because", "MACs", "parameters"], rows)
    return f"{head}\n\n{table}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines)
