"""From a model and the rule table to the axis graph."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import networkx as nx
import onnx_ir as ir

from onnxprune.errors import Reason
from onnxprune.graph.axes import Axis, Barrier, Blocked
from onnxprune.graph.dynamic import pin_dynamic
from onnxprune.graph.relations import Average, Balance, Relations, Sink
from onnxprune.model.nested import every_node
from onnxprune.model.shapes import Shapes
from onnxprune.model.taps import owners, unshown
from onnxprune.rules.barriers import barrier_of
from onnxprune.rules.op import Op
from onnxprune.rules.rule import QUANTIZER, RuleTable, domain_of


@dataclass(frozen=True)
class Parameter:
    """An initializer and the first place that uses it.

    Attributes
    ----------
    value
        The initializer.
    kind
        "weight" (criteria score it), "bias", "scale" or "constant".
    op, slot
        The node that uses it, and as which input.
    """

    value: ir.Value
    kind: str
    op: Op
    slot: int


@dataclass(frozen=True)
class AxisGraph:
    """All that is known about which positions depend on which.

    Attributes
    ----------
    graph
        networkx multigraph over `Axis` and `Barrier`.
    extents
        Number of positions per axis node (all blocks together for divided weight axes).
    sinks, balances, blocked
        See `onnxprune.graph.relations`.
    parameters
        Float initializers, by value: all are those of the main graph, whoever uses them.
    ops
        Every node with its rule's view of it, in topological order; those of a body before its owner.
    averages
        Operators that are cut although their result changes with the number of positions; empty unless
        inexact cuts are allowed.
    isolated
        Inputs whose dropped positions are masked although nothing is summed there (see `Relations.isolate`).
    """

    model: ir.Model
    shapes: Shapes
    rules: RuleTable
    graph: nx.MultiGraph[Any]
    extents: Mapping[Axis, int]
    sinks: tuple[Sink, ...]
    balances: tuple[Balance, ...]
    blocked: Mapping[Axis, Blocked]
    parameters: Mapping[ir.Value, Parameter]
    ops: tuple[Op, ...]
    averages: tuple[Average, ...] = ()
    isolated: tuple[Sink, ...] = ()

    @cached_property
    def main_ops(self) -> tuple[Op, ...]:
        """The nodes of the main graph: those whose values a session can show."""
        return tuple(op for op in self.ops if op.node.graph is self.model.graph)

    @cached_property
    def inner_ops(self) -> Mapping[Op, Op]:
        """The nodes of bodies, and the node of the main graph that each is inside of."""
        found: dict[Op, Op] = {}
        inside: list[Op] = []
        for op in self.ops:
            if op.node.graph is self.model.graph:
                found.update(dict.fromkeys(inside, op))
                inside.clear()
            else:
                inside.append(op)
        return found

    @cached_property
    def inner_sinks(self) -> tuple[Sink, ...]:
        """Where nodes of bodies sum over axes."""
        return tuple(sink for sink in self.sinks if sink.where.node.graph is not self.model.graph)

    @cached_property
    def unshown(self) -> Mapping[ir.Node, str]:
        """Nodes of bodies of which no session shows what they see, and why."""
        known = owners(self.model.graph)
        nodes = [op.node for op in self.inner_ops]
        return {node: why for node in nodes if (why := unshown(node, known, self.model.opset_imports))}


def build_axis_graph(
    model: ir.Model,
    shapes: Shapes,
    rules: RuleTable,
    *,
    allow_inexact: bool = False,
    refit_io: Collection[str] = (),
) -> AxisGraph:
    """Ask every node's rule how its axes hang together.

    Parameters
    ----------
    model
        Normalised and in topological order; not mutated.
    shapes
        Shapes of `model`.
    rules
        One `Rule` per operator. A node without one is a barrier for all its axes.
    allow_inexact
        Open axes that norms average over.
    refit_io
        Names of graph inputs and outputs whose axes may be cut.
    """
    relations = Relations(allow_inexact)
    ops: list[Op] = []
    parameters: dict[ir.Value, Parameter] = {}
    for node in every_node(model.graph):
        domain = domain_of(node)
        op = Op(node, shapes, model.opset_imports.get(domain, 0))
        ops.append(op)
        rule = rules.of(node)
        relations.enter(op)
        if rule is None:
            relations.leave(Reason.SUBGRAPH if op.bodies else barrier_of((domain, node.op_type)))
        elif not rule.hands_on and (unknown := _unknown(op)):
            maker = op.untold(unknown[0]).producer()
            relations.leave(Reason.UNKNOWN_SHAPE, "" if maker is None else Op(maker, shapes, 0).label)
        else:
            rule.relate(op, relations)
            relations.leave()
        for slot, value in enumerate(node.inputs):
            if value is not None and value.const_value is not None and value not in parameters:
                weight = rule is not None and slot in rule.weights
                kind = "weight" if weight else (rule.kinds.get(slot, "constant") if rule else "constant")
                parameters[value] = Parameter(value, kind, op, slot)
    for value in (*model.graph.inputs, *model.graph.outputs):
        for dim in range(len(shapes.dims.get(value, ()))) if value.name in refit_io else ():
            relations.join_blocks(Axis(value, dim))
    relations.finish()
    _pin_interface(model, shapes, relations.graph, refit_io)
    pin_dynamic(shapes, relations)
    return AxisGraph(
        model,
        shapes,
        rules,
        relations.graph,
        _extents(shapes, relations),
        tuple(relations.sinks),
        tuple(relations.balances),
        relations.blocked,
        {v: p for v, p in parameters.items() if _is_weight(v, p)},
        tuple(ops),
        tuple(relations.averages),
        tuple(relations.isolated),
    )


def _unknown(op: Op) -> list[ir.Value]:
    """What the operator reads and makes of which nobody knows the rank."""
    return [v for v in (*op.node.inputs, *op.outputs) if v is not None and op.dims(v) is None]


def _is_weight(value: ir.Value, parameter: Parameter) -> bool:
    """Scales of quantisers are none."""
    is_float = value.dtype is not None and value.dtype.is_floating_point()
    return is_float and parameter.kind != QUANTIZER


def _extents(shapes: Shapes, relations: Relations) -> dict[Axis, int]:
    extents: dict[Axis, int] = {}
    for axis in relations.graph:
        if isinstance(axis, Axis):
            extent = shapes.dims[axis.value][axis.dim]
            blocked = relations.blocked.get(axis)
            extents[axis] = (extent or 0) * (1 if blocked is None else blocked.blocks)
    return extents


def _pin_interface(
    model: ir.Model, shapes: Shapes, graph: nx.MultiGraph[Any], refit_io: Collection[str]
) -> None:
    inputs = [v for v in model.graph.inputs if v.const_value is None]
    for values, reason, what in (
        (inputs, Reason.GRAPH_INPUT, "input"),
        (model.graph.outputs, Reason.GRAPH_OUTPUT, "output"),
    ):
        for value in values:
            if value.name in refit_io:
                continue
            for dim in range(len(shapes.dims.get(value, ()))):
                if (axis := Axis(value, dim)) in graph:
                    graph.add_edge(axis, Barrier(reason, f"{what} {value.name!r}"))
