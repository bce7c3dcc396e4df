"""A model as a protobuf message with its big weights left out, and those beside it.

Protobuf messages end at 2 GiB, and copying weights into one costs time and memory. For a runtime, an
initializer that is left out appears in the message as external data of the same name, dtype and shape; the
runtime gets its tensor under that name. For a file, `onnxprune.model.write` puts the tensors back in while it
writes.
"""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from onnxprune.errors import ModelError, UnsupportedError
from onnxprune.model.maps import put_back
from onnxprune.model.tensors import all_graphs

_SEEN_INSIDE = 4
"""IR version from which on onnxruntime shows bodies initializers that nothing around them uses."""

LOCATION = "onnxprune-in-memory"
"""Location that the bytes give for the initializers left out; no such file exists."""

MESSAGE_LIMIT = 2**31 - 1
"""Bytes that a protobuf message can have."""

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


def newest_versions() -> tuple[int, int]:
    """The newest opset and the newest IR version that the installed onnx knows."""
    return onnx.defs.onnx_opset_version(), int(onnx.IR_VERSION)


def to_bytes(
    model: ir.Model, *, external_above: int, folder: str = ""
) -> tuple[bytes, dict[str, ir.TensorProtocol]]:
    """Serialise a model without its big initializers; no file is written.

    Parameters
    ----------
    model
        Not mutated. Weights in external files are read only where they are small.
    external_above
        Initializers of the main graph with more bytes than this are left out. Where the others would not
        fit into one message, all with more than 1 KiB are.
    folder
        Initializers that lie in files of this folder are left out in a way of their own: the message names their
        files, relative to it.

    Returns
    -------
    tuple
        The message, and the tensors left out by initializer name; not those in files of the folder.

    Raises
    ------
    UnsupportedError
        If weights inside subgraphs and attributes alone do not fit into one message.
    """
    fixed = inner_bytes(model)
    tensors = {name: value.const_value for name, value in model.graph.initializers.items()}
    sizes = {name: tensor.nbytes for name, tensor in tensors.items() if tensor is not None}
    movable = {name for name, tensor in tensors.items() if tensor is not None and _can_leave_out(tensor)}

    def beyond(threshold: int) -> set[str]:
        return {name for name in movable if sizes[name] > threshold}

    outside = beyond(external_above)
    if fixed + sum(sizes.values()) - sum(sizes[name] for name in outside) > INLINE_LIMIT:
        outside = beyond(min(external_above, _SMALL))
    if fixed + sum(sizes.values()) - sum(sizes[name] for name in outside) > INLINE_LIMIT:
        raise too_large()
    proto, weights = _emptied(model)
    if proto.ir_version < _SEEN_INSIDE and any(True for _ in model.graph.subgraphs()):
        proto.ir_version = _SEEN_INSIDE
    left_out: dict[str, ir.TensorProtocol] = {}
    for name, tensor in weights.items():
        if name in outside and isinstance(tensor, ir.ExternalTensor) and _lies_in(folder, tensor):
            place = external_entry(tensor, name, str(tensor.location), tensor.offset or 0)
            proto.graph.initializer.append(place)
        elif name in outside:
            left_out[name] = tensor
            proto.graph.initializer.append(external_entry(tensor, name, LOCATION, 0))
        else:
            proto.graph.initializer.append(tensor_proto(tensor, name))
    return proto.SerializeToString(deterministic=True), left_out


def data_folder(model: ir.Model) -> str:
    """The folder of the first data file that initializers of the main graph lie in; empty where there is none."""
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor) and _lies_in(str(tensor.base_dir), tensor):
            return str(tensor.base_dir)
    return ""


def _lies_in(folder: str, tensor: ir.ExternalTensor) -> bool:
    """Whether a runtime that is told the folder finds the tensor's file."""
    return bool(folder) and str(tensor.base_dir) == folder and not Path(tensor.location).is_absolute()


def without_weights(model: ir.Model) -> tuple[onnx.ModelProto, dict[str, ir.TensorProtocol]]:
    """The message without initializers in its main graph, and their tensors by name, in order.

    Parameters
    ----------
    model
        Not mutated. External tensors of subgraphs and attributes are read into the message.

    Raises
    ------
    UnsupportedError
        These alone do not fit into one message.
    """
    if inner_bytes(model) > MESSAGE_LIMIT:
        raise too_large()
    return _emptied(model)


def _emptied(model: ir.Model) -> tuple[onnx.ModelProto, dict[str, ir.TensorProtocol]]:
    copy = model.clone()
    _inline_inner(copy)
    weights: dict[str, ir.TensorProtocol] = {}
    for name, value in copy.graph.initializers.items():
        if value.const_value is not None:
            weights[name] = value.const_value
            value.const_value = ir.Tensor(np.zeros(0, np.float32), name=name)
    proto = ir.to_proto(copy)
    put_back(model.graph, proto.graph)
    for graph in all_graphs(proto):
        _drop_repeated_infos(graph)
    del proto.graph.initializer[:]
    return proto, weights


