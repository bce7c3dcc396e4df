"""Arithmetic on weights alone, folded into the weight that it makes.

Weight standardisation, weight normalisation, low-rank updates and transposed weights reach their layer through
nodes that see no activation. Criteria score initializers, and a mean over a weight's channels would be a
barrier, so such parts of the graph are evaluated once (in float64, rounded at the end). What would make the
file larger is left alone, and so are shapes: they are to follow what is cut.

The operators' meaning is that of `onnx.reference`.
"""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from onnxprune.model import edit
from onnxprune.model.bodies import mark_inner

log = logging.getLogger(__name__)

_SMALL = 1 << 16
"""Bytes of a weight in a file up to which what is made of it is kept in memory."""

LIMIT = 64 << 20
"""Bytes that one part of the graph may read, and that each of its values may have."""

_MOVES = frozenset(
    {"Concat", "Flatten", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"}
)
_OPERATORS = _MOVES | {
    *("Abs", "Add", "Clip", "Div", "Exp", "Gemm", "Log", "MatMul", "Max", "Mean", "Min", "Mul", "Neg"),
    *("Pow", "Reciprocal", "Relu", "Sigmoid", "Sign", "Softmax", "Softplus", "Sqrt", "Sub", "Sum", "Tanh"),
    *("ReduceL1", "ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum", "ReduceSumSquare"),
    *("BatchNormalization", "InstanceNormalization", "LayerNormalization", "LpNormalization", "Where"),
    *("Expand", "ScatterElements", "ScatterND"),
}
"""What is folded. Not among them: what reads shapes, rounds or dequantises."""

_GROWS = frozenset({"Expand"})
"""Folded only on the way to something that is (zeros scattered into a bias), because it makes values larger."""


def fold_constants(graph: ir.Graph, listed: Collection[str], main: ir.Graph) -> None:
    """Replace parts of the graph that see initializers only by the initializers that they make.

    Parameters
    ----------
    graph
        Mutated. Constants are initializers, nodes are in topological order. Nodes that are not needed any
        more stay, without users.
    listed
        Names of initializers that callers may feed, so that nothing is known about them.
    main
        The main graph, where `graph` is a body in it; else `graph` itself.
    """
    nodes = [node for node in graph if node.op_type in _OPERATORS and not node.domain]
    inside: set[ir.Node] = set()
    for node in nodes:
        if _is_constant(graph, node, inside, listed):
            inside.add(node)
    _leave_growing(inside)
    for part in _parts(inside, nodes):
        made = _evaluate(main, part)
        for value, tensor in made.items():
            edit.replace_by_initializer(main, value, tensor)
            if main is not graph:
                mark_inner(main.initializers[str(value.name)])
            if (stored := _stored(part)) is not None:
                note = edit.StoredAs(stored, f"{value.name}/cast")
                main.initializers[_name(value)].meta[edit.STORED] = note


def _is_constant(graph: ir.Graph, node: ir.Node, inside: set[ir.Node], listed: Collection[str]) -> bool:
    given = [value for value in node.inputs if value is not None]
    known = all(
        value.producer() in inside or (_is_initializer(value) and value.name not in listed) for value in given
    )
    seen_elsewhere = any(
        out.is_graph_output() or any(user.graph is not graph for user, _ in out.uses())
        for out in node.outputs
    )
    return bool(given) and known and not seen_elsewhere


def _leave_growing(inside: set[ir.Node]) -> None:
    """Take out the nodes that make values larger for nodes that stay, and what depends on them."""
    while True:
        leaves = [
            node
            for node in inside
            if node.op_type in _GROWS and any(user not in inside for user in node.outputs[0].consumers())
        ]
        if not leaves:
            return
        while leaves:
            node = leaves.pop()
            inside.discard(node)
            leaves += [user for out in node.outputs for user in out.consumers() if user in inside]


def _is_initializer(value: ir.Value) -> bool:
    return value.is_initializer() and value.const_value is not None and not value.is_graph_input()


@dataclass(frozen=True)
class _Part:
    """Nodes that hang together.

    Attributes
    ----------
    nodes
        In topological order.
    given
        Initializers that they read.
    made
        Their values that other nodes read.
    """

    nodes: tuple[ir.Node, ...]
    given: tuple[ir.Value, ...]
    made: tuple[ir.Value, ...]

    @property
    def gone(self) -> list[ir.Value]:
        """Initializers that nothing else reads."""
        own = set(self.nodes)
        return [
            value
            for value in self.given
            if not value.is_graph_output() and all(user in own for user, _ in value.uses())
        ]


def _parts(inside: set[ir.Node], order: list[ir.Node]) -> Iterator[_Part]:
    """Connected parts; two slices of one weight belong together, two uses of one vector do not."""
    groups: dict[ir.Node, list[ir.Node]] = {}
    first: dict[ir.Value, ir.Node] = {}
    for node in order:
        if node not in inside:
            continue
        groups[node] = [node]
        for value in node.inputs:
            if value is None:
                continue
            other = value.producer()
            if other is None and _is_weight(value):
                other = first.setdefault(value, node)
            if other is not None and groups[other] is not groups[node]:
                groups[other].extend(groups[node])
                for member in groups[node]:
                    groups[member] = groups[other]
    number = {node: i for i, node in enumerate(order)}
    for members in {id(group): group for group in groups.values()}.values():
        members.sort(key=number.__getitem__)
        own = set(members)
        values = dict.fromkeys(value for node in members for value in node.inputs if value is not None)
        yield _Part(
            tuple(members),
            tuple(value for value in values if value.producer() is None),
            tuple(
                out
                for node in members
                for out in node.outputs
                if any(user not in own for user, _ in out.uses())
            ),
        )


def _is_weight(value: ir.Value) -> bool:
    return value.const_value is not None and sum(int(d) > 1 for d in value.const_value.shape.numpy()) > 1


# --- evaluation ------------------------------------------------------------------------------------------


def _evaluate(graph: ir.Graph, part: _Part) -> dict[ir.Value, ir.TensorProtocol]:
    """What `part` makes, or nothing where it is better left alone."""
    dtype = _float_type(part)
    if dtype is None or not part.made or any(not value.name for value in part.made):
        return {}
    if _bytes(part.given) > LIMIT:
        return {}
    try:
        model = _serialize(graph, part)
        sizes = _sizes(model)
        if sizes is None or max(sizes.values(), default=0) * dtype.bitwidth // 8 > LIMIT:
            return {}
        elements = sum(sizes[_name(value)] for value in part.made)
        shrinks = elements * dtype.bitwidth <= _bytes(part.gone) * 8
        given = {_name(value): value.const_value for value in part.given}
        arrays = _run(model, part, given) if shrinks and elements > len(part.made) else {}
    except _REFUSALS as error:
        log.debug("%s is not folded: %s", part.nodes[-1].name, error)
        return {}
    if not all(array.dtype.kind == "f" and np.isfinite(array).all() for array in arrays.values()):
        return {}
    if len(part.made) == 1 and any(_is_mapped(value) for value in part.given):
        return {value: _lazy(model, part, value, dtype, array.shape) for value, array in arrays.items()}
    return {value: edit.tensor(array, dtype, value.name) for value, array in arrays.items()}


def _is_mapped(value: ir.Value) -> bool:
    return isinstance(value.const_value, ir.ExternalTensor) and value.const_value.nbytes > _SMALL


def _lazy(
    model: onnx.ModelProto, part: _Part, value: ir.Value, dtype: ir.DataType, shape: tuple[int, ...]
) -> ir.TensorProtocol:
    """The same, computed each time it is used: what lies in a file is to stay there."""
    feed = {_name(given): given.const_value for given in part.given}

    def make() -> ir.TensorProtocol:
        (array,) = _run(model, part, feed).values()
        return edit.tensor(array, dtype, value.name)

    return ir.LazyTensor(make, dtype=dtype, shape=ir.Shape(shape), name=value.name)


_REFUSALS = (
    AttributeError,
    ArithmeticError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
    onnx.shape_inference.InferenceError,
)
"""What onnx raises for nodes that it does not understand; running the model will say what is wrong."""


def _float_type(part: _Part) -> ir.DataType | None:
    """The one floating-point type of a part; half precision and what is cast is moved, but not calculated with."""
    types = {t.dtype for value in part.given if (t := value.const_value) is not None}
    floats = {dtype for dtype in types if dtype.is_floating_point()}
    if len(floats) != 1:
        return None
    (dtype,) = floats
    cast = any(edit.STORED in value.meta for value in part.given)
    exact = dtype in (ir.DataType.FLOAT, ir.DataType.DOUBLE) and not cast
    moved = dtype in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16) or (cast and _stored(part) is not None)
    return dtype if exact or (moved and all(node.op_type in _MOVES for node in part.nodes)) else None


