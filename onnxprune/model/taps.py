"""Values of bodies as outputs of the main graph: what each run of a body computed, one after the other.

A value is flattened where it is, and handed out level by level:

- an If returns it, or nothing (an empty tensor) where it takes its other branch;
- a Scan returns it as a further scan output, a Loop too, or appends it to what it carries where a run may have
  nothing or more than others (`Concat`, as scan outputs have to be of one shape).

So one flat tensor comes out, of all runs in their order. Every other output stays what it is.

Specification: https://onnx.ai/onnx/operators/onnx__If.html, onnx__Loop.html, onnx__Scan.html.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxprune.model.edit import fresh
from onnxprune.model.iterate import branches_of, is_if, is_loop, is_scan
from onnxprune.model.nested import bodies_of, every_graph, renew
from onnxprune.model.uses import READS_SHAPE

OLD_SCAN = "it is inside a Scan of opset 8, which has a batch of its own"
UNKNOWN_BODY = "it is inside the body of {}, and no session shows what it sees there"
CHOICE_IN_SCAN = "it is inside {} in a Scan, which returns as much of every run"


@dataclass(frozen=True)
class Tap:
    """A value as nodes of a body see it.

    Attributes
    ----------
    value
        Made in the body, an input of it, or something around it.
    body
        How often this one runs counts.
    order
        The value's axes, in the order in which it is flattened; () as they are.
    """

    value: ir.Value
    body: ir.Graph
    order: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """Tells taps of one model apart; the same in its clones."""
        return f"{key_of(self.body)} sees {self.value.name} {self.order or ''}"


View = ir.Value | Tap
"""What a session can show: a value of the main graph, or one of a body."""


def key_of(body: ir.Graph) -> str:
    """Tells bodies of one model apart; the same in its clones. A body returns values of its own only."""
    return str(body.outputs[0].name)


def owners(graph: ir.Graph) -> dict[ir.Graph, ir.Node]:
    """For every body in a graph the node that it is of."""
    return {body: node for part in every_graph(graph) for node in part for body in bodies_of(node)}


def nodes_around(body: ir.Graph, known: Mapping[ir.Graph, ir.Node]) -> list[ir.Node]:
    """The node that a body is of, the one around that, and so on to the main graph."""
    found: list[ir.Node] = []
    inner: object = body
    while isinstance(inner, ir.Graph) and inner in known:
        found.append(known[inner])
        inner = known[inner].graph
    return found


def unshown(node: ir.Node, known: Mapping[ir.Graph, ir.Node], opsets: Mapping[str, int]) -> str:
    """Why nothing can be shown of what a node of a body sees; "" where it can."""
    choice = ""
    around = nodes_around(node.graph, known) if isinstance(node.graph, ir.Graph) else []
    for owner in around:
        if owner.op_type == "Scan" and not is_scan(owner, opsets.get(owner.domain, 0)):
            return OLD_SCAN
        if not (is_if(owner) or is_loop(owner) or owner.op_type == "Scan"):
            return UNKNOWN_BODY.format(owner.op_type)
        if owner.op_type == "Scan" and choice:
            return CHOICE_IN_SCAN.format(choice)
        if not choice and owner.op_type != "Scan":
            choice = "an If" if is_if(owner) else "a Loop"
    return ""


def sources(graph: ir.Graph) -> dict[ir.Value, list[ir.Value]]:
    """What the inputs of all bodies are made of: inputs of the node around, and what its last run returned."""
    found: dict[ir.Value, list[ir.Value]] = {}
    for body, node in owners(graph).items():
        given = [value for value in node.inputs if value is not None]
        for slot, value in enumerate(body.inputs):
            if is_loop(node):
                start = node.inputs[slot] if slot < len(node.inputs) else None
                back = body.outputs[slot - 1] if slot else None
                found[value] = [each for each in (start, back) if each is not None]
            elif node.op_type == "Scan" and not (node.inputs and node.inputs[0] is None):
                states = len(node.inputs) - int(node.attributes["num_scan_inputs"].as_int())
                begin = node.inputs[slot]
                every = [begin, body.outputs[slot] if slot < states else None]
                found[value] = [each for each in every if each is not None]
            else:
                found[value] = [*given, *body.outputs]
    return found


def decides(node: ir.Node) -> list[ir.Value]:
    """The values that say which body of a node runs, and how often."""
    if is_if(node):
        deciding: list[ir.Value | None] = [node.inputs[0]]
    elif is_loop(node):
        (body,) = bodies_of(node)
        deciding = [*node.inputs[:2], body.outputs[0]]
    else:
        deciding = []
    return [value for value in deciding if value is not None]


def reached(graph: ir.Graph, first: Collection[ir.Node]) -> set[ir.Value]:
    """All values that depend on some nodes, other than by their shapes alone; through bodies, too."""
    made_of = sources(graph)
    order = [node for part in reversed(list(every_graph(graph))) for node in part]
    found: set[ir.Value] = set()
    size = -1
    while size != len(found):
        size = len(found)
        for value, others in made_of.items():
            if any(other in found for other in others):
                found.add(value)
        for node in order:
            given = [*node.inputs, *(out for body in bodies_of(node) for out in body.outputs), *decides(node)]
            touched = node.op_type not in READS_SHAPE and any(value in found for value in given)
            if node in first or touched:
                found.update(node.outputs)
    return found


def add_taps(graph: ir.Graph, taps: Iterable[Tap]) -> dict[str, ir.Value]:
    """Let a graph make flat tensors of values in bodies, by the names of the taps.

    Parameters
    ----------
    graph
        The main graph, mutated: a clone of the one that the taps are of, with the same names.
    taps
        Of values that `unshown` does not exclude.
    """
    wanted = {tap.name: tap for tap in taps}
    if not wanted:
        return {}
    known = owners(graph)
    bodies = {key_of(body): body for body in known}
    values = {str(value.name): value for part in every_graph(graph) for value in _made(part)}
    data = ir.Tensor(np.array([-1], np.int64), name=fresh(graph, "tap/flat"))
    flat = ir.Value(name=data.name, type=ir.TensorType(data.dtype), shape=data.shape, const_value=data)
    graph.register_initializer(flat)
    return {
        name: _Hoist(graph, known, values, flat, tap.value.dtype or ir.DataType.FLOAT).out(
            str(tap.value.name), bodies[key_of(tap.body)], tap.order
        )
        for name, tap in wanted.items()
    }


def _made(graph: ir.Graph) -> list[ir.Value]:
    return [*graph.inputs, *graph.initializers.values(), *(out for node in graph for out in node.outputs)]


@dataclass(frozen=True)
class _Hoist:
    """One value on its way out.

    Attributes
    ----------
    known, values
        The nodes that bodies are of, and values by name: loops may be made once more.
    flat
        The target of a Reshape.
    """

    main: ir.Graph
    known: dict[ir.Graph, ir.Node]
    values: dict[str, ir.Value]
    flat: ir.Value
    dtype: ir.DataType

    def out(self, name: str, body: ir.Graph, order: tuple[int, ...]) -> ir.Value:
        """Hand a value out of a body and all that it is in."""
        value = self.values[name]
        if order:
            value = self._node(body, None, "Transpose", [value], {"perm": list(order)})
        value = self._node(body, None, "Reshape", [value, self.flat])
        alike = True
        while body is not self.main:
            node = self.known[body]
            if is_if(node):
                value, alike = self._choice(node, body, value), False
            elif is_loop(node) and not alike:
                value = self._carry(node, body, value)
            else:
                value = self._stack(node, body, value)
                alike = alike and not is_loop(node)
            graph = value.graph
            if not isinstance(graph, ir.Graph):
                raise ValueError(f"{node.name!r} belongs to no graph")
            body = graph
        return value

    def _choice(self, node: ir.Node, body: ir.Graph, value: ir.Value) -> ir.Value:
        """An If's: the value, or nothing."""
        for branch in branches_of(node):
            branch.outputs.append(value if branch is body else self._nothing(branch))
        return self._more(node)

    def _stack(self, node: ir.Node, body: ir.Graph, value: ir.Value) -> ir.Value:
        """A Loop's or a Scan's: the value of all runs, which are of one size."""
        body.outputs.append(value)
        for name in ("scan_output_axes", "scan_output_directions"):
            attribute = node.attributes.get(name)
            if attribute is not None:
                node.attributes.add(ir.AttrInt64s(name, [*attribute.as_ints(), 0]))
        graph = node.graph
        if not isinstance(graph, ir.Graph):
            raise ValueError(f"{node.name!r} belongs to no graph")
        return self._node(graph, node, "Reshape", [self._more(node, 2), self.flat])

    def _carry(self, node: ir.Node, body: ir.Graph, value: ir.Value) -> ir.Value:
        """A Loop's: the values of all runs, of any size."""
        graph = node.graph
        if not isinstance(graph, ir.Graph):
            raise ValueError(f"{node.name!r} belongs to no graph")
        carried = len(body.inputs) - 2
        so_far = self._typed(ir.Value(name=fresh(self.main, "tap/so_far")))
        body.inputs.append(so_far)
        body.outputs.insert(1 + carried, self._node(body, None, "Concat", [so_far, value], {"axis": 0}))
        start = self._nothing(graph, node)
        given = [*node.inputs, *[None] * (2 + carried - len(node.inputs)), start]
        made = self._typed(ir.Value(name=fresh(self.main, "tap/all")))
        new = renew(node, given, [*node.outputs[:carried], made, *node.outputs[carried:]])
        self.values.update({str(out.name): out for out in new.outputs if out is not made})
        self.known[body] = new
        return self._node(graph, new, "Identity", [made])  # the loop may be made once more

    def _nothing(self, graph: ir.Graph, before: ir.Node | None = None) -> ir.Value:
        """A flat tensor without elements."""
        tensor = ir.Tensor(np.zeros(0, self.dtype.numpy()), dtype=self.dtype)
        return self._node(graph, before, "Constant", [], {"value": tensor}, behind=False)

    def _more(self, node: ir.Node, rank: int = 1) -> ir.Value:
        node.resize_outputs(len(node.outputs) + 1)
        value = node.outputs[-1]
        value.name = fresh(self.main, "tap/out")
        return self._typed(value, rank)

    def _node(
        self,
        graph: ir.Graph,
        beside: ir.Node | None,
        op_type: str,
        inputs: list[ir.Value],
        attributes: Mapping[str, object] | None = None,
        *,
        behind: bool = True,
    ) -> ir.Value:
        """Add a node at the end of a graph, or beside another one; its output."""
        node = ir.node(op_type, inputs, dict(attributes or {}), name=fresh(self.main, f"tap/{op_type}"))  # type: ignore[arg-type]
        (out,) = node.outputs
        out.name = fresh(self.main, "tap")
        if beside is None:
            graph.append(node)
        elif behind:
            beside.append(node)
        else:
            beside.prepend(node)
        return self._typed(out) if op_type != "Transpose" else out

    def _typed(self, value: ir.Value, rank: int = 1) -> ir.Value:
        value.type, value.shape = ir.TensorType(self.dtype), ir.Shape([None] * rank)
        return value