def _drop_repeated_infos(graph: onnx.GraphProto) -> None:
    """Leave out what `value_info` says about initializers where that is no more than the initializers say."""
    names = {tensor.name for tensor in graph.initializer}
    kept = [
        info
        for info in graph.value_info
        if info.name not in names or info.metadata_props or info.doc_string or info.type.denotation
    ]
    if len(kept) < len(graph.value_info):
        del graph.value_info[:]
        graph.value_info.extend(kept)


def external_entry(tensor: ir.TensorProtocol, name: str, location: str, offset: int) -> onnx.TensorProto:
    """A tensor whose data lies in the file `location`."""
    proto = tensor_proto(tensor, name, data=False)
    proto.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", tensor.nbytes)):
        proto.external_data.add(key=key, value=str(value))
    return proto


def too_large() -> UnsupportedError:
    """The error for models that do not fit into a message whatever is left out."""
    return UnsupportedError(
        "the weights inside subgraphs and constants are larger than one protobuf message",
        "Lift them to initializers of the main graph.",
    )


def _can_leave_out(tensor: ir.TensorProtocol) -> bool:
    """Plain number types only: packed, 8-bit float and string tensors stay in the message."""
    return tensor.dtype in _PLAIN


def tensor_proto(tensor: ir.TensorProtocol, name: str, *, data: bool = True) -> onnx.TensorProto:
    """A tensor as a message, with or without its data.

    Raises
    ------
    ModelError
        The tensor lies in a file that is gone or was cut.
    """
    proto = onnx.TensorProto(dims=tensor.shape.numpy(), data_type=tensor.dtype.value, name=name)
    if tensor.doc_string:
        proto.doc_string = tensor.doc_string
    for key, value in sorted(tensor.metadata_props.items()):
        proto.metadata_props.add(key=key, value=value)
    if data and isinstance(tensor, ir.StringTensor):
        proto.string_data.extend(tensor.string_data())
    elif data:
        proto.raw_data = read_bytes(tensor)
    return proto


def read_bytes(tensor: ir.TensorProtocol) -> bytes:
    """A tensor's bytes; raise ModelError where they cannot be read."""
    try:
        return tensor.tobytes()
    except OSError as error:
        raise unreadable(tensor, error.strerror or str(error)) from error
    except ValueError as error:
        raise unreadable(tensor, str(error)) from error


def unreadable(tensor: ir.TensorProtocol, why: str) -> ModelError:
    """The error for a weight that could be read when the model was loaded."""
    return ModelError(
        f"the weight {tensor.name!r} cannot be read: {why}", "Keep the model's data file in place."
    )


def _in_memory(tensor: ir.TensorProtocol, name: str) -> ir.TensorProtocol:
    """A tensor that serialises with its data and under `name`, without renaming the model's own."""
    if tensor.name == name and not isinstance(tensor, ir.ExternalTensor) and not tensor.metadata_props:
        return tensor
    copy = ir.serde.deserialize_tensor(tensor_proto(tensor, name))
    if isinstance(copy, ir.serde.TensorProtoTensor):
        copy.metadata_props.clear()  # onnx-ir writes them a second time, after those in the message
    return copy


def weight_bytes(model: ir.Model) -> int:
    """Bytes of the initializers of the main graph."""
    return sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)


def inner_bytes(model: ir.Model) -> int:
    """Bytes of the tensors of subgraphs, functions and attributes, which cannot be left out."""
    initializers = (v.const_value for graph in inner_graphs(model) for v in graph.initializers.values())
    attributes = (tensor for _, attribute in tensor_attributes(model) for tensor in tensors_of(attribute))
    return sum(tensor.nbytes for tensor in (*initializers, *attributes) if tensor is not None)


def inner_graphs(model: ir.Model) -> Iterator[ir.Graph]:
    """All subgraphs, those inside functions included."""
    yield from model.graph.subgraphs()
    for function in model.functions.values():
        yield from function.subgraphs()


def _inline_inner(copy: ir.Model) -> None:
    """Read external tensors of subgraphs and attributes: a runtime without a file could not find them."""
    for graph in inner_graphs(copy):
        for value in graph.initializers.values():
            if value.const_value is not None and value.name is not None:
                value.const_value = _in_memory(value.const_value, value.name)
    for attributes, attribute in list(tensor_attributes(copy)):
        tensors = tensors_of(attribute)
        read = [_in_memory(tensor, tensor.name or "") for tensor in tensors]
        if all(new is old for new, old in zip(read, tensors, strict=True)):
            continue
        attributes[attribute.name] = (
            ir.AttrTensors(attribute.name, read)
            if attribute.type == ir.AttributeType.TENSORS
            else ir.AttrTensor(attribute.name, read[0])
        )


def tensors_of(attribute: ir.Attr) -> tuple[ir.TensorProtocol, ...]:
    """The tensors of an attribute of type TENSOR or TENSORS."""
    # Not `as_tensor()`, which looks through all members of a protocol: a third of loading 10,000 constants.
    value = attribute.value
    return tuple(value) if attribute.type == ir.AttributeType.TENSORS else (value,)


def tensor_attributes(model: ir.Model) -> Iterator[tuple[MutableMapping[str, ir.Attr], ir.Attr]]:
    """All attributes that hold tensors, subgraphs and functions included, with the mapping each is in."""
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
