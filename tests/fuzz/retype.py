"""A drawn graph, or a run of its nodes, in another float type, with Casts where it meets the rest."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir

from tests.fuzz.kernels import NAMES, allows, variables

_FIXED = frozenset(
    {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "Constant", "CastLike"}
    | {"MeanVarianceNormalization"}
)
"""Operators whose other types hang together with the float's, or that nothing is gained from; and one that
onnxruntime replaces by its function, whose constants are float32."""


def retype(rng: np.random.Generator, model: ir.Model) -> str:
    """Convert a model in place, or leave it alone.

    Returns
    -------
    str
        The type: "float32" where nothing was converted. "bfloat16" models are converted as a whole, and
        onnxruntime has few kernels for them.
    """
    draw = rng.random()
    if draw > 0.4:
        return "float32"
    if draw < 0.06 and model.opset_imports[""] >= 17:
        kind, whole = ir.DataType.BFLOAT16, True
    else:
        kind, whole = (ir.DataType.FLOAT16, ir.DataType.DOUBLE)[int(rng.integers(2))], rng.random() < 0.35
    nodes = list(model.graph)
    if not whole:
        first = int(rng.integers(len(nodes)))
        nodes = nodes[first : first + int(rng.integers(1, max(len(nodes) // 2, 2) + 1))]
    done = _Conversion(model, kind)
    if whole:
        done.take_inputs()
    chosen = set(nodes)
    for node in list(model.graph):
        done.visit(node, node in chosen)
    done.give_back(whole)
    return NAMES[kind] if done.converted else "float32"


class _Conversion:
    """Nodes are visited in order: some compute in `kind`, the others still get what they expect."""

    def __init__(self, model: ir.Model, kind: ir.DataType) -> None:
        self.model, self.kind = model, kind
        self.opset = model.opset_imports[""]
        self.converted: set[ir.Value] = set()
        self._made: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}

    def take_inputs(self) -> None:
        for value in self.model.graph.inputs:
            if value.dtype == ir.DataType.FLOAT:
                self._become(value)

    def visit(self, node: ir.Node, wanted: bool) -> None:
        """Convert a node if it can be, and cast its inputs."""
        outputs = self._outputs(node) if wanted and not node.domain else None
        kind = self.kind if outputs is not None else ir.DataType.FLOAT
        if node.op_type == "Cast" and not node.domain:  # takes whatever there is
            if outputs is not None:
                node.attributes["to"] = ir.AttrInt64("to", int(kind))
        else:
            for slot, value in enumerate(node.inputs):
                if value is not None and value.dtype in (ir.DataType.FLOAT, self.kind):
                    moved = value in self.converted or value.dtype == ir.DataType.FLOAT
                    if moved and value.dtype != kind:
                        node.replace_input_with(slot, self._as(value, kind, node))
        for value in outputs or ():
            self._become(value)

    def _outputs(self, node: ir.Node) -> list[ir.Value] | None:
        """The outputs that change with the inputs; None where the node has to stay."""
        if node.op_type in _FIXED or any(a.type == ir.AttributeType.GRAPH for a in node.attributes.values()):
            return None
        if node.op_type == "Cast":
            to = node.attributes["to"].as_int()
            return [node.outputs[0]] if to == ir.DataType.FLOAT else None
        if not onnx.defs.has(node.op_type, self.opset, ""):  # onnxruntime's own in the default domain
            return None
        coming, going, variadic = variables(node.op_type, self.opset)
        bound = set()
        for slot, value in enumerate(node.inputs):
            if value is None:
                continue
            if slot >= len(coming) and not variadic:
                return None
            if value.dtype == ir.DataType.FLOAT or value in self.converted:
                bound.add(coming[min(slot, len(coming) - 1)])
            elif value.dtype is not None and value.dtype.is_floating_point():
                return None  # already of another type
        if not bound or not all(allows(node.op_type, self.opset, v, NAMES[self.kind]) for v in bound):
            return None
        outputs = [value for value in node.outputs if value.name]
        kinds = [going[min(n, len(going) - 1)] for n, value in enumerate(node.outputs) if value.name]
        if any(v.dtype == ir.DataType.FLOAT and k not in bound for v, k in zip(outputs, kinds, strict=True)):
            return None
        return [v for v, k in zip(outputs, kinds, strict=True) if k in bound]

    def _as(self, value: ir.Value, kind: ir.DataType, node: ir.Node) -> ir.Value:
        """The value in another type: a weight is stored in it, anything else is cast."""
        made = self._made.get((value, kind))
        if made is not None:
            return made
        name, graph = f"{value.name}_{kind.name.lower()}", self.model.graph
        if value.const_value is not None and not value.is_graph_input():
            array = value.const_value.numpy().astype(kind.numpy())
            made = ir.Value(
                name=name,
                type=ir.TensorType(kind),
                shape=ir.Shape(array.shape),
                const_value=ir.tensor(array, dtype=kind, name=name),
            )
            graph.register_initializer(made)
        else:
            cast = ir.node("Cast", [value], {"to": int(kind)}, name=name)
            made = cast.outputs[0]
            made.name, made.type, made.shape = f"{name}_out", ir.TensorType(kind), value.shape
            graph.insert_before(node, cast)
        self._made[value, kind] = made
        return made

    def _become(self, value: ir.Value) -> None:
        value.type = ir.TensorType(self.kind)
        self.converted.add(value)

    def give_back(self, whole: bool) -> None:
        """Graph outputs are what they were, unless the whole model is converted; unused weights go."""
        graph = self.model.graph
        for number, value in enumerate(graph.outputs):
            if whole or value not in self.converted:
                continue
            cast = ir.node("Cast", [value], {"to": int(ir.DataType.FLOAT)}, name=f"{value.name}_back")
            made = cast.outputs[0]
            made.name, made.shape = f"{value.name}_back_out", value.shape
            made.type = ir.TensorType(ir.DataType.FLOAT)
            graph.append(cast)
            graph.outputs[number] = made
        for name, value in list(graph.initializers.items()):
            if not value.uses() and not value.is_graph_output():
                del graph.initializers[name]
