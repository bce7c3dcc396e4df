"""Writing a protobuf message piece by piece, so that its weights are never copied into one.

The bytes are exactly those that protobuf itself would write: a message is the sequence of its fields in
ascending order, a submessage is a field that starts with its length (https://protobuf.dev/programming-guides/encoding).
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import BinaryIO

import onnx
import onnx_ir as ir

from onnxprune.model.serialize import read_bytes, tensor_proto, unreadable

_GRAPH = onnx.ModelProto.GRAPH_FIELD_NUMBER
_INITIALIZER = onnx.GraphProto.INITIALIZER_FIELD_NUMBER
_RAW = onnx.TensorProto.RAW_DATA_FIELD_NUMBER
_LENGTH_DELIMITED = 2


@dataclass(frozen=True)
class Streamed:
    """An initializer whose data is written from its tensor, after `head` and before `tail`."""

    tensor: ir.TensorProtocol
    head: bytes
    tail: bytes

    @classmethod
    def of(cls, tensor: ir.TensorProtocol, name: str) -> Streamed:
        """Encode everything about `tensor` but its data."""
        head, tail = _split(_encode(tensor_proto(tensor, name, data=False)), _RAW)
        return cls(tensor, head + _tag(_RAW, tensor.nbytes), tail)

    @property
    def size(self) -> int:
        """Bytes of the encoded tensor."""
        return len(self.head) + self.tensor.nbytes + len(self.tail)


def write_model(
    file: BinaryIO, proto: onnx.ModelProto, initializers: Iterable[Streamed | onnx.TensorProto]
) -> None:
    """Write `proto` with `initializers` added to its graph.

    Parameters
    ----------
    file
        Open for writing in binary mode.
    proto
        Without initializers in the main graph. Its graph is cleared.
    initializers
        In the order in which they are written. The data of a `Streamed` one goes straight to the file.
    """
    items = [item if isinstance(item, Streamed) else _encode(item) for item in initializers]
    sizes = [item.size if isinstance(item, Streamed) else len(item) for item in items]
    before, after = _split(_encode(proto.graph), _INITIALIZER)
    proto.ClearField("graph")
    first, last = _split(_encode(proto), _GRAPH)
    tags = [_tag(_INITIALIZER, size) for size in sizes]
    length = len(before) + sum(map(len, tags)) + sum(sizes) + len(after)
    file.write(first + _tag(_GRAPH, length) + before)
    for tag, item in zip(tags, items, strict=True):
        file.write(tag)
        if isinstance(item, Streamed):
            file.write(item.head)
            write_data(file, item.tensor)
            file.write(item.tail)
        else:
            file.write(item)
    file.write(after + last)


def write_data(file: BinaryIO, tensor: ir.TensorProtocol) -> None:
    """Write a tensor's bytes, and check that it has as many as its type and shape say.

    Raises
    ------
    ModelError
        The tensor lies in a file that is gone or was cut.
    """
    start = file.tell()
    if isinstance(tensor, ir.ExternalTensor):
        _check_source(tensor)
        tensor.tofile(file)
    else:
        file.write(read_bytes(tensor))
    if file.tell() - start != tensor.nbytes:
        raise RuntimeError(
            f"tensor {tensor.name!r} has {file.tell() - start} bytes, not the {tensor.nbytes} of "
            f"{tensor.dtype.name}{list(tensor.shape.numpy())}"
        )


def _check_source(tensor: ir.ExternalTensor) -> None:
    try:
        with open(tensor.path, "rb") as source:
            size = os.fstat(source.fileno()).st_size
    except OSError as error:
        raise unreadable(tensor, error.strerror or str(error)) from error
    if size < (tensor.offset or 0) + tensor.nbytes:
        raise unreadable(tensor, "its data file became shorter")


def _encode(message: onnx.ModelProto | onnx.GraphProto | onnx.TensorProto) -> bytes:
    return bytes(message.SerializeToString(deterministic=True))


def _tag(number: int, length: int) -> bytes:
    """The start of a field that has a length."""
    return _varint(number << 3 | _LENGTH_DELIMITED) + _varint(length)


def _varint(number: int) -> bytes:
    parts = bytearray()
    while number > 0x7F:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    parts.append(number)
    return bytes(parts)


def _split(message: bytes, number: int) -> tuple[bytes, bytes]:
    """The fields below `number` and those above it; a field `number` itself counts as below."""
    at = 0
    while at < len(message):
        tag, after = _read_varint(message, at)
        if tag >> 3 > number:
            break
        at = _skip(message, tag & 7, after)
    return message[:at], message[at:]


def _skip(message: bytes, kind: int, at: int) -> int:
    if kind == _LENGTH_DELIMITED:
        length, at = _read_varint(message, at)
        return at + length
    if kind == 0:
        return _read_varint(message, at)[1]
    return at + (8 if kind == 1 else 4)


def _read_varint(message: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = message[at]
        number |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return number, at
        shift += 7
