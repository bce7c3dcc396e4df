"""Loading a model file: every check that a clear error needs, and weights left where they are."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError

from onnxprune.collector import rarely_collected
from onnxprune.errors import ModelError, OnnxPruneError, UnsupportedError, UsageError
from onnxprune.model.external import bind_external, locate_external
from onnxprune.model.maps import note_maps, put_aside
from onnxprune.model.nested import bodies_of
from onnxprune.model.serialize import MESSAGE_LIMIT
from onnxprune.model.sparse import densify
from onnxprune.model.structure import check_structure, open_unknown_dims
from onnxprune.model.tensors import all_graphs, all_tensors, check_tensor
from onnxprune.model.write import check_writable, save, write_text

__all__ = ["LoadedModel", "check_writable", "load", "save", "write_text"]

log = logging.getLogger(__name__)

_EXPORT_AGAIN = "The graph is not valid ONNX: export it again. onnx.checker may say more."


@dataclass(frozen=True)
class LoadedModel:
    """A model as it stands in its file.

    Attributes
    ----------
    path
        The path as given.
    sha256
        Of the .onnx file's bytes (external data files are not hashed).
    ir
        The graph; external weights stay memory-mapped.
    bytes
        Size of the file together with its external data.
    data_files
        The files of its external weights; empty where the weights lie in the .onnx file.
    notes
        What is not written again as the file has it, for reports.
    """

    path: Path
    sha256: str
    ir: ir.Model
    bytes: int
    data_files: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"LoadedModel({str(self.path)!r}, {self.ir.graph.num_nodes()} nodes, {self.bytes:,} bytes)"


DENSE = "written dense"
"""What a note says of sparse tensors."""


@rarely_collected
def load(path: str | os.PathLike[str]) -> LoadedModel:
    """Read an ONNX model; weights in external files are memory-mapped, not read.

    Parameters
    ----------
    path
        Path of the .onnx file.

    Raises
    ------
    UsageError
        The path does not exist or is no readable file.
    ModelError
        The file is empty, truncated or no ONNX model; external data is missing, too short or outside the
        model's folder; a tensor's data does not fit its shape; the graph has a cycle or uses a value that
        nothing defines; the opset is unknown.
    UnsupportedError
        The model is valid, but uses something that onnxprune cannot read (map types, sparse attributes).
    """
    path = Path(path)
    raw = _read(path)
    size, digest = len(raw), hashlib.sha256(raw).hexdigest()
    with _located(path):
        proto = _parse(raw)
        del raw
        check_structure(proto)
        for tensor in all_tensors(proto):
            check_tensor(tensor)
        files = locate_external(proto, path)
        notes = _notes(proto, densify(proto))
        open_unknown_dims(all_graphs(proto))
        if proto.training_info:
            log.warning("%s: its training_info is left out", path)
        maps = put_aside(proto)
        model = ir.serde.deserialize_model(proto)
        note_maps(model.graph, maps)
        bind_external(model, path)
        _sort(model)
    size += sum(file.stat().st_size for file in files)
    return LoadedModel(path, digest, model, size, files, notes)


def _notes(proto: onnx.ModelProto, sparse: int) -> tuple[str, ...]:
    """What of a file is written in another form; `sparse` tensors were made dense."""
    lines = []
    if sparse:
        what = "1 sparse tensor of the file is" if sparse == 1 else f"{sparse} sparse tensors of the file are"
        lines.append(
            f"{what} {DENSE}, which takes more bytes where most are zero (`onnxprune sparsify --lock "
            "--sparsity 0 --storage sparse` writes them sparse again)"
        )
    if proto.functions:
        names = sorted({function.name for function in proto.functions})
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        lines.append(
            f"functions of the model ({', '.join(names[:3])}{more}) are written as the nodes inside them"
        )
    return tuple(lines)


@contextlib.contextmanager
def _located(path: Path) -> Iterator[None]:
    """Name the file in every error, and turn what parsers raise on a damaged model into a `ModelError`."""
    try:
        yield
    except OnnxPruneError as error:
        raise type(error)(f"{path}: {error.what}", error.hint) from None
    except Exception as error:
        root = _root(error)
        text = (str(root).splitlines() or [""])[0] or type(root).__name__
        if isinstance(root, NotImplementedError):
            raise UnsupportedError(
                f"{path}: the model uses something that onnxprune cannot read: {text}",
                "Take it out of the model, or export the part that is to be pruned alone.",
            ) from error
        raise ModelError(f"{path}: the model could not be read: {text}", _EXPORT_AGAIN) from error


def _root(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _read(path: Path) -> bytes:
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise UsageError(
                f"{path} is a folder, not an ONNX file", "Give the path of the .onnx file itself."
            )
        if not stat.S_ISREG(status.st_mode):
            raise UsageError(f"{path} is no regular file", "Give the path of an .onnx file.")
        if status.st_size > MESSAGE_LIMIT:
            raise ModelError(
                f"{path} is not an ONNX model: it has {status.st_size:,} bytes, and protobuf ends at 2 GiB",
                "Larger models keep their weights in external data: give the path of the .onnx file itself.",
            )
        raw = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(f"{path} does not exist", "Check the path of the model.") from None
    except OSError as error:
        raise UsageError(
            f"{path} cannot be read: {error.strerror or error}", "Check the path and its permissions."
        ) from error
    except ValueError as error:
        raise UsageError(f"{str(path)!r} is no path: {error}", "Check the path of the model.") from None
    if not raw:
        raise ModelError(f"{path} is empty", "Export or copy the model again.")
    return raw


def _parse(raw: bytes) -> onnx.ModelProto:
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(raw)
    except DecodeError:
        if raw.startswith(b"version https://git-lfs"):
            raise ModelError(
                "this is not an ONNX model but a pointer to one in Git LFS", "Fetch it with git lfs pull."
            ) from None
        kind = "looks like text" if _is_text(raw) else "is damaged, truncated or of another format"
        raise ModelError(
            f"this is not an ONNX model: it cannot be decoded as protobuf and {kind}",
            "Export or copy the model again.",
        ) from None
    return proto


def _is_text(raw: bytes) -> bool:
    try:
        head = raw[:4096].decode("utf-8")
    except UnicodeDecodeError as error:
        head = raw[: error.start].decode("utf-8") if error.start > 4000 else "\0"
    return all(char.isprintable() or char.isspace() for char in head)


def _sort(model: ir.Model) -> None:
    """Put nodes into topological order where they are not; a graph with a cycle is an error."""
    bodies: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    for body in bodies:
        if _is_sorted(body, set(body.inputs)):
            continue
        try:
            body.sort()
        except ValueError:
            raise ModelError(
                "the graph has a cycle, so it cannot be evaluated", "Export the model again."
            ) from None


def _is_sorted(graph: ir.Graph | ir.Function, seen: set[ir.Value]) -> bool:
    """Whether every value is made before it is used, subgraphs included."""
    if isinstance(graph, ir.Graph):
        seen |= {*graph.inputs, *graph.initializers.values()}
    for node in graph:
        if any(value is not None and value not in seen for value in node.inputs):
            return False
        if not all(_is_sorted(body, seen) for body in bodies_of(node)):
            return False
        seen.update(node.outputs)
    return True
