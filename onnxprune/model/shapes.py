"""Extents of every axis with symbolic dims bound, and which of them depend on the input.

The graph is walked once per binding of the symbolic dims. onnx's own per-operator inference
(`onnx.shape_inference.infer_node_outputs`) gives shapes; small integer tensors are evaluated on the way
(`onnxprune.model.fold`), so that shapes computed by `Shape -> Gather -> Concat -> Reshape` chains are known
numbers. An axis whose extent changes between two bindings is dynamic. Operators that onnx has no schema for
(onnxruntime's own, third parties') are inferred by a function that the caller hands in.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx_ir as ir

from onnxprune.model import fold
from onnxprune.model.binding import bind_dims, candidates, far_sizes, other_sizes, symbol
from onnxprune.model.inferred import (
    MAX_DATA,
    Dims,
    Inferred,
    completed,
    declared,
    fill_type,
    from_proto,
    is_tracked,
    readable,
    type_of,
)
from onnxprune.model.iterate import infer_bodies, taken_branch
from onnxprune.model.nested import inner_values
from onnxprune.model.walks import changed_axes, changed_values, lost

__all__ = [
    "MAX_DATA",
    "Custom",
    "Dims",
    "Hook",
    "Inferred",
    "Shapes",
    "changed_axes",
    "changed_values",
    "infer_shapes",
    "walk_branch",
    "walk_shapes",
]

_GRAPHS = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)

log = logging.getLogger(__name__)

Hook = Callable[[ir.Node, dict[ir.Value, Dims], dict[ir.Value, np.ndarray]], None]
"""Called before each node of a walk; may edit the node and must keep the two dicts up to date."""
Custom = Callable[
    [ir.Node, int, Mapping[ir.Value, Dims], Mapping[ir.Value, np.ndarray]], Sequence[Inferred] | None
]
"""Infers the outputs of an operator that onnx has no schema for: the node, the version of its domain, extents
and values known so far. None, or a shorter sequence: nothing is known."""


@dataclass(frozen=True)
class Shapes:
    """Shapes of a model's values at one binding of its symbolic dims.

    Attributes
    ----------
    dims
        Extents per value; `None` where they could not be inferred. A value without a known rank is absent.
    data
        Values of small integer tensors that are known at this binding.
    dynamic
        `(value, dim)` pairs whose extent depends on the input.
    varying
        Values in `data` that depend on the binding.
    bindings
        The size of every symbolic dim of the graph's inputs.
    guessed
        The names in `bindings` that nobody gave.
    other
        Extents at a second binding of the symbolic dims; empty where the model fits no other.
    """

    dims: Mapping[ir.Value, Dims]
    data: Mapping[ir.Value, np.ndarray]
    dynamic: frozenset[tuple[ir.Value, int]] = frozenset()
    varying: frozenset[ir.Value] = frozenset()
    bindings: Mapping[str, int] = field(default_factory=dict)
    guessed: frozenset[str] = frozenset()
    other: Mapping[ir.Value, Dims] = field(default_factory=dict)


def infer_shapes(
    model: ir.Model, bindings: Mapping[str, int] | None = None, custom: Custom | None = None
) -> Shapes:
    """Infer the extents of all axes, those in bodies included, and which of them are dynamic.

    An If has the outputs of the branch that is taken, where that is known at a binding.

    Parameters
    ----------
    model
        A model in topological order. Values without an element type get the inferred one; nothing else
        changes.
    bindings
        Sizes of symbolic dims by name. A batch dim that is not named is 1, another gets a guess.
    custom
        Infers operators that onnx does not know; `RuleTable.infer` does.

    Returns
    -------
    Shapes
    """
    _, guessed = bind_dims(model.graph.inputs, bindings or {})
    engine = _Engine(model, custom)
    sizes, dims, data, refused = _fitting(engine, candidates(model.graph.inputs, bindings or {}))
    inside = frozenset(inner_values(model.graph))
    dynamic: set[tuple[ir.Value, int]] = set()
    varying: frozenset[ir.Value] = frozenset()
    elsewhere: Mapping[ir.Value, Dims] = {}
    for others in (*other_sizes(model.graph.inputs, sizes), *(far_sizes(sizes) if inside else ())):
        found, values = engine.walk(others)
        turned = inside and any(len(found.get(v, d)) != len(d) for v, d in dims.items() if v not in inside)
        if turned or lost(dims, found, inside) or engine.refused - refused:
            continue
        varying |= changed_values(data, values)
        if elsewhere:  # what an If decides on may agree at two sizes by chance
            continue
        dynamic, elsewhere = changed_axes(dims, found), found
        if len([name for name in sizes if others[name] != sizes[name]]) < len(sizes):
            dynamic |= _symbolic(model)
        if not inside:
            break
    if sizes and not elsewhere:
        log.info("the model only fits one size of its symbolic dims: all axes inside it count as fixed")
        dynamic = _symbolic(model)
    return Shapes(dims, data, frozenset(dynamic), varying, sizes, guessed, elsewhere)


_Walk = tuple[dict[str, int], dict[ir.Value, Dims], dict[ir.Value, np.ndarray], set[ir.Node]]


def _fitting(engine: _Engine, choices: Iterable[dict[str, int]]) -> _Walk:
    """The walk at the first sizes with which no node is refused; where there are none, with the fewest."""
    walks: list[_Walk] = []
    for sizes in choices:
        walks.append((sizes, *engine.walk(sizes), engine.refused))
        if not engine.refused:
            return walks[-1]
    return min(walks, key=lambda walk: len(walk[3]))


def _symbolic(model: ir.Model) -> set[tuple[ir.Value, int]]:
    """Symbolic axes of the graph's inputs and outputs."""
    return {
        (value, axis)
        for value in (*model.graph.inputs, *model.graph.outputs)
        if value.shape is not None
        for axis, dim in enumerate(value.shape)
        if not isinstance(dim, int)
    }


