"""Saving a model, or a text, whole or not at all.

Everything is written into a scratch folder beside the target, flushed to the disk, and then renamed into
place. Whatever goes wrong before the rename leaves the old file as it was and no trace of the new one.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import onnx
import onnx_ir as ir

from onnxprune.errors import UsageError
from onnxprune.model.external import external_tensors
from onnxprune.model.serialize import (
    MESSAGE_LIMIT,
    external_entry,
    inner_bytes,
    tensor_proto,
    too_large,
    weight_bytes,
    without_weights,
)
from onnxprune.model.sparse import SPARSE_FROM, sparse_tensor
from onnxprune.model.wire import Streamed, write_data, write_model

EXTERNAL_ABOVE = 1_800_000_000
"""Bytes of weights above which a model is written with external data (protobuf stops at 2 GiB)."""

_ALIGNMENT = 4096
_SMALL = 1024
"""Bytes up to which a tensor stays in the message even so: shapes are read from there."""
_SCRATCH = ".onnxprune-"


def save(
    model: ir.Model,
    path: str | os.PathLike[str],
    *,
    external: bool = False,
    force: bool = False,
    sources: Iterable[str | os.PathLike[str]] = (),
    sparse: Collection[str] = (),
) -> int:
    """Write a model whole or not at all; the same model gives the same bytes.

    Parameters
    ----------
    model
        Not mutated. Lazy and external weights are read one at a time.
    path
        The .onnx file to write; external data goes to `path` + ".data".
    external
        Write weights to a file of their own even where one file would hold them.
    force
        Replace an existing output.
    sources
        Files that must not be written over: the input model and its data files. Files from which the model's
        own external weights are read are never written over.
    sparse
        Initializers that are written as `sparse_initializer`.

    Returns
    -------
    int
        Bytes written, external data included.

    Raises
    ------
    UsageError
        The output exists (without `force`), is one of `sources`, or cannot be written.
    ModelError
        A weight cannot be read.
    UnsupportedError
        The weights in subgraphs and attributes alone are larger than a message.
    """
    path = Path(path)
    external = external or weight_bytes(model) + inner_bytes(model) > EXTERNAL_ABOVE
    inputs = [*sources, *{tensor.path for tensor in external_tensors(model)}]
    check_writable(path, force=force, sources=inputs, external=external)
    data = data_path(path) if external else None
    with _reported(path), _scratch(path) as folder:
        size = _write(model, folder / path.name, folder / data.name if data else None, sparse)
        pairs = [(folder / data.name, data)] if data and (folder / data.name).exists() else []
        _replace_all([*pairs, (folder / path.name, path)], folder)
    return size


def data_path(path: Path) -> Path:
    """Where the external data of a model goes."""
    return path.with_name(path.name + ".data")


def _write(model: ir.Model, path: Path, data: Path | None, sparse: Collection[str]) -> int:
    """Write the model and, where wanted, its data file; return their size."""
    proto, weights = without_weights(model)
    for name in sparse:
        proto.graph.sparse_initializer.append(sparse_tensor(weights.pop(name), name))
    if sparse:
        proto.ir_version = max(proto.ir_version, SPARSE_FROM)
    items: list[Streamed | onnx.TensorProto] = []
    with contextlib.ExitStack() as stack:
        out = None
        for name, tensor in weights.items():
            if data is not None and tensor.dtype != ir.DataType.STRING and tensor.nbytes > _SMALL:
                out = out or stack.enter_context(_durable(data))
                out.seek(-(-out.tell() // _ALIGNMENT) * _ALIGNMENT)
                items.append(external_entry(tensor, name, data.name, out.tell()))
                write_data(out, tensor)
            elif tensor.dtype == ir.DataType.STRING:
                items.append(tensor_proto(tensor, name))
            else:
                items.append(Streamed.of(tensor, name))
    with _durable(path) as file:
        write_model(file, proto, items)
        size = file.tell()
    if size > MESSAGE_LIMIT:
        raise too_large()
    return size + (data.stat().st_size if data is not None and data.exists() else 0)


@contextlib.contextmanager
def _durable(path: Path) -> Iterator[BinaryIO]:
    """Open a file for writing; when it is closed its bytes are on the disk."""
    with path.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def check_writable(
    path: str | os.PathLike[str],
    *,
    force: bool,
    sources: Iterable[str | os.PathLike[str]] = (),
    external: bool = False,
) -> None:
    """Raise UsageError where `path` must not or cannot be written; called before any work is done.

    Parameters
    ----------
    path
        The .onnx file to be written.
    force
        Whether an existing output may be replaced.
    sources
        Files that must not be written over, whatever name or link leads to them.
    external
        Whether a data file will be written, too.
    """
    path = Path(path)
    if "\0" in str(path):
        raise UsageError(f"{str(path)!r} is no path", "Choose another -o.")
    _check_names(path, force=force, sources=sources, external=external)
    with _reported(path), tempfile.TemporaryFile(dir=path.parent):
        pass


def _check_names(
    path: Path, *, force: bool, sources: Iterable[str | os.PathLike[str]], external: bool
) -> None:
    targets = (path, data_path(path)) if external else (path,)
    given = [Path(source) for source in sources]
    with _reported(path):
        if not path.name or path.is_dir():
            raise UsageError(f"the output {path} is a folder", "Give a file name to -o.")
        for target in targets:
            if target.exists() and any(s.exists() and target.samefile(s) for s in given):
                raise UsageError(
                    f"the output {target} is a file of the input model itself",
                    "Choose another -o; the input is never modified.",
                )
        for target in targets:
            if target.is_dir():
                raise UsageError(f"the output {target} is a folder", "Remove it, or choose another -o.")
            if os.path.lexists(target) and not force:
                raise UsageError(
                    f"{target} exists already", "Add --force to replace it, or choose another -o."
                )
        if not path.parent.is_dir():
            raise UsageError(f"the folder {path.parent} does not exist", "Create it first.")


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file (plan, report) whole or not at all.

    Raises
    ------
    UsageError
        It cannot be written.
    """
    path = Path(path)
    with _reported(path), _scratch(path) as folder:
        with _durable(folder / path.name) as file:
            file.write(text.encode("utf-8"))
        _replace_all([(folder / path.name, path)], folder)


@contextlib.contextmanager
def _scratch(path: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix=_SCRATCH, dir=path.parent, ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def _replace_all(pairs: Sequence[tuple[Path, Path]], scratch: Path) -> None:
    """Rename each written file to its target; the last rename decides.

    On failure or Ctrl-C before that one the old files come back. (A process that is killed between two
    renames can leave the new data file beside the old model; no order of renames avoids that.)
    """
    backups: dict[Path, Path | None] = {}
    last = pairs[-1][0]
    try:
        for number, (written, target) in enumerate(pairs):
            if written != last:
                backups[target] = _backup(target, scratch / f"old-{number}")
            os.replace(written, target)
    except BaseException:
        if last.exists():
            for target, backup in backups.items():
                if backup is not None:
                    os.replace(backup, target)
                else:
                    target.unlink(missing_ok=True)
        raise


def _backup(target: Path, backup: Path) -> Path | None:
    if not os.path.lexists(target):
        return None
    try:
        os.link(target, backup, follow_symlinks=False)
    except OSError:
        os.replace(target, backup)  # a file system without hard links
    return backup


@contextlib.contextmanager
def _reported(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UsageError(
            f"{path} cannot be written: {error.strerror or error}",
            "Check the folder's permissions and free space; nothing was written.",
        ) from error
