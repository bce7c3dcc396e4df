"""Which layers of a cut model are repaired, and what each of them is to reach."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from onnxprune.graph.axes import Axis, Bools, Index, Kept
from onnxprune.graph.build import AxisGraph
from onnxprune.model.nested import every_node
from onnxprune.model.states import is_recurrent
from onnxprune.model.taps import View, decides, nodes_around, owners, reached
from onnxprune.model.uses import only_use
from onnxprune.repair.flat import Flat, flat_behind
from onnxprune.repair.gates import SHARED, gates_to_repair, outputs_left
from onnxprune.rules.op import Op
from onnxprune.statistics.consumers import SHAPE_ONLY, read_back
from onnxprune.statistics.gates import Gates, W, gates_of
from onnxprune.statistics.norms import LinearMap, Norm, linear_map_of
from onnxprune.statistics.piecewise import Piecewise
from onnxprune.statistics.views import is_inside, view_of, why_unseen


@dataclass(frozen=True)
class Pair:
    """A layer in the cut model and in the original.

    Attributes
    ----------
    lost
        Whether it lost inputs; else it only sees what such layers made of theirs.
    """

    student: LinearMap
    teacher: LinearMap
    lost: bool

    @property
    def node(self) -> ir.Node:
        """The layer of the cut model."""
        return self.student.node

    def as_it_is(self) -> Pair:
        """The same with the layer as it is now: what it sees may have got a bias since."""
        if isinstance(self.student, Gates):
            slot = self.student.slot
            found: LinearMap | str = next(g for g in gates_of(self.node) if g.slot == slot)
        else:
            found = linear_map_of(self.node)
        return self if isinstance(found, str) else replace(self, student=found)


@dataclass(frozen=True)
class Target:
    """What a layer is to reach.

    Attributes
    ----------
    pair
        The layer.
    value
        The original's value that the layer's output, plus `skip`, is to be close to; of the products of recurrent
        layers, which are inside a node, what they are made of.
    skip
        The other addend, a value of the cut model that does not depend on the layer; None: there is none.
    kept
        Channels of `value` that are left; None: all.
    flat
        Where the activation that alone sees `value` does not tell numbers apart; None: there is none.
    circular
        Whether what the layer sees depends on what it made in an earlier run of the body that it is in. Then there
        is nothing to run before it is repaired, and it is fitted on the original's inputs.
    inputs
        Of a circular layer, (groups, features): which of the original's features (groups x taps x columns) are
        left; None: all.
    """

    pair: Pair
    value: ir.Value
    skip: ir.Value | None
    kept: Bools | None
    flat: Flat | None = None
    circular: bool = False
    inputs: Index | None = None

    @property
    def needs(self) -> list[View]:
        """What has to be there of the cut model before the layer can be repaired."""
        layer = self.pair.student
        values = [] if self.circular else [layer.x, *([] if self.skip is None else [self.skip])]
        return [view_of(layer, value) for value in values]


UNDECIDED = "how often the body runs that it is in depends on layers that lost inputs"

WIDEST = 4 << 30
"""Bytes that the moments of one layer's inputs and outputs may take."""

TOO_WIDE = (
    f"it has so many inputs and outputs that statistics of all of them would take more than {WIDEST >> 30} GB"
)


def layers_to_repair(axis_graph: AxisGraph, cut: ir.Model, kept: Kept) -> tuple[list[Pair], dict[str, str]]:
    """Layers that lost inputs and all behind them, and by name why others that lost inputs are left as they are.

    In topological order. A layer that lost nothing still sees inputs that are not what they were. Only a
    BatchNormalization right behind a layer of these has nothing left to correct: that layer's own weight and bias
    can do whatever scale and shift could.
    """
    made = {str(out.name): node for node in every_node(cut.graph) for out in node.outputs}
    lost = {sink.where.node: sink for sink in axis_graph.sinks if sink.axis in kept}
    pairs: list[Pair] = []
    left: dict[str, str] = {}
    behind = reached(axis_graph.model.graph, lost)
    refitted: set[ir.Value] = set()
    for op in axis_graph.ops:
        mine = op.node in lost
        if not mine and not any(value in behind for value in op.node.inputs):
            continue
        if why := undecided(axis_graph, op.node, behind):
            left |= {op.node.name or op.node.op_type: why} if mine else {}
            continue
        if mine and lost[op.node].parameter is None:
            continue
        if is_recurrent(op.node):
            pair, why = _input_gates(op, made, kept, behind)
            pair, why = _seen(axis_graph, pair, why)
            if pair is not None:
                pairs.append(pair)
            elif why:
                left[op.node.name or op.node.op_type] = why
            continue
        known = axis_graph.shapes.dims.keys()
        if not mine and not known >= {*filter(None, op.node.inputs), op.output()}:
            continue  # behind an operator that says nothing about shapes
        pair, why = _linear(op, made, mine, refitted)
        pair, why = _seen(axis_graph, pair, why)
        if pair is not None:
            pairs.append(pair)
            refitted.add(pair.teacher.y)
        elif why:
            left[op.node.name or op.node.op_type] = why
    return pairs, left


