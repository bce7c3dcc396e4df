"""A model as bytes in memory, with its big weights left out and handed over beside them.

Protobuf messages end at 2 GiB, and copying weights into one costs time and memory. An initializer that is
left out appears in the bytes as external data of the same name, dtype and shape; the runtime gets its
tensor under that name.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, MutableMapping

import onnx_ir as ir

from onnxprune.errors import UnsupportedError

LOCATION = "onnxprune-in-memory"
"""Location that the bytes give for the initializers left out; no such file exists."""

INLINE_LIMIT = 1_500_000_000
"""Bytes of weights that may stay inside the message."""

_SMALL = 1024
_PLAIN = frozenset(
    ir.DataType[name]
    for name in (
        *("FLOAT", "DOUBLE", "FLOAT16", "BFLOAT16", "BOOL"),
        *("INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64"),
    )
)


def to_bytes(model: ir.Model, *, external_above: int) -> tuple[bytes, dict[str, ir.TensorProtocol]]:
    """Serialise a model without its big initializers; no file is written.

    Parameters
    ----------
    model
        Not mutated. Weights in external files are read only where they are small.
    external_above
        Initializers of the main graph with more bytes than this are left out. Where the others would not
        fit into one message, all with more than 1 KiB are.

    Returns
    -------
    tuple
        The message, and the tensors left out by initializer name.

    Raises
    ------
    UnsupportedError
        If weights inside subgraphs and attributes alone do not fit into one message.
    """
    threshold = external_above
    copy = model.clone()
    values = [value for value in copy.graph.initializers.values() if value.const_value is not None]
    fixed = sum(tensor.nbytes for tensor in _inner_tensors(copy))
    if fixed + _bytes_up_to(values, threshold) > INLINE_LIMIT:
        threshold = min(threshold, _SMALL)
    if fixed + _bytes_up_to(values, threshold) > INLINE_LIMIT:
        raise UnsupportedError(
            "the weights inside subgraphs and constants are larger than one protobuf message",
            "Lift them to initializers of the main graph.",
        )
    _inline_inner(copy)
    left_out: dict[str, ir.TensorProtocol] = {}
    for value in values:
        tensor, name = value.const_value, value.name
        if tensor is None or name is None:
            continue
        if _can_leave_out(tensor) and tensor.nbytes > threshold:
            left_out[name] = tensor
            value.const_value = ir.ExternalTensor(
                LOCATION, 0, tensor.nbytes, tensor.dtype, shape=ir.Shape(tensor.shape.numpy()), name=name
            )
        else:
            value.const_value = _inlined(tensor, name)
    return ir.to_proto(copy).SerializeToString(), left_out


def _bytes_up_to(values: Iterable[ir.Value], threshold: int) -> int:
    tensors = (value.const_value for value in values)
    return sum(
        tensor.nbytes
        for tensor in tensors
        if tensor is not None and not (_can_leave_out(tensor) and tensor.nbytes > threshold)
    )


def _can_leave_out(tensor: ir.TensorProtocol) -> bool:
    """Plain number types only: packed, 8-bit float and string tensors stay in the message."""
    return tensor.dtype in _PLAIN


def _inlined(tensor: ir.TensorProtocol, name: str) -> ir.TensorProtocol:
    """Return a tensor that serialises with its data and under `name`, without renaming the model's own."""
    if tensor.name == name and not isinstance(tensor, ir.ExternalTensor):
        return tensor
    if tensor.dtype == ir.DataType.STRING:
        return ir.StringTensor(tensor.numpy(), shape=ir.Shape(tensor.shape.numpy()), name=name)
    return ir.LazyTensor(lambda: tensor, dtype=tensor.dtype, shape=ir.Shape(tensor.shape.numpy()), name=name)


def _inner_tensors(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    """Tensors of subgraphs, functions and attributes."""
    for graph in model.graph.subgraphs():
        for value in graph.initializers.values():
            if value.const_value is not None:
                yield value.const_value
    for _, attribute in _tensor_attributes(model):
        yield from (
            attribute.as_tensors() if attribute.type == ir.AttributeType.TENSORS else [attribute.as_tensor()]
        )


def _inline_inner(copy: ir.Model) -> None:
    """Read external tensors of subgraphs and attributes: a runtime without a file could not find them."""
    for graph in copy.graph.subgraphs():
        for value in graph.initializers.values():
            if value.const_value is not None and value.name is not None:
                value.const_value = _inlined(value.const_value, value.name)
    for attributes, attribute in list(_tensor_attributes(copy)):
        if attribute.type != ir.AttributeType.TENSOR:
            continue
        tensor = attribute.as_tensor()
        if isinstance(tensor, ir.ExternalTensor):
            attributes[attribute.name] = ir.AttrTensor(attribute.name, _inlined(tensor, tensor.name or ""))


def _tensor_attributes(model: ir.Model) -> Iterator[tuple[MutableMapping[str, ir.Attr], ir.Attr]]:
    nodes = [*model.graph.all_nodes()]
    for function in model.functions.values():
        nodes += function.all_nodes()
    for node in nodes:
        for attribute in node.attributes.values():
            if (
                attribute.type in (ir.AttributeType.TENSOR, ir.AttributeType.TENSORS)
                and not attribute.is_ref()
            ):
                yield node.attributes, attribute
