"""Loading a model file with every check that a clear error needs, and saving one whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError

from onnxprune.errors import ModelError, UnsupportedError, UsageError

EXTERNAL_ABOVE = 1_800_000_000
"""Bytes of weights above which a model is written with external data (protobuf stops at 2 GiB)."""


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
    """

    path: Path
    sha256: str
    ir: ir.Model
    bytes: int
    data_files: tuple[Path, ...] = ()

    def __repr__(self) -> str:
        return f"LoadedModel({str(self.path)!r}, {self.ir.graph.num_nodes()} nodes, {self.bytes:,} bytes)"


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
        model's folder; the graph has a cycle or uses a value that nothing defines; the opset is unknown.
    """
    path = Path(path)
    raw = _read(path)
    proto = _parse(path, raw)
    _check_opsets(path, proto)
    files = _check_external(path, proto)
    _densify(proto.graph)
    _check_wiring(path, proto.graph, set())
    try:
        model = ir.serde.deserialize_model(proto)
    except (ValueError, TypeError, KeyError, RuntimeError, ir.serde.SerdeError) as error:
        raise ModelError(
            f"{path}: the graph could not be read: {_root(error)}", "Run onnx.checker on the file to see more."
        ) from error
    for graph in (model.graph, *model.graph.subgraphs()):
        ir.external_data.set_base_dir(graph, str(path.resolve().parent))
    _sort(path, model)
    size = len(raw) + sum(file.stat().st_size for file in files)
    return LoadedModel(path, hashlib.sha256(raw).hexdigest(), model, size, tuple(sorted(files)))


def _read(path: Path) -> bytes:
    if path.is_dir():
        raise UsageError(f"{path} is a folder, not an ONNX file", "Give the path of the .onnx file itself.")
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist", "Check the path of the model.") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}", "Check the file's permissions.") from error
    if not raw:
        raise ModelError(f"{path} is empty", "Export or copy the model again.")
    return raw


def _parse(path: Path, raw: bytes) -> onnx.ModelProto:
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(raw)
    except DecodeError:
        kind = "looks like text" if _is_text(raw) else "may be truncated"
        raise ModelError(
            f"{path} is not an ONNX model: it cannot be decoded as protobuf and {kind}",
            "Export or copy the model again.",
        ) from None
    if not proto.ir_version or not proto.HasField("graph") or not proto.graph.output:
        raise ModelError(
            f"{path} is valid protobuf but no ONNX model (no IR version, graph or graph outputs)",
            "Give the exported model itself, not a tensor, a checkpoint or a graph without outputs.",
        )
    return proto


def _is_text(raw: bytes) -> bool:
    try:
        return raw[:4096].decode("utf-8").isprintable() or b"\n" in raw[:4096]
    except UnicodeDecodeError:
        return False


def _check_opsets(path: Path, proto: onnx.ModelProto) -> None:
    versions = {entry.domain: entry.version for entry in proto.opset_import}
    default = versions.get("", versions.get("ai.onnx"))
    newest = onnx.defs.onnx_opset_version()
    if default is None and not versions:
        raise ModelError(f"{path} imports no operator set", "Export the model again.")
    if default is not None and not 1 <= default <= newest:
        raise ModelError(
            f"{path} uses opset {default}, which the installed onnx {onnx.__version__} does not know "
            f"(newest: {newest})",
            "Upgrade onnx, or convert the model with onnx.version_converter.",
        )


def _check_external(path: Path, proto: onnx.ModelProto) -> set[Path]:
    """Check location, size and containment of all external tensors; return their files."""
    folder = path.resolve().parent
    files: set[Path] = set()
    for tensor in _tensors(proto.graph):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location = entries.get("location", "")
        file = (folder / location).resolve()
        if not location or Path(location).is_absolute() or folder not in file.parents:
            raise ModelError(
                f"{path}: tensor {tensor.name!r} points to external data {location!r} outside the model's folder",
                "Put the data file beside the model and save the model with a relative location.",
            )
        if not file.is_file():
            raise ModelError(
                f"{path}: the external data file {location!r} (tensor {tensor.name!r}) is missing",
                f"Put it into {path.parent}.",
            )
        _check_extent(path, tensor, entries, file)
        files.add(file)
    return files


def _check_extent(path: Path, tensor: onnx.TensorProto, entries: dict[str, str], file: Path) -> None:
    offset = int(entries.get("offset", 0))
    bits = ir.DataType(tensor.data_type).bitwidth
    needed = math.ceil(math.prod(tensor.dims) * bits / 8)
    length = int(entries.get("length", needed))
    if length < needed or offset + needed > file.stat().st_size:
        raise ModelError(
            f"{path}: tensor {tensor.name!r} needs {needed} bytes at offset {offset} of {file.name!r}, which "
            f"has {file.stat().st_size} bytes (declared length {length})",
            "The data file is truncated or belongs to another model: copy it again.",
        )


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        for attr in node.attribute:
            if attr.HasField("t"):
                yield attr.t
            if attr.HasField("g"):
                yield from _tensors(attr.g)
            for sub in attr.graphs:
                yield from _tensors(sub)


def _densify(graph: onnx.GraphProto) -> None:
    """Turn `sparse_initializer` entries into dense ones: onnx-ir drops them silently."""
    for sparse in graph.sparse_initializer:
        values = onnx.numpy_helper.to_array(sparse.values)
        indices = onnx.numpy_helper.to_array(sparse.indices)
        dense = np.zeros(math.prod(sparse.dims), values.dtype)
        flat = (
            np.ravel_multi_index(tuple(indices.T), tuple(sparse.dims)) if indices.ndim == 2 else indices
        )
        dense[flat] = values
        graph.initializer.append(
            onnx.numpy_helper.from_array(dense.reshape(tuple(sparse.dims)), sparse.values.name)
        )
    del graph.sparse_initializer[:]


def _check_wiring(path: Path, graph: onnx.GraphProto, outer: set[str]) -> None:
    """Every name that is used must be defined somewhere, once."""
    defined = outer | {v.name for v in graph.input} | {t.name for t in graph.initializer}
    produced: set[str] = set()
    for node in graph.node:
        for name in node.output:
            if name and name in produced:
                raise ModelError(
                    f"{path}: value {name!r} is produced by two nodes (second: {node.op_type} {node.name!r})",
                    "The graph is not valid ONNX: export it again.",
                )
            produced.add(name)
    defined |= produced
    for node in graph.node:
        for name in node.input:
            if name and name not in defined:
                raise ModelError(
                    f"{path}: node {node.name!r} ({node.op_type}) uses {name!r}, which nothing defines",
                    "The graph is not valid ONNX: export it again.",
                )
        for attr in node.attribute:
            for sub in (*([attr.g] if attr.HasField("g") else []), *attr.graphs):
                _check_wiring(path, sub, defined)
    for value in graph.output:
        if value.name not in defined:
            raise ModelError(
                f"{path}: the graph output {value.name!r} is produced by no node",
                "The graph is not valid ONNX: export it again.",
            )


def _sort(path: Path, model: ir.Model) -> None:
    """Put nodes into topological order where they are not; a graph with a cycle is an error."""
    seen: set[ir.Value] = set()
    ordered = True
    for node in model.graph:
        for value in node.inputs:
            producer = None if value is None else value.producer()
            if producer is not None and producer.graph is model.graph and value not in seen:
                ordered = False
        seen.update(node.outputs)
    if ordered:
        return
    try:
        model.graph.sort()
    except ValueError:
        raise ModelError(
            f"{path}: the graph has a cycle, so it cannot be evaluated", "Export the model again."
        ) from None


def _root(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def save(
    model: ir.Model,
    path: str | os.PathLike[str],
    *,
    external: bool = False,
    force: bool = False,
    sources: tuple[str | os.PathLike[str], ...] = (),
) -> int:
    """Write a model whole or not at all: into a temporary file beside `path`, then an atomic replace.

    Parameters
    ----------
    model
        Not mutated.
    path
        The .onnx file to write; external data goes to `path` + ".data".
    external
        Write weights to a file of their own even where one file would hold them.
    force
        Replace an existing output.
    sources
        Files that must not be written over (the input model).

    Returns
    -------
    int
        Bytes written, external data included.

    Raises
    ------
    UsageError
        The output exists (without `force`), is one of `sources`, or its folder cannot be written.
    """
    path = Path(path)
    check_writable(path, force=force, sources=sources)
    total = sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)
    external = external or total > EXTERNAL_ABOVE
    data = path.with_name(path.name + ".data")
    with _reported(path), tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as scratch:
        file = Path(scratch) / path.name
        if external:
            ir.save(model, file, external_data=data.name)
        else:
            file.write_bytes(_serialize(model))
        size = file.stat().st_size
        written = Path(scratch) / data.name
        if written.exists():
            size += written.stat().st_size
            os.replace(written, data)
        os.replace(file, path)
    return size


def _serialize(model: ir.Model) -> bytes:
    proto = ir.to_proto(model)
    for tensor in _tensors(proto.graph):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            raise UnsupportedError(
                f"tensor {tensor.name!r} is external, but the model is written as one file",
                "Write it with external data.",
            )
    return bytes(proto.SerializeToString(deterministic=True))


def check_writable(
    path: str | os.PathLike[str], *, force: bool, sources: tuple[str | os.PathLike[str], ...] = ()
) -> None:
    """Raise UsageError where `path` must not or cannot be written; called before any work is done."""
    path = Path(path)
    for target in (path, path.with_name(path.name + ".data")):
        for source in sources:
            if target.exists() and Path(source).exists() and target.samefile(source):
                raise UsageError(
                    f"the output {target} is a file of the input model itself",
                    "Choose another -o; the input is never modified.",
                )
    if path.is_dir():
        raise UsageError(f"the output {path} is a folder", "Give a file name to -o.")
    if path.exists() and not force:
        raise UsageError(f"{path} exists already", "Add --force to replace it, or choose another -o.")
    folder = path.parent
    if not folder.is_dir():
        raise UsageError(f"the folder {folder} does not exist", "Create it first.")
    with _reported(path), tempfile.TemporaryFile(dir=folder):
        pass


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file (plan, report) whole or not at all."""
    path = Path(path)
    with _reported(path):
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as out:
                out.write(text)
            umask = os.umask(0)
            os.umask(umask)
            os.chmod(name, 0o666 & ~umask)
            os.replace(name, path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name)
            raise


@contextlib.contextmanager
def _reported(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UsageError(
            f"{path} cannot be written: {error.strerror or error}",
            "Check the folder's permissions and free space; nothing was written.",
        ) from error
