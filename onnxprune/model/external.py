"""External data: where each tensor's bytes lie, and that they may and can be read. Nothing is read here."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PureWindowsPath

import onnx
import onnx_ir as ir

from onnxprune.errors import ModelError, UsageError
from onnxprune.model.serialize import tensor_attributes, tensors_of
from onnxprune.model.tensors import all_tensors, byte_size

_BESIDE = "Put the data file beside the model and save the model with a relative location."


def locate_external(proto: onnx.ModelProto, path: Path) -> tuple[Path, ...]:
    """Find the data of all external tensors and check its place and size.

    A data file is looked for beside the model and, where the model is a symbolic link, beside the file that
    it points to. Locations that need the latter are made absolute in `proto`.

    Parameters
    ----------
    proto
        Mutated: see above.
    path
        Of the model's file.

    Returns
    -------
    tuple
        The data files, sorted, with links resolved.

    Raises
    ------
    ModelError
        A data file is missing, too short, or outside the model's folder; an offset or length is no number or
        does not fit the tensor.
    UsageError
        A data file may not be read.
    """
    folders = tuple(dict.fromkeys((path.absolute().parent.resolve(), path.resolve().parent)))
    files: dict[str, tuple[Path, int]] = {}
    for tensor in all_tensors(proto):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        if tensor.data_type == onnx.TensorProto.STRING:
            raise ModelError(f"tensor {tensor.name!r} has external data, but holds strings", _BESIDE)
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location = entries.get("location", "")
        if location not in files:
            files[location] = _find(tensor.name, location, folders)
        file, size = files[location]
        _check_extent(tensor, entries, file, size)
        if not file.is_relative_to(folders[0]) or file != (folders[0] / location).resolve():
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = str(file)
    return tuple(sorted({file for file, _ in files.values()}))


def _find(name: str, location: str, folders: tuple[Path, ...]) -> tuple[Path, int]:
    """The data file and its size."""
    if not location or "\0" in location:
        raise ModelError(
            f"tensor {name!r} has external data without a usable location ({location!r})", _BESIDE
        )
    outside = ModelError(
        f"tensor {name!r} points to external data {location!r} outside the model's folder", _BESIDE
    )
    if Path(location).is_absolute() or PureWindowsPath(location).is_absolute():
        raise outside
    for folder in folders:
        try:
            file = (folder / location).resolve()
            if not file.is_file():
                continue
        except (OSError, RuntimeError, ValueError):
            continue  # a loop of links, or a name that no file can have
        if not any(file.is_relative_to(root) for root in folders):
            raise outside
        return file, _checked_size(name, location, file)
    if not any(Path(os.path.normpath(root / location)).is_relative_to(root) for root in folders):
        raise outside
    raise ModelError(
        f"the external data file {location!r} (tensor {name!r}) is missing", "Put it beside the model."
    )


def _checked_size(name: str, location: str, file: Path) -> int:
    try:
        with file.open("rb") as data:
            status = os.fstat(data.fileno())
    except OSError as error:
        raise UsageError(
            f"the external data file {location!r} (tensor {name!r}) cannot be read: "
            f"{error.strerror or error}",
            "Check the file's permissions.",
        ) from error
    if status.st_nlink > 1:
        raise ModelError(
            f"the external data file {location!r} (tensor {name!r}) has several hard links, which onnx "
            "refuses, because such a link can stand for any file of the disk",
            "Replace it by a copy.",
        )
    return status.st_size


def _check_extent(tensor: onnx.TensorProto, entries: dict[str, str], file: Path, size: int) -> None:
    needed = byte_size(tensor)
    offset = _number(tensor, entries, "offset", 0)
    length = _number(tensor, entries, "length", needed)
    if length != needed or offset + needed > size:
        raise ModelError(
            f"tensor {tensor.name!r} needs {needed} bytes at offset {offset} of {file.name!r}, which has "
            f"{size} bytes (declared length: {length})",
            "The data file is truncated or belongs to another model: copy it again.",
        )


def _number(tensor: onnx.TensorProto, entries: dict[str, str], key: str, default: int) -> int:
    text = entries.get(key)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit()) or len(text) > 20:
        raise ModelError(
            f"tensor {tensor.name!r} has the external data {key} {text[:40]!r}, which is no size in bytes",
            "The file is damaged or was written by a faulty tool: export the model again.",
        )
    return int(text)


def bind_external(model: ir.Model, path: Path) -> None:
    """Tell all external tensors which folder they are to be read from; files are mapped when first used.

    Parameters
    ----------
    model
        Deserialised from a message that went through `locate_external`. Mutated.
    path
        Of the model's file.
    """
    folder = path.absolute().parent.resolve()
    for tensor in external_tensors(model):
        location = Path(tensor.location)
        tensor.base_dir = str(location.parent if location.is_absolute() else folder)


def external_tensors(model: ir.Model) -> Iterator[ir.ExternalTensor]:
    """All external tensors of a model: initializers and attributes, also inside subgraphs and functions."""
    graphs = [model.graph, *model.graph.subgraphs()]
    for function in model.functions.values():
        graphs.extend(function.subgraphs())
    for graph in graphs:
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                yield value.const_value
    for _, attribute in tensor_attributes(model):
        for tensor in tensors_of(attribute):
            if isinstance(tensor, ir.ExternalTensor):
                yield tensor