def _stored(part: _Part) -> ir.DataType | None:
    """The type in which the file holds all floats of a part, where that is another one than they are used in."""
    notes = {value.meta.get(edit.STORED) for value in part.given if _is_float(value)}
    types = {note.dtype if isinstance(note, edit.StoredAs) else None for note in notes}
    return types.pop() if len(types) == 1 else None


def _is_float(value: ir.Value) -> bool:
    return value.dtype is not None and value.dtype.is_floating_point()


def _bytes(values: Collection[ir.Value]) -> int:
    return sum(t.nbytes for value in values if (t := value.const_value) is not None)


def _name(value: ir.Value) -> str:
    return value.name or ""


def _serialize(graph: ir.Graph, part: _Part) -> onnx.ModelProto:
    """The part as a model: floats are fed in, as float64, integers and flags are initializers."""
    proto = onnx.GraphProto(name="part")
    for value in part.given:
        tensor = value.const_value
        if tensor is None:
            continue
        if tensor.dtype.is_floating_point():
            shape = [int(dim) for dim in tensor.shape.numpy()]
            kind = onnx.TensorProto.DOUBLE
            proto.input.append(onnx.helper.make_tensor_value_info(_name(value), kind, shape))
        else:
            proto.initializer.append(onnx.numpy_helper.from_array(tensor.numpy(), _name(value)))
    proto.node.extend(ir.serde.serialize_node(node) for node in part.nodes)
    proto.output.extend(onnx.ValueInfoProto(name=_name(value)) for value in part.made)
    version = graph.opset_imports.get("", graph.opset_imports.get("ai.onnx", 0))
    return onnx.helper.make_model(proto, opset_imports=[onnx.helper.make_opsetid("", version)])


