"""Which units contribute nothing, or always the same."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from onnxprune.graph.axes import Axis, Bools, Index
from onnxprune.graph.build import AxisGraph
from onnxprune.graph.groups import Group
from onnxprune.graph.relations import Sink
from onnxprune.inspection.removable import live_positions
from onnxprune.slimming.follow import is_padded
from onnxprune.slimming.known import Array, Constants


@dataclass(frozen=True, eq=False)
class Found:
    """The units of one group, by what they contribute.

    Attributes
    ----------
    zero
        Every consumer gets zero of them: its weights are zero, or what they carry is.
    constant
        Further ones of which every consumer gets the same for all inputs, and can have it in its bias.
    left
        By reason, how many others carry a constant that some consumer cannot take.
    """

    zero: Bools
    constant: Bools
    left: dict[str, int]


class UnitFinder:
    """Looks at groups of one model; what all groups share is looked up once.

    Parameters
    ----------
    axis_graph
        Of the model; not mutated.
    constants
        What is known of its activations.
    """

    def __init__(self, axis_graph: AxisGraph, constants: Constants) -> None:
        self.graph, self.constants = axis_graph, constants
        self._live: dict[Axis, Bools | None] = {}

    def sinks(self, group: Group) -> Iterator[tuple[Sink, Index, Index | None]]:
        """Where units of a group are summed over: their positions there, and those on the weight."""
        units = {use.axis: use.unit for use in group.axes}
        for sink in (*self.graph.sinks, *self.graph.isolated):
            if sink.axis in units:
                yield sink, units[sink.axis], None if sink.parameter is None else units.get(sink.parameter)

    def find(self, group: Group) -> Found:
        """Sort the units of a group."""
        zero = constant = None
        why = np.full(group.units, "", object)
        for sink, unit, on_weight in self.sinks(group):
            idle = self.idle(group, sink, on_weight)
            known = self.constants.along(sink.axis.value, sink.axis.dim)
            value, same = known if known is not None else (np.zeros(len(unit)), np.zeros(len(unit), bool))
            nothing = idle | _all(group, unit, same & (value == 0))
            fixed = _all(group, unit, same)
            reason = refusal(sink, self.constants) or ("" if self.only_read(sink) else _SHARED)
            why[fixed & ~nothing & (why == "")] = reason
            takes = nothing | (fixed if not reason else False)
            zero = nothing if zero is None else zero & nothing
            constant = takes if constant is None else constant & takes
            live = ~(nothing | fixed)
            why[live] = "-"
        if zero is None or constant is None:
            none = np.zeros(group.units, bool)
            return Found(none, none, {})
        reasons = [str(each) for each in why[~zero & ~constant] if each not in ("", "-")]
        return Found(zero, constant & ~zero, {each: reasons.count(each) for each in dict.fromkeys(reasons)})

    def idle(self, group: Group, sink: Sink, on_weight: Index | None) -> Bools:
        """Units that a sink multiplies by nothing but zeros."""
        live = None if sink.parameter is None or on_weight is None else self._positions(sink.parameter)
        if live is None or on_weight is None:
            return np.zeros(group.units, bool)
        return _all(group, on_weight, ~live)

    def only_read(self, sink: Sink) -> bool:
        """Whether a sink's weight makes no unit elsewhere (a table of embeddings that projects them, too)."""
        if sink.parameter is None:
            return False
        value = sink.parameter.value
        readers = {s.where.node for s in self.graph.sinks if s.parameter == sink.parameter}
        return all(user in readers for user, _ in value.uses()) and not value.is_graph_output()

    def _positions(self, axis: Axis) -> Bools | None:
        """Positions of a weight's axis that have a number other than zero; None: nobody knows."""
        if axis not in self._live:
            array = self.constants.array(axis.value)
            blocked = self.graph.blocked.get(axis)
            self._live[axis] = None if array is None else live_positions(array != 0, axis.dim, blocked)
        return self._live[axis]


_SHARED = "the weight that reads it has other uses"


def _all(group: Group, unit: Index, flags: Bools) -> Bools:
    """Units all of whose positions are flagged."""
    found: Bools = np.ones(group.units, bool)
    found[unit[~flags & (unit >= 0)]] = False
    return found


def refusal(sink: Sink, constants: Constants) -> str:
    """Why the operator at a sink cannot have a constant of its input in its bias; empty where it can."""
    op = sink.where
    kind = op.node.op_type
    if sink.parameter is None:
        return f"{kind} multiplies it with another activation, or sums it"
    weight = constants.array(op.input(1)) if len(op.node.inputs) > 1 else None
    if kind not in ("Conv", "Gemm", "MatMul") or op.node.domain not in ("", "ai.onnx"):
        return f"{kind} has no bias that a constant can be added to"
    if weight is None or sink.slot != 0 or (kind != "Conv" and weight.ndim != 2):
        return f"the weight of this {kind} is on the left, a stack of matrices, or may be fed"
    if kind == "Conv" and is_padded(op):
        return "the convolution that reads it is padded, so outputs at the border do not see it"
    if kind == "Gemm" and (op.int("transA", 0) or op.node.attributes.get_float("beta", 1.0) == 0):
        return "this Gemm has its input transposed or its bias switched off"
    if kind != "MatMul" and op.has(2):
        bias = constants.array(op.input(2))
        if bias is None or bias.size not in (1, _rows(kind, op.int("transB", 0), weight)):
            return f"the bias of this {kind} is no vector of constants"
    return ""


def _rows(kind: str, transposed: int, weight: Array) -> int:
    return int(weight.shape[0] if kind == "Conv" or transposed else weight.shape[1])
