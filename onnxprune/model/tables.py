"""Tables of positions that are computed from fixed extents, as the constants that they are.

TorchScript exports `y[:, :, a:b] = x` as a ScatterND whose table is computed by some forty nodes from the shapes of
y and x. Where no symbolic dim is among them, the table is the same in every run. It is made once and for all (that
stays so), and the rule of ScatterND reads it.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.model import edit
from onnxprune.model.branches import is_fixed
from onnxprune.model.fold import evaluate
from onnxprune.model.origin import remember
from onnxprune.model.shapes import Shapes

LIMIT = 1 << 16
"""Entries of a table, and of what it is made of, above which it stays computed: the file would grow too much."""

_READERS = {"ScatterND": 1}
"""Operators, and the slot of their table."""

Array = np.ndarray[Any, Any]


def fold_tables(model: ir.Model, shapes: Shapes) -> bool:
    """Replace computed tables that are the same in every run by initializers.

    Parameters
    ----------
    model
        Normalised. Mutated: nodes that are not needed any more are dropped.
    shapes
        Of `model`. Nothing is known of what was replaced: infer them again.

    Returns
    -------
    bool
        Whether there were any.
    """
    if shapes.bindings and not shapes.other:  # nothing tells which values depend on the symbolic dims
        return False
    graph = model.graph
    known: dict[ir.Value, Array | None] = {}
    tables = [
        node.inputs[_READERS[node.op_type]]
        for node in graph
        if node.op_type in _READERS and node.domain in ("", "ai.onnx")
    ]
    found = {
        value: array
        for value in tables
        if value is not None
        and value.const_value is None
        and (array := _value(value, shapes, known)) is not None
    }
    for value, array in found.items():
        data = edit.tensor(array, ir.DataType.from_numpy(array.dtype), value.name)
        edit.replace_by_initializer(graph, value, data)
    if found:
        edit.drop_unused(graph, keep=remember(graph).idle)
    return bool(found)


def _value(value: ir.Value, shapes: Shapes, known: dict[ir.Value, Array | None]) -> Array | None:
    """The value of a tensor that no input of the model changes; None for any other."""
    waiting = [value]
    while waiting:
        here = waiting[-1]
        if here in known:
            waiting.pop()
            continue
        node = None if here in shapes.data else here.producer()
        sources = [] if node is None else [source for source in node.inputs if source is not None]
        behind = [source for source in sources if source not in known]
        if behind and _is_small(here, shapes):
            waiting += behind
            continue
        known[here] = _made(here, sources, shapes, known)
        waiting.pop()
    return known[value]


def _is_small(value: ir.Value, shapes: Shapes) -> bool:
    """Whether a tensor has integers or flags, fixed extents and few entries."""
    extents = shapes.dims.get(value)
    dtype = value.dtype
    return (
        extents is not None
        and None not in extents
        and math.prod(extent or 0 for extent in extents) <= LIMIT
        and not any((value, dim) in shapes.dynamic for dim in range(len(extents)))
        and dtype is not None
        and (dtype.is_integer() or dtype == ir.DataType.BOOL)
    )


def _made(
    value: ir.Value, sources: list[ir.Value], shapes: Shapes, known: dict[ir.Value, Array | None]
) -> Array | None:
    if not _is_small(value, shapes):
        return None
    if value in shapes.data:
        return shapes.data[value] if is_fixed(value, shapes) else None
    node = value.producer()
    if node is None:
        return None if value.const_value is None else value.const_value.numpy()
    data = {source: array for source in sources if (array := known[source]) is not None}
    return evaluate(node, shapes.dims, data)
