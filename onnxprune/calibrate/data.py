"""From whatever the user has (file, folder, Python object) to a :class:`Dataset` that fits the model."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune.calibrate.arrays import ARRAY_SUFFIXES, load_arrays, samples_from_arrays, samples_from_folder
from onnxprune.calibrate.checks import Checked, Samples, cast_note
from onnxprune.calibrate.dataset import Array, Dataset, InputSpec, is_batchable, rows_per_sample, spread
from onnxprune.calibrate.images import find_images, samples_from_images
from onnxprune.calibrate.preprocess import Preprocess
from onnxprune.calibrate.streams import import_object, is_import_spec, read_stream
from onnxprune.calibrate.synthetic import KEYWORD, synthetic_count
from onnxprune.errors import DataError, UsageError

FORMS = (
    "a .npz with arrays named like the model's inputs (and 'labels'), a folder of .npy, .npz or picture "
    "files, or module:name of a CalibrationDataReader or an iterable of feeds"
)
"""What ``--data`` takes, for messages."""


def read_dataset(
    spec: str | os.PathLike[str] | object,
    inputs: Sequence[InputSpec],
    *,
    samples: int | None = None,
    preprocess: Preprocess | str | os.PathLike[str] | None = None,
    bindings: Mapping[str, int] | None = None,
) -> Dataset:
    """Read samples for a model and check them against its inputs.

    Parameters
    ----------
    spec
        A ``.npz`` whose arrays carry the names of the inputs (plus ``labels``); a ``.npy`` for a model of
        one input; a folder of ``.npy`` or ``.npz`` files, one per sample; a folder of pictures, with class
        folders named by class index or class name, or a ``labels.txt``/``labels.csv`` of ``filename,label``
        lines; ``module:name`` of a Python object. Or the object itself: an
        ``onnxruntime.quantization.CalibrationDataReader``, an iterable of feeds, a callable that returns
        one, a mapping of arrays, or a `Dataset`.
    inputs
        What the model takes.
    samples
        At most this many. Of files and folders an evenly spread, always equal subset is taken (see
        :func:`~onnxprune.calibrate.dataset.spread`), not the first ones: data sorted by class keeps all its
        classes. Of readers and iterables the first ones are taken, since their length is not known.
    preprocess
        For a folder of pictures: a recipe, or what :meth:`Preprocess.parse` takes.
    bindings
        Sizes of symbolic axes by name, where the size of pictures depends on them.

    Returns
    -------
    Dataset
        Of tier ``real``. Samples of arrays and of Python objects have all been checked; files of a folder
        are read, decoded and checked one by one when they are used, only the first is checked here.

    Raises
    ------
    UsageError
        If there is no such source, it is the keyword for generated samples (which `onnxprune.inputs` makes), or
        `samples` or `preprocess` do not go with it.
    DataError
        If the data does not fit the model; says which sample, which input, what was expected and what was
        found.
    """
    if samples is not None and samples < 1:
        raise UsageError(f"{samples} samples were asked for", "Give at least 1.")
    if synthetic_count(spec) is not None:
        raise UsageError(
            f"{spec!r} stands for generated samples, which serve to calibrate on, not to measure on",
            f"Give real samples; a file or folder of that name is ./{KEYWORD}.",
        )
    recipe = Preprocess.parse(preprocess) if isinstance(preprocess, str | os.PathLike) else preprocess
    specs = tuple(inputs)
    path = _as_path(spec)
    if path is not None and path.is_dir():
        return _from_folder(path, specs, samples, recipe, bindings or {})
    if recipe is not None:
        raise UsageError(
            f"preprocessing was given, but {spec if path is None else path} is no folder of pictures",
            "Leave --preprocess out: arrays are fed as they are.",
        )
    if path is not None:
        return _from_file(path, specs, samples)
    source = str(spec) if isinstance(spec, str) else type(spec).__name__
    data: Any = import_object(spec) if isinstance(spec, str) else spec
    if isinstance(data, Dataset):
        return data if samples is None else data.take(spread(len(data), samples))
    if isinstance(data, Mapping):
        raw, labels = samples_from_arrays(data, specs, source)
        return _dataset(raw, labels, specs, samples, source, check_all=True)
    return read_stream(data, specs, source, samples)


def _as_path(spec: object) -> Path | None:
    """Return the path that `spec` means, or None where it means a Python object."""
    if isinstance(spec, str):
        if is_import_spec(spec) and not Path(spec).exists():
            return None
        path = Path(spec)
    elif isinstance(spec, os.PathLike):
        path = Path(spec)
    else:
        return None
    if not path.exists():
        raise UsageError(f"there is no data at {path}", f"Data is {FORMS}.")
    return path


def _from_file(path: Path, inputs: tuple[InputSpec, ...], samples: int | None) -> Dataset:
    if path.suffix not in ARRAY_SUFFIXES:
        raise UsageError(f"{path} is no form of data that is understood", f"Data is {FORMS}.")
    arrays = load_arrays(path)
    if isinstance(arrays, np.ndarray):
        if len(inputs) != 1:
            raise DataError(
                f"{path} is one array, but the model has {len(inputs)} inputs", "Give a .npz instead."
            )
        arrays = {inputs[0].name: arrays}
    raw, labels = samples_from_arrays(arrays, inputs, str(path))
    return _dataset(raw, labels, inputs, samples, str(path), check_all=True)


def _from_folder(
    folder: Path,
    inputs: tuple[InputSpec, ...],
    samples: int | None,
    recipe: Preprocess | None,
    bindings: Mapping[str, int],
) -> Dataset:
    arrays = sorted(
        path for path in folder.iterdir() if path.suffix in ARRAY_SUFFIXES and not path.name.startswith(".")
    )
    images = find_images(folder)
    if bool(arrays) == bool(images):
        what = "both arrays and pictures" if arrays else "neither arrays (.npy, .npz) nor pictures"
        raise DataError(f"{folder} holds {what}", f"Data is {FORMS}.")
    raw: Samples
    if arrays:
        if recipe is not None:
            raise UsageError(
                f"preprocessing was given, but {folder} holds arrays, not pictures",
                "Leave --preprocess out: arrays are fed as they are.",
            )
        raw, labels, notes = samples_from_folder(arrays, folder, inputs)
    else:
        raw, labels, notes = samples_from_images(images, folder, inputs, recipe, bindings)
    return _dataset(raw, labels, inputs, samples, str(folder), notes)


def _dataset(
    raw: Samples,
    labels: Array | None,
    inputs: tuple[InputSpec, ...],
    samples: int | None,
    source: str,
    notes: tuple[str, ...] = (),
    *,
    check_all: bool = False,
) -> Dataset:
    """Choose the samples and check them: all, or the first where the others would have to be read."""
    total = len(raw)
    chosen = tuple(spread(total, total if samples is None else samples).tolist())
    checked = Checked(raw, inputs, chosen)
    for index in range(len(checked) if check_all else 1):
        checked[index]
    notes += cast_note(raw[chosen[0]], inputs)
    if len(chosen) < total:
        notes += (f"{len(chosen)} of {total} samples are used, evenly spread",)
    elif samples is not None and samples > total:
        notes += (f"{samples} samples were asked for, there are {total}",)
    rows = rows_per_sample(inputs)
    whole = Dataset(checked, None, "real", source, is_batchable(inputs), rows, notes)
    if labels is None:
        return whole
    picked = np.asarray(chosen, dtype=np.int64)[:, None] * rows + np.arange(rows)
    return Dataset(checked, labels[picked.reshape(-1)], "real", source, whole.batchable, rows, notes)
