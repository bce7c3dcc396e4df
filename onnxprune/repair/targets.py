"""Which layers of a cut model are repaired, and what each of them is to reach."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from onnxprune.graph.axes import Axis, Bools, Kept
from onnxprune.graph.build import AxisGraph
from onnxprune.model.nested import read_by
from onnxprune.model.states import is_recurrent
from onnxprune.model.uses import only_use
from onnxprune.repair.flat import Flat, flat_behind
from onnxprune.repair.gates import SHARED, gates_to_repair, outputs_left
from onnxprune.rules.op import Op
from onnxprune.statistics.consumers import read_back
from onnxprune.statistics.gates import Gates, W
from onnxprune.statistics.norms import LinearMap, Norm, linear_map_of
from onnxprune.statistics.piecewise import Piecewise


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
    """

    pair: Pair
    value: ir.Value
    skip: ir.Value | None
    kept: Bools | None
    flat: Flat | None = None

    @property
    def needs(self) -> list[ir.Value]:
        """Values of the cut model that have to be there before the layer can be repaired."""
        return [self.pair.student.x, *([] if self.skip is None else [self.skip])]


INSIDE = "it is inside the body of another node, and no session shows what it sees there"

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
    made = {str(out.name): node for node in cut.graph for out in node.outputs}
    lost = {sink.where.node: sink for sink in axis_graph.sinks if sink.axis in kept}
    pairs: list[Pair] = []
    left: dict[str, str] = {}
    behind: set[ir.Value] = set()
    refitted: set[ir.Value] = set()
    for op in axis_graph.ops:
        mine = op.node in lost
        if op in axis_graph.inner_ops:
            if mine:
                left[op.node.name or op.node.op_type] = INSIDE
                behind.update(axis_graph.inner_ops[op].node.outputs)
            continue
        if not mine and not any(value in behind for value in read_by(op.node)):
            continue
        behind.update(op.node.outputs)
        if mine and lost[op.node].parameter is None:
            continue
        if is_recurrent(op.node):
            pair, why = _input_gates(op, made, kept, behind)
            if pair is not None:
                pairs.append(pair)
            elif why:
                left[op.node.name or op.node.op_type] = why
            continue
        known = axis_graph.shapes.dims.keys()
        if not mine and not known >= {*filter(None, op.node.inputs), op.output()}:
            continue  # behind an operator that says nothing about shapes
        pair, why = _linear(op, made, mine, refitted)
        if pair is not None:
            pairs.append(pair)
            refitted.add(pair.teacher.y)
        elif why:
            left[op.node.name or op.node.op_type] = why
    return pairs, left


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
        return None, why if mine else ""
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
    axis_graph: AxisGraph, runner: Piecewise, kept: Kept, pair: Pair, waiting: Sequence[ir.Node]
) -> Target:
    """What a layer is to reach: the stream that it is added to where that is known by then, else its own output.

    Parameters
    ----------
    runner
        Of the cut model.
    waiting
        Nodes that are still to be repaired: what depends on them is not known yet.
    """
    if isinstance(pair.teacher, Gates):
        return Target(pair, pair.teacher.x, None, outputs_left(pair.teacher, kept), None)
    value, skip, reached = pair.teacher.y, None, pair.student.y
    added = _addend(pair.student)
    if added is not None:
        total, other = added
        ahead = runner.ahead([other])
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
    return Target(pair, value, skip, kept.get(Axis(value, channel)), flat_behind(reached))


def _addend(consumer: LinearMap) -> tuple[ir.Value, ir.Value] | None:
    """The sum that alone uses a layer's output, and its other addend."""
    y = read_back(consumer.y)
    use = only_use(y)
    if use is None or use.node.op_type != "Add":
        return None
    add, slot = use
    other = add.inputs[1 - slot]
    if other is None or other.const_value is not None or other is y:
        return None
    return add.outputs[0], other