def _sizes(model: onnx.ModelProto) -> Mapping[str, int] | None:
    """Elements of every value that the nodes make, or None where one is not known."""
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    sizes: defaultdict[str, int | None] = defaultdict(lambda: None)
    for info in (*inferred.value_info, *inferred.output):
        dims = info.type.tensor_type.shape.dim
        if info.type.tensor_type.HasField("shape") and all(dim.HasField("dim_value") for dim in dims):
            sizes[info.name] = math.prod(dim.dim_value for dim in dims)
    names = [name for node in model.graph.node for name in node.output if name]
    known = {name: size for name in names if (size := sizes[name]) is not None}
    return known if len(known) == len(set(names)) else None


def _run(
    model: onnx.ModelProto, part: _Part, given: Mapping[str, ir.TensorProtocol | None]
) -> dict[ir.Value, np.ndarray[Any, Any]]:
    from onnx.reference import ReferenceEvaluator  # half a second, which most models need not spend

    feed = {
        name: np.asarray(tensor.numpy(), np.float64)
        for name, tensor in given.items()
        if tensor is not None and tensor.dtype.is_floating_point()
    }
    with np.errstate(all="ignore"):
        results = ReferenceEvaluator(model).run([_name(value) for value in part.made], feed)
    return {value: np.asarray(array) for value, array in zip(part.made, results, strict=True)}
