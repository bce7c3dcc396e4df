"""Given and last states of recurrent layers, in a form that ties no layer to another.

Exporters make one tensor of zeros for the first states of all layers and cut it into slices, and join the last
states of all layers before one of them is read. Both would make one unit of position j of all layers, although
zeros are what a layer begins with anyway, and the other layers' states are thrown away.

Specification: https://onnx.ai/onnx/operators/onnx__LSTM.html ("if not specified - assumed to be 0")
"""

from __future__ import annotations

from collections.abc import Collection
from itertools import accumulate

import numpy as np
import onnx_ir as ir

from onnxprune.model import edit

_NAMED = "onnxprune.states"
_RECURRENT = frozenset({"LSTM", "GRU", "RNN"})
_FIRST_STATES = (5, 6)
_MOVES = frozenset(
    {
        *("Expand", "Gather", "Identity", "Reshape", "Slice", "Squeeze", "Tile", "Transpose", "Unsqueeze"),
        *("Cast", "CastLike", "Split"),
    }
)
"""Operators of which every output is zero where their first input is."""
_LARGEST = 1 << 24
"""Elements of an initializer that is looked at."""


def plain_states(graph: ir.Graph, listed: Collection[str]) -> None:
    """Leave out first states of zeros, and read last states where they are made.

    An initializer of zeros stays where it is read first, by the names of nodes: it is a part of the file.

    Parameters
    ----------
    graph
        Mutated. Constants are initializers. Nodes that are not needed any more stay, without users.
    listed
        Names of initializers that callers may feed, so that nothing is known about them.
    """
    zero: dict[ir.Value, bool] = {}
    for node in graph:
        if is_recurrent(node):
            for slot in _FIRST_STATES:
                state = node.inputs[slot] if slot < len(node.inputs) else None
                if state is None or not _is_zero(state, listed, zero):
                    continue
                if state.producer() is not None or (node, slot) != _first(state):
                    node.replace_input_with(slot, None)
            while node.inputs and node.inputs[-1] is None:
                node.resize_inputs(len(node.inputs) - 1)
        elif node.op_type == "Concat" and not node.domain:
            _read_parts(graph, node)


def name_states(graph: ir.Graph) -> None:
    """Let recurrent layers put out the states of all steps, where they only put out the last ones.

    What R multiplies is seen in no other value.

    Parameters
    ----------
    graph
        The main graph; mutated. `unname_states` takes it back.
    """
    for node in graph:
        if is_recurrent(node) and node.outputs and not node.outputs[0].name:
            node.outputs[0].name = edit.fresh(graph, f"{node.name or node.op_type}/states")
            node.meta[_NAMED] = True


def unname_states(graph: ir.Graph) -> None:
    """Leave outputs that `name_states` added out again, where nothing uses them."""
    for node in graph:
        states = node.outputs[0] if node.meta.pop(_NAMED, False) else None
        if states is not None and not states.uses() and not states.is_graph_output():
            states.name, states.type, states.shape = "", None, None


def _first(value: ir.Value) -> tuple[ir.Node, int]:
    """The first use of an initializer; it was the same before other uses were taken away."""
    use = min(value.uses(), key=lambda use: (use.node.name or "", use.idx))
    return use.node, use.idx


def is_recurrent(node: ir.Node) -> bool:
    """Whether a node is an LSTM, a GRU or an RNN of the standard."""
    return node.op_type in _RECURRENT and not node.domain


def _is_zero(value: ir.Value, listed: Collection[str], known: dict[ir.Value, bool]) -> bool:
    """Whether a tensor holds nothing but zeros, whatever the inputs."""
    if value in known:
        return known[value]
    node, data = value.producer(), value.const_value
    found = False
    if node is None:
        fixed = value.is_initializer() and not value.is_graph_input() and value.name not in listed
        found = fixed and data is not None and data.size <= _LARGEST and not np.any(data.numpy())
    elif not node.domain and node.op_type == "ConstantOfShape":
        filled = node.attributes.get("value")
        found = filled is None or not np.any(filled.as_tensor().numpy())
    elif not node.domain and node.op_type in _MOVES and node.inputs[0] is not None:
        found = _is_zero(node.inputs[0], listed, known)
    elif not node.domain and node.op_type == "Concat":
        found = all(part is not None and _is_zero(part, listed, known) for part in node.inputs)
    known[value] = found
    return found


# --- last states -----------------------------------------------------------------------------------------


def _read_parts(graph: ir.Graph, concat: ir.Node) -> None:
    """Let Gather and Slice that take states of one layer out of a Concat of several take them from that layer."""
    sizes = [_directions(part) for part in concat.inputs]
    axis = concat.attributes.get("axis")
    if None in sizes or axis is None or axis.as_int() != 0:
        return
    ends = list(accumulate(size or 0 for size in sizes))
    for user, slot in tuple(concat.outputs[0].uses()):
        if slot != 0 or user.graph is not graph or user.domain:
            continue
        span = {"Gather": _gathered, "Slice": _sliced}.get(user.op_type, lambda _node, _extent: None)(
            user, ends[-1]
        )
        inside = [number for number, end in enumerate(ends) if span is not None and span[1] <= end]
        start = 0 if not inside else ends[inside[0]] - (sizes[inside[0]] or 0)
        if span is None or not inside or span[0] < start:
            continue
        user.replace_input_with(0, concat.inputs[inside[0]])
        for slot, bound in zip((1, 2), span if user.op_type == "Slice" else span[:1], strict=False):
            _renumber(graph, user, slot, bound - start)


def _directions(value: ir.Value | None) -> int | None:
    """Extent of the leading axis of a layer's last state; None for other values."""
    node = None if value is None else value.producer()
    if node is None or not is_recurrent(node) or value is node.outputs[0]:
        return None
    layout, way = node.attributes.get("layout"), node.attributes.get("direction")
    if layout is not None and layout.as_int():
        return None
    return 2 if way is not None and way.as_string() == "bidirectional" else 1


def _gathered(node: ir.Node, extent: int) -> tuple[int, int] | None:
    """First and last + 1 of what a Gather takes along axis 0, where that is one entry."""
    axis, index = node.attributes.get("axis"), _constant(node, 1)
    if (axis is not None and axis.as_int() != 0) or index is None or index.size != 1:
        return None
    place = int(index.ravel()[0])
    place += extent if place < 0 else 0
    return place, place + 1


def _sliced(node: ir.Node, extent: int) -> tuple[int, int] | None:
    """First and last + 1 of what a Slice takes along axis 0, where it slices nothing else."""
    given = [_constant(node, slot) for slot in range(1, len(node.inputs))]
    if not 3 <= len(given) <= 4 or any(bound is None or bound.shape != (1,) for bound in given):
        return None
    start, end, axis, *step = (int(bound[0]) for bound in given if bound is not None)
    if axis != 0 or step not in ([], [1]):
        return None
    first, last, _ = slice(start, end).indices(extent)
    return (first, last) if first < last else None


def _constant(node: ir.Node, slot: int) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]] | None:
    value = node.inputs[slot] if slot < len(node.inputs) else None
    if value is None or value.const_value is None or value.is_graph_input():
        return None
    return np.asarray(value.const_value.numpy(), np.int64)


def _renumber(graph: ir.Graph, node: ir.Node, slot: int, number: int) -> None:
    old = node.inputs[slot]
    if old is None or old.const_value is None:
        return
    data = old.const_value
    array = np.full(data.shape.numpy(), number, data.dtype.numpy())
    node.replace_input_with(slot, edit.add_initializer(graph, str(old.name), array, data.dtype))
