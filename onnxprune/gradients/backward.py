"""Reverse-mode differentiation of an ONNX graph, by the VJPs of the rule table.

The forward graph and the loss are walked from the loss back to what it is differentiated with respect to. Only
nodes on the way are visited, and only gradients that somebody needs are built.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import onnx_ir as ir

from onnxprune.errors import UsageError
from onnxprune.gradients.branches import BRANCHES, branches_of, is_if, rename, settle_branches
from onnxprune.gradients.losses import Loss
from onnxprune.gradients.lower import lower_nodes
from onnxprune.gradients.order import put_targets_last
from onnxprune.gradients.prepare import prepare, settle_types
from onnxprune.gradients.scope import Scope
from onnxprune.gradients.wrt import Target, UnitMask, find_values, gradient_name, is_float, mask_gradient
from onnxprune.model import edit
from onnxprune.model.branches import infer_branch
from onnxprune.model.shapes import Shapes
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
    scope = Scope(model, settle_branches(model, bindings, rules.infer))
    settle_types(graph)
    scalar = loss.add(scope)
    shapes = settle_branches(model, bindings, rules.infer)
    targets = list(wrt)
    values = find_values(graph, targets)
    while lower_nodes(model, graph, _passed(graph, values, {scalar.value}), rules, shapes):
        shapes = settle_branches(model, bindings, rules.infer)
        values = find_values(graph, targets)
    walk = _Walk(model, rules, shapes, Builder(graph, "gradient"))
    gradients = walk.back({scalar.value: walk.builder.op("Identity", 1.0)}, set(values))
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


def _passed(graph: ir.Graph, targets: Sequence[ir.Value], ends: set[ir.Value]) -> list[ir.Node]:
    """The nodes that gradients pass on their way from the ends to the targets."""
    nodes = list(graph)
    wanted = _between(nodes, set(targets), ends)
    return [
        node
        for node in nodes
        if any(value in wanted for value in node.outputs) and any(value in wanted for value in read_by(node))
    ]


class _Walk:
    """One way back through a graph: the model's own, or that of a branch.

    Parameters
    ----------
    model
        The model that the graph is in.
    rules
        The table that holds the VJPs.
    shapes
        Of all values of the graph and of those around it.
    builder
        Where nodes go, at the end of the graph.
    """

    def __init__(self, model: ir.Model, rules: RuleTable, shapes: Shapes, builder: Builder) -> None:
        self._model, self._rules, self._shapes = model, rules, shapes
        self.builder = builder
        self._parts: dict[ir.Value, list[Expr]] = {}

    def back(self, ends: Mapping[ir.Value, Expr], targets: set[ir.Value]) -> dict[ir.Value, Expr]:
        """Gradients with respect to the targets that something depends on, from those of the ends."""
        nodes = list(self.builder.graph)
        wanted = _between(nodes, targets, set(ends))
        self._parts = {value: [gradient] for value, gradient in ends.items()}
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
        if is_if(node) and rule is None:
            self._choose(node, gradients, wanted)
            return
        if rule is None or rule.vjp is None:
            domain = domain_of(node)
            raise no_gradient(op, f"the operator{f' of {domain}' if domain else ''} has no VJP")
        back = Backward(op, self.builder, gradients, wanted)
        rule.vjp(op, back)
        for slot in filter(back.wants, range(len(node.inputs))):
            if slot not in back.given:
                raise no_gradient(op, f"its VJP does not cover input {slot}")
            gradient = back.given[slot]
            if gradient is not None:
                self._parts.setdefault(op.input(slot), []).append(gradient)

    def _choose(self, node: ir.Node, gradients: Mapping[int, Expr], wanted: set[ir.Value]) -> None:
        """Take the gradients of what an If reads from another If."""
        read = [value for value in dict.fromkeys(read_by(node)) if value in wanted]
        prefix = edit.fresh(self._model.graph, f"gradient/{node.name or 'If'}")
        graphs = {
            name: self._branch(branch, f"{prefix}/{name}", gradients, read)
            for name, branch in zip(BRANCHES, branches_of(node), strict=True)
        }
        made = self.builder.ops("If", [node.inputs[0]], len(read), **graphs)
        for value, gradient in zip(read, made, strict=True):
            gradient.value.type = ir.TensorType(ir.DataType.FLOAT)
            self._parts.setdefault(value, []).append(gradient)

    def _branch(
        self, branch: ir.Graph, prefix: str, gradients: Mapping[int, Expr], read: Sequence[ir.Value]
    ) -> ir.Graph:
        """A branch that gives the gradients of `read`, from those of the branch's outputs."""
        graph = branch.clone(allow_outer_scope_values=True)
        graph.opset_imports.update(self._model.opset_imports)
        builder = Builder(graph, "gradient")
        outputs = list(graph.outputs)
        graph.outputs.clear()
        shapes = infer_branch(self._model, graph, self._shapes, self._rules.infer)
        ends = {outputs[slot]: builder.of(gradient.value) for slot, gradient in gradients.items()}
        while lower_nodes(self._model, graph, _passed(graph, read, set(ends)), self._rules, shapes):
            shapes = infer_branch(self._model, graph, self._shapes, self._rules.infer)
        found = _Walk(self._model, self._rules, shapes, builder).back(ends, set(read))
        for value in read:
            gradient = found.get(value) or builder.zeros(builder.op("Shape", value))
            shown = gradient.op("Identity").value
            shown.type = ir.TensorType(ir.DataType.FLOAT)
            graph.outputs.append(shown)
        edit.drop_unused(graph)
        graph.name = prefix
        rename(graph, prefix)
        return graph

    def _sum(self, value: ir.Value) -> Expr:
        """All parts of a value's gradient together, once every node that reads it was visited."""
        parts = self._parts[value]
        if len(parts) > 1:
            parts[:] = [self.builder.op("Add" if len(parts) == 2 else "Sum", *parts)]
        return parts[0]


_ROUNDS = ("QuantizeLinear", "DynamicQuantizeLinear")
"""What these make is integers that stand for floats: gradients pass."""


def _between(nodes: Sequence[ir.Node], targets: set[ir.Value], ends: set[ir.Value]) -> set[ir.Value]:
    """Floats, and integers that stand for them, that depend on a target and on which an end depends."""
    leading = set(ends)
    for node in reversed(nodes):
        if any(output in leading for output in node.outputs):
            leading.update(read_by(node))
    moving = {value for value in targets if value in leading}
    for node in nodes:
        read = [value for value in read_by(node) if value in moving]
        if read:
            stored = node.op_type in _ROUNDS or not all(is_float(value) for value in read)
            moving.update(out for out in node.outputs if out in leading and (stored or is_float(out)))
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
