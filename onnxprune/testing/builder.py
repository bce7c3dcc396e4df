"""Building small models node by node, for checks and examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.model import edit
from onnxprune.model.shapes import infer_shapes
from onnxprune.rules import default_rules

Array = np.ndarray[Any, Any]


class ModelBuilder:
    """Collects nodes and weights; `model()` makes an `ir.Model` with all shapes declared.

    Parameters
    ----------
    opset
        Version of the default operator domain.
    domains
        Versions of other operator domains.
    seed
        Of the random weights.

    Examples
    --------
    >>> from onnxprune.testing import ModelBuilder
    >>> b = ModelBuilder(opset=17)
    >>> x = b.input("x", (1, 3, 8, 8))
    >>> y = b.op("Relu", b.op("Conv", x, b.weight((4, 3, 3, 3)), kernel_shape=[3, 3], name="stem"))
    >>> model = b.model(y)
    >>> [node.op_type for node in model.graph], list(model.graph.outputs[0].shape)
    (['Conv', 'Relu'], [1, 4, 6, 6])
    """

    def __init__(self, opset: int = 18, domains: dict[str, int] | None = None, seed: int = 0) -> None:
        self.opset = opset
        self.rng = np.random.default_rng(seed)
        self._domains = {"": opset, **(domains or {})}
        self._inputs: list[ir.Value] = []
        self._initializers: list[ir.Value] = []
        self._nodes: list[ir.Node] = []
        self._taken: set[str] = set()

    def input(
        self, name: str, shape: Sequence[int | str], dtype: ir.DataType = ir.DataType.FLOAT
    ) -> ir.Value:
        """Add a graph input; names among the extents are symbolic dims."""
        value = ir.Value(name=self._fresh(name), type=ir.TensorType(dtype), shape=ir.Shape(shape))
        self._inputs.append(value)
        return value

    def constant(self, array: Array | Sequence[int] | int, name: str = "constant") -> ir.Value:
        """Add an initializer with this value; Python integers become int64."""
        array = np.asarray(array)
        tensor = edit.tensor(array, ir.DataType.from_numpy(array.dtype), self._fresh(name))
        value = ir.Value(
            name=tensor.name,
            type=ir.TensorType(tensor.dtype),
            shape=ir.Shape(array.shape),
            const_value=tensor,
        )
        self._initializers.append(value)
        return value

    def weight(
        self, shape: Sequence[int], name: str = "weight", *, low: float = -1.0, high: float = 1.0
    ) -> ir.Value:
        """Add a float32 initializer, drawn evenly from [low, high)."""
        return self.constant(self.rng.uniform(low, high, tuple(shape)).astype(np.float32), name)

    def op(
        self, op_type: str, *inputs: ir.Value | None, name: str = "", domain: str = "", **attributes: Any
    ) -> ir.Value:
        """Add a node with one output and return that."""
        return self.ops(op_type, *inputs, outputs=1, name=name, domain=domain, **attributes)[0]

    def ops(
        self,
        op_type: str,
        *inputs: ir.Value | None,
        outputs: int | Sequence[str],
        name: str = "",
        domain: str = "",
        **attributes: Any,
    ) -> tuple[ir.Value, ...]:
        """Add a node with several outputs, given by number or by name, and return those."""
        label = self._fresh(name or op_type.lower())
        if isinstance(outputs, int):
            names = [f"{label}_out"] if outputs == 1 else [f"{label}_out{i}" for i in range(outputs)]
        else:
            names = list(outputs)
        values = [ir.Value(name=self._fresh(n) if n else "") for n in names]
        node = ir.node(op_type, inputs, attributes, domain=domain, outputs=values, name=label)
        self._nodes.append(node)
        return tuple(node.outputs)

    def model(
        self, *outputs: ir.Value, declare: bool = True, bindings: Mapping[str, int] | None = None
    ) -> ir.Model:
        """Make the model.

        Parameters
        ----------
        outputs
            The graph's outputs.
        declare
            Declare the shapes of all values, as exporters do; without, only those of inputs and outputs.
        bindings
            Sizes of symbolic dims at which the model can be understood.
        """
        graph = ir.Graph(
            self._inputs,
            outputs,
            nodes=self._nodes,
            initializers=self._initializers,
            opset_imports=self._domains,
            name="built",
        )
        model = ir.Model(graph, ir_version=8 if self.opset < 21 else 10, producer_name="onnxprune.testing")
        shapes = infer_shapes(model, bindings, default_rules().infer)
        for node in graph:
            for value in node.outputs:
                extents = shapes.dims.get(value)
                if value.shape is None and extents is not None and (declare or value in outputs):
                    dynamic = [(value, dim) in shapes.dynamic for dim in range(len(extents))]
                    value.shape = ir.Shape(
                        [None if moves else d for d, moves in zip(extents, dynamic, strict=True)]
                    )
        return model

    def _fresh(self, name: str) -> str:
        candidate, n = name, 1
        while candidate in self._taken:
            candidate, n = f"{name}_{n}", n + 1
        self._taken.add(candidate)
        return candidate
