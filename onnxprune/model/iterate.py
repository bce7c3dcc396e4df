"""Extents of what bodies make: of the branches of an If, of the bodies of Loop and Scan in any iteration.

A body is walked like the graph around it, with the extents of its inputs given by its owner. What a Loop or a Scan
carries from one iteration to the next has an extent only where no iteration changes it: the body is walked again,
with less known of its inputs, until what comes out agrees with what went in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from onnxprune.model.counted import count_runs
from onnxprune.model.inferred import Dims, Inferred, agreed, declared, fill_type
from onnxprune.model.nested import bodies_of, every_node

Visit = Callable[[ir.Graph], None]
"""Walks a body: adds what it makes to the extents and the data."""

ROUNDS = 16
"""Walks of one body after which nothing is taken for known of what it carries."""


def is_if(node: ir.Node) -> bool:
    """Whether a node chooses between two graphs."""
    return node.op_type == "If" and node.domain in ("", "ai.onnx")


def is_loop(node: ir.Node) -> bool:
    """Whether a node repeats its body."""
    return node.op_type == "Loop" and node.domain in ("", "ai.onnx")


def is_scan(node: ir.Node, version: int) -> bool:
    """Whether a node goes along axes of its inputs; before opset 9 a Scan has other inputs, and a batch."""
    return node.op_type == "Scan" and node.domain in ("", "ai.onnx") and version >= 9


def branches_of(node: ir.Node) -> list[ir.Graph]:
    """The two graphs of an If: what it does where its condition holds comes first."""
    return [node.attributes[name].as_graph() for name in ("then_branch", "else_branch")]


def taken_branch(node: ir.Node, data: Mapping[ir.Value, np.ndarray]) -> ir.Graph | None:
    """The branch that an If takes, where its condition is known; None for other nodes, too."""
    condition = data.get(node.inputs[0]) if is_if(node) and node.inputs[0] is not None else None
    if condition is None or condition.size != 1:
        return None
    return branches_of(node)[0 if bool(condition.ravel()[0]) else 1]


def infer_bodies(
    node: ir.Node,
    version: int,
    visit: Visit,
    dims: dict[ir.Value, Dims],
    data: dict[ir.Value, np.ndarray],
    sizes: Mapping[str, int],
) -> list[Inferred]:
    """Walk the bodies of a node; extents and element types of its outputs.

    Of an If whose condition is known, those of the branch that it takes; else what both branches agree on.

    Parameters
    ----------
    node
        With bodies; nothing is said of the outputs of operators other than If, Loop and Scan.
    version
        Of the operator's domain.
    dims, data
        Known so far; what the bodies make is added.
    sizes
        Of symbolic dims.
    """
    walk = _Walk(node, visit, dims, data, sizes)
    if is_if(node):
        made = []
        for body in branches_of(node):
            walk.once(body, [])
            made.append([walk.known(value) for value in body.outputs])
        taken = taken_branch(node, data)
        if taken is None:
            return [agreed(*pair) for pair in zip(*made, strict=True)]
        for output, value in zip(node.outputs, taken.outputs, strict=True):
            if value in data:
                data[output] = data[value]
        return made[branches_of(node).index(taken)]
    if is_loop(node):
        return walk.loop()
    if is_scan(node, version):
        return walk.scan()
    for body in bodies_of(node):
        walk.once(body, [])
    return [(None, None)] * len(node.outputs)


class _Walk:
    def __init__(
        self,
        node: ir.Node,
        visit: Visit,
        dims: dict[ir.Value, Dims],
        data: dict[ir.Value, np.ndarray],
        sizes: Mapping[str, int],
    ) -> None:
        self._node, self._visit, self._dims, self._data, self._sizes = node, visit, dims, data, sizes

    def known(self, value: ir.Value | None) -> Inferred:
        """Nothing is known of sequences and optional values: they are no tensors."""
        if value is None or not isinstance(value.type, ir.TensorType | None):
            return None, None
        return self._dims.get(value), value.dtype

    def once(self, body: ir.Graph, given: Sequence[Inferred]) -> None:
        """Walk a body whose first inputs have the given extents, the others those that the file states."""
        unknown: Sequence[Inferred] = [(None, None)] * (len(body.inputs) - len(given))
        for node in every_node(body):  # an earlier walk may have known more
            for value in node.outputs:
                self._dims.pop(value, None)
                self._data.pop(value, None)
        for value, (extents, dtype) in zip(body.inputs, [*given, *unknown], strict=True):
            fill_type(value, dtype)
            extents = declared(value, self._sizes) if extents is None else extents
            if extents is None or not isinstance(value.type, ir.TensorType | None):
                self._dims.pop(value, None)
            else:
                self._dims[value] = extents
        self._visit(body)

    def loop(self) -> list[Inferred]:
        (body,) = bodies_of(self._node)
        count = len(body.inputs) - 2
        carried = [self.known(value) for value in [*self._node.inputs[2:], *[None] * count][:count]]
        counters: list[Inferred] = [((), ir.DataType.INT64), ((), ir.DataType.BOOL)]
        for value, scalar in zip(body.inputs[:2], range(2), strict=True):
            stated = declared(value, self._sizes)
            if stated is not None:
                counters[scalar] = (stated, counters[scalar][1])
        carried = self._settle(body, carried, counters, [], 1)
        length = trip_count(self._node, self._data)
        rows = [self.known(value) for value in body.outputs[1 + count :]]
        return [*carried, *((None if d is None else (length, *d), t) for d, t in rows)]

    def scan(self) -> list[Inferred]:
        node, (body,) = self._node, bodies_of(self._node)
        form = ScanForm.of(node)
        carried = [self.known(value) for value in node.inputs[: form.states]]
        slices: list[Inferred] = []
        length: int | None = None
        for value, axis in zip(node.inputs[form.states :], form.input_axes, strict=True):
            extents, dtype = self.known(value)
            if extents is None or not -len(extents) <= axis < len(extents):
                slices.append((None, dtype))
                continue
            axis %= len(extents)
            length = extents[axis] if length is None else length
            slices.append((extents[:axis] + extents[axis + 1 :], dtype))
        carried = self._settle(body, carried, [], slices, 0)
        made = list(carried)
        for value, axis in zip(body.outputs[form.states :], form.output_axes, strict=True):
            extents, dtype = self.known(value)
            if extents is None or not -len(extents) - 1 <= axis <= len(extents):
                made.append((None, dtype))
                continue
            axis %= len(extents) + 1
            made.append(((*extents[:axis], length, *extents[axis:]), dtype))
        return made

    def _settle(
        self,
        body: ir.Graph,
        carried: list[Inferred],
        before: Sequence[Inferred],
        behind: Sequence[Inferred],
        first: int,
    ) -> list[Inferred]:
        """Walk a body until what it carries comes out with the extents that it went in with.

        `first` is the number of the first output that is carried on.
        """
        for _ in range(ROUNDS):
            self.once(body, [*before, *carried, *behind])
            made = [self.known(value) for value in body.outputs[first : first + len(carried)]]
            joined = [
                (a[0], a[1] or b[1]) if a[0] == b[0] else agreed(a, b)
                for a, b in zip(carried, made, strict=True)
            ]
            if [extents for extents, _ in joined] == [extents for extents, _ in carried]:
                return joined
            carried = joined
        carried = [(None, dtype) for _, dtype in carried]
        self.once(body, [*before, *carried, *behind])
        return carried


class ScanForm:
    """Which inputs and outputs of a Scan (opset 9 and newer) are states, and along which axes it goes.

    Attributes
    ----------
    states
        Number of state variables: the first inputs and outputs.
    input_axes, output_axes
        One per scanned input and output, as the file states them: negative ones count from the end.
    """

    def __init__(self, states: int, input_axes: Sequence[int], output_axes: Sequence[int]) -> None:
        self.states, self.input_axes, self.output_axes = states, tuple(input_axes), tuple(output_axes)

    @classmethod
    def of(cls, node: ir.Node) -> ScanForm:
        """What a node says about itself."""
        scanned = int(node.attributes["num_scan_inputs"].as_int())
        states = len(node.inputs) - scanned
        return cls(
            states,
            _axes(node, "scan_input_axes", scanned),
            _axes(node, "scan_output_axes", len(node.outputs) - states),
        )


def _axes(node: ir.Node, name: str, count: int) -> list[int]:
    attribute = node.attributes.get(name)
    return [0] * count if attribute is None else [int(axis) for axis in attribute.as_ints()]


def trip_count(node: ir.Node, data: Mapping[ir.Value, np.ndarray]) -> int | None:
    """How often a Loop runs, where that is a known number; one that may stop before has none, unless it counts."""
    count = _stated(node, data)
    return count_runs(node, data) if count is None else count


def _stated(node: ir.Node, data: Mapping[ir.Value, np.ndarray]) -> int | None:
    """How often a Loop runs that has a number of runs and no other end."""
    trip, start = (*node.inputs[:2], None, None)[:2]
    count = None if trip is None else data.get(trip)
    (body,) = bodies_of(node)
    if count is None or count.size != 1 or not (start is None or _holds(start, data)):
        return None
    goes_on, kept = body.outputs[0], body.inputs[1]
    while goes_on is not kept and not _holds(goes_on, data):
        producer = goes_on.producer()
        if producer is None or producer.op_type != "Identity" or producer.inputs[0] is None:
            return None
        goes_on = producer.inputs[0]
    return max(int(count.ravel()[0]), 0)


def _holds(value: ir.Value, data: Mapping[ir.Value, np.ndarray]) -> bool:
    known = data.get(value)
    return known is not None and known.size == 1 and bool(known.ravel()[0])
