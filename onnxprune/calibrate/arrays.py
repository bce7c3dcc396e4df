"""Samples from arrays: one .npz with everything, a mapping, or a folder with one file per sample."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune.calibrate.checks import LABELS, check_labels, check_names, join_labels
from onnxprune.calibrate.dataset import Array, InputSpec, is_batchable, rows_per_sample
from onnxprune.calibrate.labels import read_label_file
from onnxprune.errors import DataError

ARRAY_SUFFIXES = (".npy", ".npz")


@dataclass(frozen=True, eq=False)
class ArraySamples:
    """Samples cut out of big arrays; every cut is a view.

    Parameters
    ----------
    arrays
        One per input, whole.
    cuts
        Per input: the rows that one sample takes, 0 where the leading axis only counts samples, None where
        the whole array belongs to every sample.
    count
        How many samples there are.
    source
        For messages.
    """

    arrays: Mapping[str, Array]
    cuts: Mapping[str, int | None]
    count: int
    source: str

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int, /) -> Mapping[str, Array]:
        return {name: _cut(array, self.cuts[name], index) for name, array in self.arrays.items()}

    def place(self, index: int) -> str:
        """Say which sample it is."""
        return f"sample {index} of {self.source}"


@dataclass(frozen=True, eq=False)
class FileSamples:
    """One file per sample, read when it is asked for."""

    paths: Sequence[Path]
    inputs: tuple[InputSpec, ...]
    has_labels: bool = field(default=False)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int, /) -> Mapping[str, Array]:
        path = self.paths[index]
        loaded = load_arrays(path)
        arrays = {self.inputs[0].name: loaded} if isinstance(loaded, np.ndarray) else loaded
        specs = {spec.name: spec for spec in self.inputs}
        return {
            name: _with_batch_axis(array, specs.get(name))
            for name, array in arrays.items()
            if not (self.has_labels and name == LABELS)
        }

    def place(self, index: int) -> str:
        """Say which file it is."""
        return str(self.paths[index])


def samples_from_arrays(
    arrays: Mapping[str, Any], inputs: Sequence[InputSpec], source: str
) -> tuple[ArraySamples, Array | None]:
    """Cut arrays that hold all samples into samples.

    The leading axis of an array is the model's own leading axis where that is dynamic in every input; where
    it is fixed at B, B rows make one sample. Else an array has one axis more than the input, which counts
    samples, or exactly the input's shape: then it belongs to every sample.

    Returns
    -------
    tuple
        The samples, and the labels where `arrays` has them.

    Raises
    ------
    DataError
        For wrong names, ranks that do not fit, inputs with different numbers of samples, labels of another
        length.
    """
    given = {name: np.asarray(array) for name, array in arrays.items()}
    names = {spec.name for spec in inputs}
    labels = given.pop(LABELS) if LABELS in given and LABELS not in names else None
    check_names(given, inputs, source)
    batchable = is_batchable(inputs)
    cuts: dict[str, int | None] = {}
    counts: dict[str, int] = {}
    for spec in inputs:
        cuts[spec.name], counts[spec.name] = _how_to_cut(given[spec.name], spec, batchable, source)
    counted = {name: count for name, count in counts.items() if cuts[name] is not None}
    total = max(counted.values(), default=1)
    for name, count in counted.items():
        if count != total:
            largest = next(other for other, number in counted.items() if number == total)
            raise DataError(
                f"{source}: {count} samples for input {name!r}, but {total} for {largest!r}",
                "Give the same number of samples for every input.",
            )
    if total == 0:
        raise DataError(f"{source} holds no samples", "Give at least one sample.")
    if labels is not None:
        labels = check_labels(labels, total * rows_per_sample(inputs), source)
    return ArraySamples(given, cuts, total, source), labels


def samples_from_folder(
    paths: Sequence[Path], folder: Path, inputs: Sequence[InputSpec]
) -> tuple[FileSamples, Array | None, tuple[str, ...]]:
    """Read a folder with one .npy or .npz file per sample; the batch axis may be left out.

    Labels stand in a file of labels (see :mod:`onnxprune.calibrate.labels`) or as ``labels`` in every .npz,
    where the batch axis may be left out as well (unless the first axis that is left is 1 long).

    Returns
    -------
    tuple
        The samples, their labels or None, notes.

    Raises
    ------
    DataError
        If .npy files are given for a model of several inputs, or labels are missing for some samples.
    """
    npy = next((path for path in paths if path.suffix == ".npy"), None)
    if npy is not None and len(inputs) != 1:
        raise DataError(
            f"{npy} carries no input name, and the model has {len(inputs)} inputs",
            "Give one .npz per sample, whose arrays carry the names of the inputs.",
        )
    table = read_label_file(folder)
    if table is not None:
        chosen, labels, notes = table.match(paths)
        return FileSamples(chosen, tuple(inputs)), labels, notes
    inside = LABELS not in {spec.name for spec in inputs} and _has_labels(paths[0])
    own = _labels_inside(paths, rows_per_sample(inputs)) if inside else None
    return FileSamples(paths, tuple(inputs), inside), own, ()


def load_arrays(path: Path) -> Array | dict[str, Array]:
    """Read a .npy (one array) or a .npz (arrays by name); pickled objects are refused.

    Raises
    ------
    DataError
        If the file is missing, damaged, or holds Python objects.
    """
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded
        with loaded:
            return {name: loaded[name] for name in loaded.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(
            f"{path} cannot be read as arrays: {_first_line(error)}",
            "Write it with numpy.save or numpy.savez, without Python objects.",
        ) from error


def _how_to_cut(array: Array, spec: InputSpec, batchable: bool, source: str) -> tuple[int | None, int]:
    """Return the rows per sample (see `ArraySamples.cuts`) and the number of samples."""
    rank = len(spec.shape)
    if rank > 0 and array.ndim == rank:
        leading = spec.shape[0]
        if batchable:
            return 1, len(array)
        if isinstance(leading, int) and leading > 0 and len(array) % leading == 0:
            return leading, len(array) // leading
        return None, 1
    if array.ndim == rank:
        return None, 1
    if array.ndim == rank + 1 and not batchable:
        return 0, len(array)
    raise DataError(
        f"{source}: input {spec.name!r} has shape {array.shape}, expected {spec}, samples first",
        "Give arrays in the model's own layout, batch axis included.",
    )


def _cut(array: Array, rows: int | None, index: int) -> Array:
    if rows is None:
        return array
    return np.asarray(array[index]) if rows == 0 else array[index * rows : (index + 1) * rows]


def _with_batch_axis(array: Array, spec: InputSpec | None) -> Array:
    if (
        spec is None
        or array.ndim != len(spec.shape) - 1
        or (isinstance(spec.shape[0], int) and spec.shape[0] != 1)
    ):
        return array
    return array[None]


def _has_labels(path: Path) -> bool:
    loaded = load_arrays(path)
    return isinstance(loaded, dict) and LABELS in loaded


def _labels_inside(paths: Sequence[Path], rows: int) -> Array:
    found = []
    for path in paths:
        loaded = load_arrays(path)
        if isinstance(loaded, np.ndarray) or LABELS not in loaded:
            raise DataError(f"{path} has no {LABELS!r}, but {paths[0]} has", "Label all samples or none.")
        labels = np.asarray(loaded[LABELS])
        if rows == 1 and (labels.ndim == 0 or len(labels) != 1):
            labels = labels[None]
        found.append(check_labels(labels, rows, str(path)))
    return join_labels(found, [str(path) for path in paths])


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
