"""Any float model as a float32 one: onnxruntime's CPU provider has few kernels for bf16, fp16 and fp64."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from onnxprune.model.serialize import inner_graphs, tensor_attributes, tensors_of

FLOATS = frozenset({ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE})
"""What becomes float32. 8-bit and 4-bit floats are quantised values and stay."""

_DTYPE_ATTRIBUTES = frozenset(
    {"to", "dtype", "stash_type", "output_dtype", "output_datatype", "precision", "softmax_precision"}
)
_DOMAINS = frozenset({"", "com.microsoft"})


def to_float32(model: ir.Model) -> ir.Model:
    """A copy of `model` in which float16, bfloat16 and float64 are float32 everywhere.

    Initializers, graph inputs and outputs, declared types, tensors in attributes, and attributes that name
    an element type (of Cast, RandomNormal, EyeLike, LayerNormalization and the like), in subgraphs and
    functions, too. float64 values beyond float32's range become its largest value, so that what is finite
    stays finite.

    Parameters
    ----------
    model
        Not mutated. Weights are converted when they are used.

    Notes
    -----
    Inputs have to be fed as float32. The copy computes in float32: widened operators round less than the
    original's, those of a float64 model more.
    """
    model = model.clone()
    for value in _values(model):
        value.type = _widen_type(value.type)
        if value.const_value is not None:
            value.const_value = _widen(value.const_value)
    for attributes, attribute in list(tensor_attributes(model)):
        tensors = [_widen(tensor) for tensor in tensors_of(attribute)]
        if any(new is not old for new, old in zip(tensors, tensors_of(attribute), strict=True)):
            attributes[attribute.name] = (
                ir.AttrTensors(attribute.name, tensors)
                if attribute.type == ir.AttributeType.TENSORS
                else ir.AttrTensor(attribute.name, tensors[0])
            )
    for node in _nodes(model):
        if node.domain in _DOMAINS:
            _widen_dtypes(node)
    return model


def has_other_floats(model: ir.Model) -> bool:
    """Whether `to_float32` would change the model."""
    return bool(_other_floats(model))


def other_floats(model: ir.Model) -> str:
    """The float types of a model that `to_float32` widens, for people; "" where there are none."""
    return " and ".join(sorted(dtype.name.lower() for dtype in _other_floats(model)))


def _other_floats(model: ir.Model) -> set[ir.DataType]:
    found = {value.dtype for value in _values(model)}
    found |= {t.dtype for _, attribute in tensor_attributes(model) for t in tensors_of(attribute)}
    for node in _nodes(model):
        found |= {ir.DataType(a.as_int()) for _, a in _dtype_attributes(node) if a.as_int() in FLOATS}
    return {dtype for dtype in found if dtype in FLOATS}


def _nodes(model: ir.Model) -> Iterator[ir.Node]:
    yield from model.graph.all_nodes()
    for function in model.functions.values():
        yield from function.all_nodes()


def _values(model: ir.Model) -> Iterator[ir.Value]:
    for graph in (model.graph, *inner_graphs(model)):
        yield from graph.inputs
        yield from (value for value in graph.initializers.values() if not value.is_graph_input())
    for function in model.functions.values():
        yield from function.inputs
    for node in _nodes(model):
        yield from node.outputs


def _widen_type(type_: ir.TypeProtocol | None) -> ir.TypeProtocol | None:
    if isinstance(type_, (ir.SequenceType, ir.OptionalType)):
        inner = _widen_type(type_.elem_type)
        return type_ if inner is None else type(type_)(inner, denotation=type_.denotation)
    if isinstance(type_, (ir.TensorType, ir.SparseTensorType)) and type_.dtype in FLOATS:
        return type(type_)(ir.DataType.FLOAT, denotation=type_.denotation)
    return type_


def _widen(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    if tensor.dtype not in FLOATS:
        return tensor
    return ir.LazyTensor(
        lambda: ir.Tensor(_as_float32(tensor.numpy())),
        ir.DataType.FLOAT,
        ir.Shape(tensor.shape.numpy()),
        name=tensor.name,
    )


def _as_float32(
    array: np.ndarray[tuple[int, ...], np.dtype[np.generic]],
) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    if array.dtype == np.float64:
        top = np.finfo(np.float32).max
        array = np.where(np.isfinite(array), np.clip(array, -top, top), array)
    return array.astype(np.float32)


def _widen_dtypes(node: ir.Node) -> None:
    """Attributes of standard operators that name an element type."""
    for name, attribute in tuple(node.attributes.items()):
        if attribute.type == ir.AttributeType.TYPE_PROTO and not attribute.is_ref():
            known = attribute.value
            node.attributes[name] = ir.AttrTypeProto(
                name, ir.TypeAndShape(_widen_type(known.type), known.shape)
            )
    for name, attribute in _dtype_attributes(node):
        if attribute.as_int() in FLOATS:
            node.attributes[name] = ir.AttrInt64(name, int(ir.DataType.FLOAT))


def _dtype_attributes(node: ir.Node) -> list[tuple[str, ir.Attr]]:
    """Attributes of a standard operator whose number is an element type."""
    if node.domain not in _DOMAINS:
        return []
    return [
        (name, attribute)
        for name, attribute in node.attributes.items()
        if name in _DTYPE_ATTRIBUTES and attribute.type == ir.AttributeType.INT and not attribute.is_ref()
    ]
