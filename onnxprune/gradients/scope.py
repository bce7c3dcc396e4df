"""What a loss sees of a model: its outputs, their shapes, and where inputs and nodes are added."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from onnxprune.errors import UsageError
from onnxprune.gradients.prepare import prepare
from onnxprune.model import edit
from onnxprune.model.binding import symbol
from onnxprune.model.shapes import Shapes
from onnxprune.rules.expr import Builder, Expr

_PREFIX = "loss"


class Scope:
    """A model that gets a loss.

    Parameters
    ----------
    model
        Mutated: gets inputs and nodes.
    shapes
        Of the model without the loss.
    """

    def __init__(self, model: ir.Model, shapes: Shapes) -> None:
        self.graph = model.graph
        self.builder = Builder(model.graph, _PREFIX)
        self.batch = model.graph.inputs[0] if model.graph.inputs else None
        self._shapes = shapes
        self._inputs = list(model.graph.inputs)
        self._outputs = {value.name: value for value in model.graph.outputs}
        self._version = model.opset_imports[""]

    def output(self, name: str | None) -> Expr:
        """An output by name; the first where there is none."""
        if name is None:
            name = next(iter(self._outputs), None)
        if name not in self._outputs:
            raise UsageError(
                f"the model has no output {name!r} for the loss",
                f"Its outputs: {', '.join(str(known) for known in self._outputs)}.",
            )
        return self.builder.of(self._outputs[name])

    def logits(self, name: str | None, axis: int) -> Expr:
        """An output before the Softmax that ends it, where one does."""
        found = self.output(name)
        value = found.value
        while True:
            node = value.producer()
            if node is None or node.domain or node.op_type not in ("Identity", "Softmax", "LogSoftmax"):
                return found
            source = node.inputs[0]
            if source is None:
                return found
            if node.op_type != "Identity":
                rank = self.rank(found)
                over = node.attributes.get("axis")
                if (-1 if over is None else over.as_int()) % rank == axis % rank:
                    return self.builder.of(source)
                return found
            value = source

    def logit(self, name: str | None) -> Expr:
        """An output before the Sigmoid that ends it, where one does."""
        found = self.output(name)
        node = found.value.producer()
        if node is not None and not node.domain and node.op_type == "Sigmoid" and node.inputs[0] is not None:
            return self.builder.of(node.inputs[0])
        return found

    @property
    def float_outputs(self) -> tuple[str, ...]:
        """Names of the outputs that have gradients."""
        return tuple(str(name) for name, value in self._outputs.items() if value.dtype == ir.DataType.FLOAT)

    def rank(self, expr: Expr) -> int:
        """Rank of a value of the model."""
        return len(self._dims(expr.value))

    def _dims(self, value: ir.Value) -> tuple[int | None, ...]:
        dims = self._shapes.dims.get(value)
        if dims is None:
            raise UsageError(
                f"the shape of {value.name!r} is not known, so it has no loss", "Take the loss of another."
            )
        return dims

    def like(self, name: str, dtype: ir.DataType, expr: Expr, skip: int | None = None) -> Expr:
        """An input that goes with a value: of its shape, but for the axis `skip`.

        Extents that depend on the model's inputs get the name of a symbolic dim of theirs. One that is none
        of these (the sum of two, half of one) is read from the value.
        """
        value = expr.value
        sizes: list[int | str | None] = []
        for dim, extent in enumerate(self._dims(value)):
            if dim != skip:
                dynamic = (value, dim) in self._shapes.dynamic or extent is None
                sizes.append(self._symbol(value, dim) if dynamic else extent)
        found = self.given(name, dtype, sizes)
        if None not in sizes or skip is not None:
            return found
        return found.reshape(expr.op("Shape"))

    def _symbol(self, value: ir.Value, dim: int) -> str | None:
        """The symbolic dim of an input that has the same extent at both bindings."""
        sizes = (self._shapes.dims.get(value), self._shapes.other.get(value))
        wanted = [None if dims is None else dims[dim] for dims in sizes]
        for given in self._inputs:
            for axis, extent in enumerate(given.shape or ()):
                both = (self._shapes.dims.get(given), self._shapes.other.get(given))
                if not isinstance(extent, int) and wanted == [None if d is None else d[axis] for d in both]:
                    name = symbol(given, axis)
                    if getattr(extent, "value", None) is None and given.shape is not None:
                        given.shape[axis] = name
                    return name
        return None

    def given(self, name: str, dtype: ir.DataType, shape: Sequence[int | str | None]) -> Expr:
        """An input by name; added where the model has none."""
        for value in self.graph.inputs:
            if value.name == name:
                return self.builder.of(value)
        if edit.fresh(self.graph, name) != name:
            raise UsageError(
                f"the model has a value {name!r} already, so it cannot be the name of an input of the loss",
                "Give the loss's input another name.",
            )
        value = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))
        self.graph.inputs.append(value)
        return self.builder.of(value)

    def total(self, losses: Expr, mean: bool) -> Expr:
        """Sum all positions to a scalar; with `mean`, divide by the number of samples."""
        whole = losses.op("ReduceSum", keepdims=0)
        if not mean:
            return whole
        count = losses.op("Shape", start=0, end=1).float().squeeze(0)
        return whole / count

    def merge(self, model: ir.Model, output: str | None) -> Expr:
        """Append another model's nodes; its inputs are this model's outputs and inputs of the same names."""
        other = prepare(model).graph
        names = [value.name for value in other.outputs]
        if output is not None and output not in names:
            raise UsageError(
                f"the loss model has no output {output!r}", f"It has {', '.join(map(str, names))}."
            )
        result = other.outputs[0 if output is None else names.index(output)]
        taken = {**{v.name: v for v in self.graph.inputs}, **self._outputs}
        for value in list(other.inputs):
            shape = [d if isinstance(d, int) else getattr(d, "value", None) for d in value.shape or ()]
            mine = taken.get(value.name)
            if mine is None:
                mine = self.given(value.name or "", value.dtype or ir.DataType.FLOAT, shape).value
            value.replace_all_uses_with(mine)
        other.outputs.clear()
        for value in list(other.initializers.values()):
            name = value.name
            del other.initializers[name or ""]
            value.name = edit.fresh(self.graph, f"{_PREFIX}/{name}")
            self.graph.register_initializer(value)
        for node in list(other):
            other.remove(node)
            node.name = edit.fresh(self.graph, f"{_PREFIX}/{node.name or node.op_type}")
            for made in node.outputs:
                if made.name:
                    made.name = edit.fresh(self.graph, f"{_PREFIX}/{made.name}")
            self.graph.append(node)
        return self.builder.of(result).reshape([])
