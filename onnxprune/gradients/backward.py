"""Reverse-mode differentiation of an ONNX graph, by the VJPs of the rule table.

The forward graph and the loss are walked from the loss back to what it is differentiated with respect to. Only
nodes on the way are visited, and only gradients that somebody needs are built.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import onnx_ir as ir

from onnxprune.errors import UsageError
from onnxprune.gradients.losses import Loss
from onnxprune.gradients.lower import lower_nodes
from onnxprune.gradients.order import put_targets_last
from onnxprune.gradients.prepare import prepare, settle_types
from onnxprune.gradients.scope import Scope
from onnxprune.gradients.wrt import Target, UnitMask, find_values, gradient_name, is_float, mask_gradient
from onnxprune.model import edit
from onnxprune.model.shapes import Shapes, infer_shapes
from onnxprune.rules import Op, RuleTable, default_rules
from onnxprune.rules.backward import Backward
from onnxprune.rules.expr import Builder, Expr
from onnxprune.rules.rule import domain_of
from onnxprune.rules.site import no_gradient

LOSS = "loss"
"""Name of the output that holds the loss."""


def build_backward(
    model: ir.Model,
    loss: Loss,
    wrt: Sequence[Target],
    *,
    rules: RuleTable | None = None,
    bindings: Mapping[str, int] | None = None,
) -> ir.Model:
    """Append a loss and its gradients to a model.

    Parameters
    ----------
    model
        Not mutated. The result computes in float32 whatever the model's type.
    loss
        What is differentiated; it may add inputs.
    wrt
        Names of initializers and activations, and masks over units.
    rules
        The table that holds the VJPs; `default_rules()` by default.
    bindings
        Sizes of symbolic dims by name, for models that only fit some.

    Returns
    -------
    ir.Model
        Its outputs: those of `model`, the loss, and `gradient_name(target)` for each target, of the target's
        shape; (batch, units) for a mask. What the loss does not depend on has a gradient of zeros.

    Raises
    ------
    GradientError
        An operator between a target and the loss has no VJP; the message names it.
    UsageError
        The model has no such target, or the loss does not fit it.

    Examples
    --------
    >>> import numpy as np
    >>> from onnxprune.gradients import CrossEntropy, UnitMask
    >>> from onnxprune.testing import ModelBuilder
    >>> b = ModelBuilder(18)
    >>> (hidden,) = b.ops("Relu", b.op("MatMul", b.input("x", ("n", 8)), b.weight((8, 4))), outputs=["hidden"])
    >>> model = b.model(b.op("MatMul", hidden, b.weight((4, 3), "head")))
    >>> pairs = UnitMask("hidden", axis=1, index=np.array([0, 0, 1, 1]), units=2, name="pairs")
    >>> built = build_backward(model, CrossEntropy(), ["head", pairs])
    >>> [value.name for value in built.graph.inputs], [value.name for value in built.graph.outputs][1:]
    (['x', 'labels'], ['loss', 'gradient/head', 'gradient/pairs'])
    """
    rules = default_rules() if rules is None else rules
    model = prepare(model)
    graph = model.graph
    scope = Scope(model, infer_shapes(model, bindings, rules.infer))
    settle_types(graph)
    scalar = loss.add(scope)
    shapes = infer_shapes(model, bindings, rules.infer)
    targets = list(wrt)
    values = find_values(graph, targets)
    while lower_nodes(model, _passed(graph, values, scalar.value), rules, shapes):
        shapes = infer_shapes(model, bindings, rules.infer)
        values = find_values(graph, targets)
    gradients = _Walk(model, rules, shapes).back(scalar.value, set(values))
    for value in graph.outputs:
        value.shape = value.shape or _shape(value, shapes)
    _show(graph, scalar, LOSS, ir.Shape(()))
    builder = Builder(graph, "gradient/of")
    shown = []
    for target, value in zip(targets, values, strict=True):
        gradient = gradients.get(value) or builder.zeros(builder.op("Shape", value))
        shape = _shape(value, shapes)
        if isinstance(target, UnitMask):
            gradient = mask_gradient(target, value, gradient, shapes, builder, scope.batch)
            shape = ir.Shape([None if target.sample_axis is not None else 1, target.units])
        shown.append(_show(graph, gradient, gradient_name(target), shape))
    edit.drop_unused(graph)
    put_targets_last(graph, shown)
    return model


def _shape(value: ir.Value, shapes: Shapes) -> ir.Shape | None:
    """The shape of a value, with unknown extents where they depend on the input."""
    dims = shapes.dims.get(value)
    if dims is None:
        return value.shape
    return ir.Shape([None if (value, n) in shapes.dynamic else extent for n, extent in enumerate(dims)])


def _show(graph: ir.Graph, expr: Expr, name: str, shape: ir.Shape | None) -> ir.Value:
    """Make an expression an output of the graph under a name."""
    if edit.fresh(graph, name) != name:
        raise UsageError(
            f"the model has a value {name!r} already, or it is asked for twice", "Rename or leave out one."
        )
    shown = expr.op("Identity").value
    shown.name = name
    shown.type, shown.shape = ir.TensorType(ir.DataType.FLOAT), shape
    graph.outputs.append(shown)
    return shown


def _passed(graph: ir.Graph, targets: Sequence[ir.Value], loss: ir.Value) -> list[ir.Node]:
    """The nodes that gradients pass on their way from the loss to the targets."""
    nodes = list(graph)
    wanted = _between(nodes, set(targets), loss)
    return [
        node
        for node in nodes
        if any(value in wanted for value in node.outputs) and any(value in wanted for value in read_by(node))
    ]


class _Walk:
    """One way back through a graph."""

    def __init__(self, model: ir.Model, rules: RuleTable, shapes: Shapes) -> None:
        self._model, self._rules, self._shapes = model, rules, shapes
        self._builder = Builder(model.graph, "gradient")
        self._parts: dict[ir.Value, list[Expr]] = {}

    def back(self, loss: ir.Value, targets: set[ir.Value]) -> dict[ir.Value, Expr]:
        """Gradients of `loss`, a scalar, with respect to the targets it depends on."""
        nodes = list(self._model.graph)
        wanted = _between(nodes, targets, loss)
        self._parts = {loss: [self._builder.op("Identity", 1.0)]}
        for node in reversed(nodes):
            gradients = {
                slot: self._sum(output)
                for slot, output in enumerate(node.outputs)
                if output in self._parts and output in wanted
            }
            if gradients and any(value in wanted for value in read_by(node)):
                self._visit(node, gradients, wanted)
        return {value: self._sum(value) for value in targets if value in self._parts}

    def _visit(self, node: ir.Node, gradients: Mapping[int, Expr], wanted: set[ir.Value]) -> None:
        version = self._model.opset_imports.get(node.domain, 1)
        op = Op(node, self._shapes, version)
        rule = self._rules.of(node)
        if rule is None or rule.vjp is None:
            domain = domain_of(node)
            raise no_gradient(op, f"the operator{f' of {domain}' if domain else ''} has no VJP")
        back = Backward(op, self._builder, gradients, wanted)
        rule.vjp(op, back)
        for slot in filter(back.wants, range(len(node.inputs))):
            if slot not in back.given:
                raise no_gradient(op, f"its VJP does not cover input {slot}")
            gradient = back.given[slot]
            if gradient is not None:
                self._parts.setdefault(op.input(slot), []).append(gradient)

    def _sum(self, value: ir.Value) -> Expr:
        """All parts of a value's gradient together, once every node that reads it was visited."""
        parts = self._parts[value]
        if len(parts) > 1:
            parts[:] = [self._builder.op("Add" if len(parts) == 2 else "Sum", *parts)]
        return parts[0]


def _between(nodes: Sequence[ir.Node], targets: set[ir.Value], loss: ir.Value) -> set[ir.Value]:
    """Float values that depend on a target and on which the loss depends."""
    leading = {loss}
    for node in reversed(nodes):
        if any(output in leading for output in node.outputs):
            leading.update(read_by(node))
    moving = {value for value in targets if value in leading}
    for node in nodes:
        if any(value in moving for value in read_by(node)):
            moving.update(out for out in node.outputs if out in leading and is_float(out))
    return moving


def read_by(node: ir.Node) -> Iterator[ir.Value]:
    """The values that a node reads, those of its subgraphs included."""
    yield from (value for value in node.inputs if value is not None)
    for attribute in node.attributes.values():
        if attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) and not attribute.is_ref():
            graphs = (
                [attribute.as_graph()] if attribute.type == ir.AttributeType.GRAPH else attribute.as_graphs()
            )
            for graph in graphs:
                for inner in graph.all_nodes():
                    yield from (value for value in inner.inputs if value is not None)
                yield from graph.outputs
