"""What `slim` did to a model, as values, as text and as plain data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from onnxprune.report.json import finite
from onnxprune.report.report import Size
from onnxprune.report.tables import columns, number, plural, share, some, wrap

SCHEMA = "onnxprune-slim/1"


@dataclass(frozen=True)
class SlimGroup:
    """Units of one group that went.

    Attributes
    ----------
    name
        The first layer that makes them.
    units
        How many there were.
    zero, constant, duplicate
        How many of them were multiplied by zero, held the same number for every input, or were a multiple of
        another one.
    """

    name: str
    units: int
    zero: int = 0
    constant: int = 0
    duplicate: int = 0

    @property
    def gone(self) -> int:
        """Units that went."""
        return self.zero + self.constant + self.duplicate


@dataclass(frozen=True)
class Left:
    """Units that contribute nothing of their own, and stay all the same.

    Attributes
    ----------
    name
        Of the group.
    units
        How many.
    what
        "zero", "constant" or "duplicate".
    why
        What holds them.
    """

    name: str
    units: int
    what: str
    why: str


@dataclass(frozen=True)
class SlimReport:
    """Everything that `slim` did to one model.

    Attributes
    ----------
    groups
        Groups that lost units, in the order in which they were found.
    branches
        Sums that had an operand of zeros.
    masks
        Products with a vector of zeros and ones that went with the zeros.
    left
        What was found and stays.
    difference, largest
        Largest difference between the outputs of input and result, and largest output, both over all samples; NaN
        where they were not compared.
    samples, tier
        On how many inputs, and whether they are "real" or "synthetic".
    """

    path: str
    sha256: str
    output: str
    before: Size
    after: Size
    groups: tuple[SlimGroup, ...]
    branches: tuple[str, ...]
    masks: int
    left: tuple[Left, ...]
    difference: float
    largest: float
    samples: int
    tier: str
    bindings: Mapping[str, int]
    warnings: tuple[str, ...]
    seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def units(self) -> int:
        """Units that went."""
        return sum(group.gone for group in self.groups)

    def __repr__(self) -> str:
        return (
            f"SlimReport({self.path!r}: {self.units:,} units that contributed nothing, "
            f"{self.before.macs:,} -> {self.after.macs:,} MACs, {self.before.params:,} -> "
            f"{self.after.params:,} params)"
        )

    def to_dict(self) -> dict[str, Any]:
        """As plain values, in the layout of schema `onnxprune-slim/1`."""
        found: dict[str, Any] = finite({"schema": SCHEMA, "units": self.units, **asdict(self)})
        return found


def render_json(report: SlimReport) -> str:
    """The report as JSON text."""
    return json.dumps(report.to_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def summary(report: SlimReport) -> str:
    """What went, in one line."""
    kinds = [
        (sum(g.zero for g in report.groups), "multiplied by zero"),
        (sum(g.constant for g in report.groups), "constant, now in biases"),
        (sum(g.duplicate for g in report.groups), "multiples of another one"),
    ]
    parts = [f"{number(count)} {what}" for count, what in kinds if count]
    text = f"{plural(report.units, 'unit')} (channels, heads) went" + (
        f": {', '.join(parts)}" if parts else ""
    )
    if report.branches:
        text += f"; {plural(len(report.branches), 'sum')} with zero went: {some(report.branches, 3)}"
    if report.masks:
        text += f"; {plural(report.masks, 'mask')} of zeros and ones went"
    return text


def proof(report: SlimReport) -> str:
    """How the result was compared with the input."""
    if report.difference != report.difference:
        return "the outputs of input and result were not compared"
    return (
        f"outputs of input and result differ by {report.difference:.3g} at most (largest output "
        f"{report.largest:.3g}) on {plural(report.samples, f'{report.tier} sample')}"
    )


def render(report: SlimReport, *, verbose: bool = False, width: int | None = None) -> str:
    """A page that a person can read."""
    before, after = report.before, report.after
    rows = [["", "before", "after", "share"]]
    for name in ("macs", "params", "bytes", "nodes"):
        old, new = getattr(before, name), getattr(after, name)
        rows.append(["MACs" if name == "macs" else name, number(old), number(new), share(new, old)])
    lines = columns(rows, right=(1, 2, 3))
    lines += ["", *wrap(summary(report), width), *wrap(proof(report), width)]
    if report.groups:
        table = [["group of", "units", "zero", "constant", "duplicate", "left"]]
        shown = report.groups if verbose else report.groups[:20]
        for group in shown:
            counts = (group.units, group.zero, group.constant, group.duplicate, group.units - group.gone)
            table.append([group.name, *map(str, counts)])
        lines += ["", *columns(table, right=(1, 2, 3, 4, 5), width=width)]
        if len(shown) < len(report.groups):
            lines.append(f"... and {plural(len(report.groups) - len(shown), 'group')} (-v lists all)")
    if report.left:
        lines += ["", "found, and left where they are:"]
        for left in report.left:
            lines += wrap(f"  {_told(left)}", width, indent=4)
    if report.warnings:
        lines.append("")
        for warning in report.warnings:
            lines += wrap(f"note: {warning}", width, indent=6)
    return "\n".join(lines)


def render_markdown(report: SlimReport) -> str:
    """The whole report as one Markdown page."""
    before, after = report.before, report.after
    parts = [
        f"# onnxprune slim: `{report.path}`",
        f"{summary(report)}. {proof(report).capitalize()}.",
        f"MACs {number(before.macs)} -> {number(after.macs)}, parameters {number(before.params)} -> "
        f"{number(after.params)}, bytes {number(before.bytes)} -> {number(after.bytes)}, nodes "
        f"{number(before.nodes)} -> {number(after.nodes)}.",
    ]
    if report.groups:
        rows = ["| group of | units | zero | constant | duplicate |", "|---|--:|--:|--:|--:|"]
        rows += [
            f"| `{g.name}` | {g.units} | {g.zero} | {g.constant} | {g.duplicate} |" for g in report.groups
        ]
        parts += ["## Groups", "\n".join(rows)]
    if report.left:
        parts += ["## Left where they are", "\n".join(f"- {_told(left)}" for left in report.left)]
    if report.warnings:
        parts += ["## Notes", "\n".join(f"- {warning}" for warning in report.warnings)]
    return "\n\n".join(parts) + "\n"


def _told(left: Left) -> str:
    kind = {"zero": "of zeros", "constant": "with a constant", "duplicate": "that are multiples of others"}
    return f"{left.name}: {plural(left.units, 'unit')} {kind[left.what]}: {left.why}"