def undecided(axis_graph: AxisGraph, node: ir.Node, behind: Collection[ir.Value]) -> str:
    """Why original and cut model would not show the same runs of a body, or none at all; "" where they do.

    `behind` are the values that depend on layers that lost something.
    """
    graph = node.graph
    if graph is axis_graph.model.graph or not isinstance(graph, ir.Graph):
        return ""
    if node in axis_graph.unshown:
        return axis_graph.unshown[node]
    around = nodes_around(graph, owners(axis_graph.model.graph))
    return UNDECIDED if any(value in behind for each in around for value in decides(each)) else ""


def _seen(axis_graph: AxisGraph, pair: Pair | None, why: str) -> tuple[Pair | None, str]:
    """The same, or why no session shows what the layer sees."""
    hidden = "" if pair is None else why_unseen(axis_graph, pair.teacher)
    if pair is None or not hidden:
        return pair, why
    return None, hidden if pair.lost else ""


def _bytes(layer: LinearMap) -> float:
    """What the moments of a layer take: those to fit on, those to choose on, and those of one batch in float32."""
    if isinstance(layer, Norm | Gates):
        return 0.0
    return 20.0 * layer.groups * (layer.columns * layer.taps + layer.outputs / layer.groups) ** 2


def _linear(
    op: Op, made: Mapping[str, ir.Node], mine: bool, refitted: Collection[ir.Value]
) -> tuple[Pair | None, str]:
    """A layer and its counterpart in the cut model, or why it is left as it is where it lost inputs (`mine`)."""
    teacher = linear_map_of(op.node)
    student = linear_map_of(made[str(op.node.outputs[0].name)])
    if isinstance(teacher, str) or isinstance(student, str):
        why = teacher if isinstance(teacher, str) else str(student)
        return None, why if mine and why != SHAPE_ONLY else ""
    if isinstance(teacher, Norm) and teacher.x in refitted:
        return None, ""
    if _bytes(student) > WIDEST:
        return None, TOO_WIDE if mine else ""
    return Pair(student, teacher, mine), ""


def _input_gates(
    op: Op, made: Mapping[str, ir.Node], kept: Kept, behind: Collection[ir.Value]
) -> tuple[Pair | None, str]:
    """What a recurrent layer does with its input, as a layer, or why it is left as it is where it lost features."""
    lost = Axis(op.input(W), 2) in kept
    if not lost and op.input(0) not in behind:
        return None, ""
    found = gates_to_repair(op.node, made[str(op.outputs[0].name)])
    if not isinstance(found, str) and W in found:
        return Pair(*found[W], lost), ""
    return None, "" if not lost else found if isinstance(found, str) else SHARED


def target_of(
    axis_graph: AxisGraph,
    runner: Piecewise,
    kept: Kept,
    pair: Pair,
    waiting: Sequence[ir.Node],
    *,
    circular: bool = False,
) -> Target:
    """What a layer is to reach: the stream that it is added to where that is known by then, else its own output.

    Parameters
    ----------
    runner
        Of the cut model.
    waiting
        Nodes that are still to be repaired: what depends on them is not known yet.
    circular
        Whether the layer is fitted on the original's inputs even if it does not depend on itself.
    """
    layer = pair.student
    circular = circular or (is_inside(layer) and layer.node in runner.ahead([view_of(layer, layer.x)]))
    inputs = _inputs_left(axis_graph, pair.teacher, kept) if circular else None
    if isinstance(pair.teacher, Gates):
        rows = outputs_left(pair.teacher, kept)
        return Target(pair, pair.teacher.x, None, rows, None, circular, inputs)
    value, skip, reached = pair.teacher.y, None, pair.student.y
    added = None if circular else _addend(pair.student)
    if added is not None:
        total, other = added
        ahead = runner.ahead([view_of(layer, other)])
        mine = {str(v.name): v for v in axis_graph.shapes.dims}
        stream = mine.get(str(total.name))
        dims = axis_graph.shapes.dims
        if (
            pair.student.node not in ahead
            and not ahead & set(waiting)
            and stream is not None
            and str(other.name) in mine
            and dims[stream] == dims[pair.teacher.y] == dims[mine[str(other.name)]]
        ):
            value, skip, reached = stream, other, total
    channel = 1 if pair.student.convolves else len(axis_graph.shapes.dims[value]) - 1
    flat = flat_behind(reached)
    return Target(pair, value, skip, kept.get(Axis(value, channel)), flat, circular, inputs)


def _inputs_left(axis_graph: AxisGraph, layer: LinearMap, kept: Kept) -> Index | None:
    """Which of the original's features are left: their places in (groups x taps x columns), one row per group."""
    channel = 1 if layer.convolves else len(axis_graph.shapes.dims[layer.x]) - 1
    flags = kept.get(Axis(layer.x, channel))
    if flags is None:
        return None
    count = layer.groups * layer.taps * layer.columns
    places: Index = np.arange(count).reshape(layer.groups, layer.taps, layer.columns)
    groups = flags.reshape(layer.groups, layer.columns)
    return np.stack([each[:, stay].ravel() for each, stay in zip(places, groups, strict=True) if stay.any()])


def _addend(consumer: LinearMap) -> tuple[ir.Value, ir.Value] | None:
    """The sum that alone uses a layer's output, and its other addend."""
    y = read_back(consumer.y)
    use = only_use(y)
    if use is None or use.node.op_type != "Add" or use.node.graph is not consumer.node.graph:
        return None
    add, slot = use
    other = add.inputs[1 - slot]
    if other is None or other.const_value is not None or other is y:
        return None
    return add.outputs[0], other
