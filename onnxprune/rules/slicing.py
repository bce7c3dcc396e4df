"""Slice: what is taken of each axis, and starts, ends and steps that take the same of what is left.

Specification: https://onnx.ai/onnx/operators/onnx__Slice.html
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from onnxprune.errors import Reason
from onnxprune.graph.axes import Axis, Index
from onnxprune.model import edit
from onnxprune.rules.divided import carry_axes
from onnxprune.rules.helpers import arange
from onnxprune.rules.op import normalized
from onnxprune.rules.rule import Key, Rule, table

if TYPE_CHECKING:
    from onnxprune.graph.relations import Relations
    from onnxprune.rules.op import Op
    from onnxprune.rules.refit import Refit


@dataclass(frozen=True)
class _Span:
    """What is taken of one axis.

    Attributes
    ----------
    entry
        The number of the axis in `starts` and `ends`.
    start, stop, step
        As of a Python slice, inside the extent.
    """

    entry: int
    start: int
    stop: int
    step: int

    @property
    def positions(self) -> Index:
        """Positions of the input, in the order of the output."""
        return np.arange(self.start, self.stop, self.step, dtype=np.int64)


def _slice_dims(op: Op) -> list[int] | None:
    """The dims that are sliced, in the order of `starts`; None where they are not known."""
    if op.has(3) and op.data(3) is None:
        return None
    starts = op.ints("starts", 1)
    count = (op.dims(op.input(1)) or (None,))[0] if starts is None else len(starts)
    axes = op.ints("axes", 3)
    if axes is None and count is None:
        return None
    return normalized(axes or range(count or 0), op.rank(op.input(0)))


def _spans(op: Op) -> dict[int, _Span | None] | None:
    """Per sliced dim what is taken, None where that is known at run time only."""
    dims = _slice_dims(op)
    if dims is None:
        return None
    starts, ends = op.ints("starts", 1), op.ints("ends", 2)
    steps = op.ints("steps", 4) or ([1] * len(dims) if not op.has(4) else None)
    if starts is None or ends is None or steps is None:
        return dict.fromkeys(dims)
    x = op.input(0)
    return {
        dim: _span(entry, op.extent(Axis(x, dim)), *bounds)
        for entry, (dim, *bounds) in enumerate(zip(dims, starts, ends, steps, strict=True))
    }


def _span(entry: int, extent: int | None, start: int, end: int, step: int) -> _Span | None:
    if extent is None or step == 0:
        return None
    lower = None if step < 0 and end < -extent else end
    return _Span(entry, *slice(start, lower, step).indices(extent))


def _is_whole(op: Op, span: _Span, a: Axis, b: Axis) -> bool:
    """Whether all positions are taken at every binding, whatever the bounds of other axes do."""
    return span.step == 1 and op.extent(a) == op.extent(b) and not op.dynamic(a) and not op.dynamic(b)


def _slice(op: Op, relations: Relations) -> None:
    x, y = op.input(0), op.output()
    spans = _spans(op)
    if spans is None:
        return
    taken = next(iter(spans.values()), None)
    known = None if taken is None or op.varies(1, 2, 3, 4) else taken.positions
    carry_axes(op, relations, x, y, tuple(spans), known)
    for dim, span in spans.items():
        a, b = Axis(x, dim), Axis(y, dim)
        if span is not None and not op.varies(1, 2, 3, 4):
            source = span.positions
            relations.tie(a, b, source, arange(len(source)))
            continue
        if span is not None and _is_whole(op, span, a, b):
            relations.tie(a, b)
            continue
        if op.extent(a) is None:
            reason = Reason.UNKNOWN_SHAPE
        else:  # at run time another input may take other positions
            reason = Reason.INDEXED if span is None else Reason.DYNAMIC
        relations.pin(a, reason)
        relations.pin(b, reason)


def _refit_slice(op: Op, refit: Refit) -> None:
    x = op.input(0)
    starts, ends = op.ints("starts", 1), op.ints("ends", 2)
    if starts is None or ends is None:
        return
    steps: dict[int, int] = {}
    fixed = []
    for dim, span in (_spans(op) or {}).items():
        axis = Axis(x, dim)
        if span is None:
            continue
        if not op.dynamic(axis):
            fixed.append(span.entry)
        keep = refit.keep(axis)
        if keep is None:
            continue
        if span.step == 1:
            starts[span.entry] = int((keep < span.start).sum())
            if ends[span.entry] <= (op.extent(axis) or 0):  # beyond, it means "to the end"
                ends[span.entry] = int((keep < span.stop).sum())
        else:
            taken = np.searchsorted(keep, np.intersect1d(span.positions, keep))[:: 1 if span.step > 0 else -1]
            starts[span.entry], ends[span.entry], steps[span.entry] = _take(refit, dim, taken)
    if op.has(1):
        refit.entries(1, {entry: starts[entry] for entry in fixed})
        refit.entries(2, {entry: ends[entry] for entry in fixed})
        if steps:
            refit.entries(4, steps)
    elif any(refit.changed(axis) for axis in op.axes(x)):
        refit.set_ints("starts", starts)
        refit.set_ints("ends", ends)


def _take(refit: Refit, dim: int, positions: Index) -> tuple[int, int, int]:
    """Start, end and step that take these positions of the cut input.

    What is left of evenly spaced positions need not be evenly spaced: then a Gather takes them first, and
    the Slice passes all of them on.
    """
    if not len(positions):
        return 0, 0, 1
    first, last = int(positions[0]), int(positions[-1])
    gaps = np.unique(np.diff(positions))
    if len(gaps) <= 1:
        step = int(gaps[0]) if len(gaps) else 1
        end = last + (1 if step > 0 else -1)
        return first, end if end >= 0 else np.iinfo(np.int32).min, step
    node = refit.node
    graph = node.graph
    if not isinstance(graph, ir.Graph):
        raise ValueError(f"{refit.op.label} belongs to no graph")
    name = f"{node.name or node.outputs[0].name}/positions"
    constant = edit.add_initializer(graph, name, positions, ir.DataType.INT64)
    edit.insert_before(node, 0, "Gather", [constant])
    taken = node.inputs[0]
    gather = None if taken is None else taken.producer()
    if gather is not None:
        gather.attributes["axis"] = ir.AttrInt64("axis", dim)
    return 0, len(positions), 1


RULES: dict[Key, Rule] = table(Rule(_slice, _refit_slice), "Slice")