def walk_shapes(
    model: ir.Model, sizes: Mapping[str, int], before: Hook, custom: Custom | None = None
) -> dict[ir.Value, Dims]:
    """Infer extents at one binding, calling `before` ahead of each node; it may edit the node."""
    dims, _ = _Engine(model, custom).walk(sizes, before)
    return dims


def walk_branch(
    model: ir.Model,
    branch: ir.Graph,
    sizes: Mapping[str, int],
    dims: dict[ir.Value, Dims],
    data: dict[ir.Value, np.ndarray],
    custom: Custom | None = None,
) -> None:
    """Add what a branch of an If makes to the extents and the data of the graph around it, at one binding."""
    _Engine(model, custom).visit_all(branch, sizes, dims, data)


class _Engine:
    """Walks a graph; remembers the result of every distinct (operator, attributes, input types, data)."""

    def __init__(self, model: ir.Model, custom: Custom | None) -> None:
        self._model = model
        self._custom = custom
        self._opsets = dict(model.opset_imports)
        self._proto_opsets = [onnx.helper.make_opsetid(d, v) for d, v in self._opsets.items()]
        self.refused: set[ir.Node] = set()  # in the last walk, whatever shapes their outputs declare
        self._cache: dict[object, tuple[Inferred, ...] | None] = {}
        self._attributes: dict[ir.Node, object] = {}
        self._called: set[ir.Node] = set()

    def walk(
        self, sizes: Mapping[str, int], before: Hook | None = None
    ) -> tuple[dict[ir.Value, Dims], dict[ir.Value, np.ndarray]]:
        dims: dict[ir.Value, Dims] = {}
        data: dict[ir.Value, np.ndarray] = {}
        self.refused = set()
        graph = self._model.graph
        for value in graph.inputs:
            if value.shape is not None:
                dims[value] = tuple(
                    dim if isinstance(dim, int) else sizes[symbol(value, axis)]
                    for axis, dim in enumerate(value.shape)
                )
        self.visit_all(graph, sizes, dims, data, before)
        return dims, data

    def visit_all(
        self,
        graph: ir.Graph,
        sizes: Mapping[str, int],
        dims: dict[ir.Value, Dims],
        data: dict[ir.Value, np.ndarray],
        before: Hook | None = None,
    ) -> None:
        """Add what a graph makes to `dims` and `data`."""
        for value in graph.initializers.values():
            tensor = value.const_value
            if tensor is None:
                continue
            dims[value] = tuple(int(d) for d in tensor.shape.numpy())
            if is_tracked(tensor.dtype, tensor.size):
                data[value] = tensor.numpy()
        for node in graph:
            if before is not None and node not in self._called:
                if graph is not self._model.graph:  # a body may be walked several times
                    self._called.add(node)
                before(node, dims, data)
            self._visit(node, sizes, dims, data, before)

    def _visit(
        self,
        node: ir.Node,
        sizes: Mapping[str, int],
        dims: dict[ir.Value, Dims],
        data: dict[ir.Value, np.ndarray],
        before: Hook | None = None,
    ) -> None:
        result = fold.evaluate(node, dims, data)
        if result is not None and result.size <= MAX_DATA:
            (output,) = node.outputs
            data[output] = result
            dims[output] = result.shape
            fill_type(output, ir.DataType.from_numpy(result.dtype))
            return
        found: Sequence[Inferred]
        if not any(a.type in _GRAPHS for a in node.attributes.values()):
            found = self._infer(node, dims, data)
        else:
            found = self._bodies(node, sizes, dims, data, before)
        for output, (shape, dtype) in zip(node.outputs, found, strict=True):
            fill_type(output, dtype)
            stated = declared(output, sizes)
            if shape is None:
                shape = stated
            elif stated is not None and len(stated) == len(shape):
                shape = tuple(a if a is not None else b for a, b in zip(shape, stated, strict=True))
            if shape is not None:
                dims[output] = shape

    def _bodies(
        self,
        node: ir.Node,
        sizes: Mapping[str, int],
        dims: dict[ir.Value, Dims],
        data: dict[ir.Value, np.ndarray],
        before: Hook | None,
    ) -> list[Inferred]:
        """What a node with bodies makes; nodes that are refused in a body that may not run do not count."""
        refused = set(self.refused)
        inside: dict[ir.Graph, set[ir.Node]] = {}

        def visit(body: ir.Graph) -> None:
            self.refused = set()
            self.visit_all(body, sizes, dims, data, before)
            inside[body] = self.refused

        found = infer_bodies(node, self._opsets.get(node.domain, 0), visit, dims, data, sizes)
        taken = taken_branch(node, data)
        self.refused = refused | (inside[taken] if taken is not None else set())
        return found

    def _infer(
        self, node: ir.Node, dims: Mapping[ir.Value, Dims], data: Mapping[ir.Value, np.ndarray]
    ) -> tuple[Inferred, ...]:
        unknown: tuple[Inferred, ...] = ((None, None),) * len(node.outputs)
        version = self._opsets.get(node.domain)
        if version is None:
            return unknown
        if any(value is not None and value not in dims for value in node.inputs):
            return unknown
        key = self._key(node, dims, data)
        if key not in self._cache:
            self._cache[key] = self._ask_onnx(node, version, dims, data)
        known = self._cache[key]
        if known is None:
            self.refused.add(node)
        return unknown if known is None else known

    def _key(
        self, node: ir.Node, dims: Mapping[ir.Value, Dims], data: Mapping[ir.Value, np.ndarray]
    ) -> object:
        attributes = self._attributes.get(node)
        if attributes is None:
            attributes = self._attributes[node] = tuple(
                (name, str(attr.value)) for name, attr in sorted(node.attributes.items())
            )
        inputs: list[object] = []
        for value in node.inputs:
            if value is None:
                inputs.append(None)
                continue
            known = readable(node, value, data)
            inputs.append((dims[value], value.dtype, None if known is None else known.tobytes()))
        return node.domain, node.op_type, len(node.outputs), attributes, tuple(inputs)

    def _ask_onnx(
        self,
        node: ir.Node,
        version: int,
        dims: Mapping[ir.Value, Dims],
        data: Mapping[ir.Value, np.ndarray],
    ) -> tuple[Inferred, ...] | None:
        """What onnx infers for the outputs of `node`; None where it finds the inputs contradictory."""
        try:
            schema = onnx.defs.get_schema(node.op_type, version, node.domain)
        except onnx.defs.SchemaError:
            return self._ask_custom(node, version, dims, data)
        if schema.deprecated:  # GroupNormalization up to opset 20: onnx refuses to look at it
            return self._ask_custom(node, version, dims, data)
        proto = onnx.NodeProto(op_type=node.op_type, domain=node.domain)
        types, values = {}, {}
        for index, value in enumerate(node.inputs):
            name = "" if value is None else f"i{index}"
            proto.input.append(name)
            if value is None:
                continue
            types[name] = type_of(value, dims[value])
            known = readable(node, value, data)
            if known is not None:
                values[name] = onnx.numpy_helper.from_array(np.asarray(known), name)
        proto.output.extend(f"o{index}" if out.name else "" for index, out in enumerate(node.outputs))
        proto.attribute.extend(ir.serde.serialize_attribute(attr) for attr in node.attributes.values())
        try:
            inferred = onnx.shape_inference.infer_node_outputs(
                schema, proto, types, values, opset_imports=self._proto_opsets
            )
        except (
            onnx.shape_inference.InferenceError,
            onnx.checker.ValidationError,
            RuntimeError,
            ValueError,
        ) as error:
            log.debug("no shape for %s (%s): %s", node.name, node.op_type, error)
            return None
        found = tuple(from_proto(inferred.get(f"o{index}")) for index in range(len(node.outputs)))
        if all(shape is not None and None not in shape for shape, _ in found):
            return found
        # onnx has operators without inference, for some of their outputs (the mask of an old Dropout), too
        made = self._ask_custom(node, version, dims, data)
        return tuple(completed(one, own) for one, own in zip(found, made, strict=True))

    def _ask_custom(
        self,
        node: ir.Node,
        version: int,
        dims: Mapping[ir.Value, Dims],
        data: Mapping[ir.Value, np.ndarray],
    ) -> tuple[Inferred, ...]:
        """What the operator's rule says about its outputs."""
        unknown: tuple[Inferred, ...] = ((None, None),) * len(node.outputs)
        made = () if self._custom is None else self._custom(node, version, dims, data) or ()
        return tuple(
            found if out.name else (None, None)
            for out, found in zip(node.outputs, (*made, *unknown), strict=False)
        )
