"""Nodes that gradients pass as several of the standard operators: the LOWER table of the rules.

Only nodes between a target and the loss are looked at. The values that a node made keep their names, so what is
named by them (outputs, masks, further targets) stays.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import onnx_ir as ir

from onnxprune.model.shapes import Shapes
from onnxprune.rules import Op, RuleTable
from onnxprune.rules.expr import Builder, Expr
from onnxprune.rules.rule import domain_of
from onnxprune.rules.site import Site, no_gradient


def lower_nodes(
    model: ir.Model, graph: ir.Graph, nodes: Collection[ir.Node], rules: RuleTable, shapes: Shapes
) -> bool:
    """Put the standard operators in the place of each node whose rule says it in these.

    Parameters
    ----------
    model
        The model that holds the graph.
    graph
        Its own, or that of a branch. Mutated.
    nodes
        Of the graph.
    rules
        The table that says them.
    shapes
        Of the graph as it is; no longer complete where something was replaced.

    Returns
    -------
    bool
        Whether anything was replaced.

    Raises
    ------
    GradientError
        A variant of an operator that its rule does not cover.
    """
    found = False
    for node in nodes:
        rule = rules.of(node)
        if rule is None or rule.lower is None:
            continue
        op = Op(node, shapes, model.opset_imports.get(node.domain, 1))
        builder = Builder(graph, node.name or f"{node.op_type}", before=node)
        made = rule.lower(op, Site(op, builder))
        if made is not None:
            _replace(graph, op, made)
            found = True
    return found


def _replace(graph: ir.Graph, op: Op, made: Sequence[Expr | None]) -> None:
    node = op.node
    for slot, old in enumerate(node.outputs):
        expr = made[slot] if slot < len(made) else None
        if expr is None:
            if old.uses() or old.is_graph_output():
                domain = domain_of(node)
                raise no_gradient(
                    op, f"output {slot} of the operator{f' of {domain}' if domain else ''} is not covered"
                )
            continue
        new = expr.op("Identity").value if _shared(expr.value, made, slot) else expr.value
        new.type, new.shape = old.type, old.shape
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        new.name, old.name = old.name, None
    graph.remove(node, safe=True)


def _shared(value: ir.Value, made: Sequence[Expr | None], slot: int) -> bool:
    """Whether a value has a name of its own: an input of the graph or the node, or an output before."""
    earlier = any(expr is not None and expr.value is value for expr in made[:slot])
    return earlier or value.producer() is None or not _fresh(value)


def _fresh(value: ir.Value) -> bool:
    return not value.uses() and not value.is_graph_output()
