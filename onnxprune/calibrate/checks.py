"""Whether one sample fits the model's inputs: names, shapes, dtypes and values.

Casts between two widths of the same kind are done and noted (float64 -> float32, int32 -> int64 where every
value fits). Casts between kinds are refused: an integer picture fed to a float input has most likely missed
its scaling.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from onnxprune.calibrate.dataset import Array, Feed, InputSpec, is_batchable
from onnxprune.errors import DataError

LABELS = "labels"
"""Name of the array that holds labels, where the model has no input of that name."""


_WHOLE = 2.0**53
"""Below it, float64 holds whole numbers exactly."""


class Samples(Protocol):
    """Raw samples as a source holds them; `place` says for people where one of them lies."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Mapping[str, Any]: ...

    def place(self, index: int) -> str:
        """Say where sample `index` comes from: ``sample 7 of data.npz``, ``pictures/cat.jpg``."""
        ...


@dataclass(frozen=True, eq=False)
class Checked:
    """Raw samples that are checked against the model's inputs, and cast, whenever one is read."""

    samples: Samples
    inputs: tuple[InputSpec, ...]
    indices: tuple[int, ...] = field(repr=False)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int, /) -> Feed:
        position = self.indices[index]
        where = self.samples.place(position)
        feed = check_feed(self.samples[position], self.inputs, where)
        check_one_sample(feed, self.inputs, where)
        return feed


def check_feed(feed: Mapping[str, Any], inputs: Sequence[InputSpec], where: str) -> Feed:
    """Check one feed and cast it to the inputs' dtypes; the leading axis of a batch may be longer than 1.

    Parameters
    ----------
    feed
        Name -> array (or anything that numpy turns into one).
    inputs
        What the model takes.
    where
        Place of the feed, for messages.

    Returns
    -------
    dict
        One array per input, in the order of `inputs`; arrays that fit already are not copied.

    Raises
    ------
    DataError
        For missing or unexpected names, a shape or dtype that does not fit, NaN or infinity, a value that the
        model's dtype cannot hold, or two inputs that give one symbolic dim two sizes.
    """
    check_names(feed, inputs, where)
    arrays = {spec.name: _cast(as_array(feed[spec.name], spec.name, where), spec, where) for spec in inputs}
    sizes: dict[str, tuple[int, str]] = {}
    for spec in inputs:
        _check_shape(arrays[spec.name], spec, where, sizes)
    return arrays


def as_array(value: Any, name: str, where: str) -> Array:
    """Turn a value into an array without copying it, or raise DataError."""
    try:
        return np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(
            f"{where}: {name!r} cannot be read as an array: {error}", "Give numpy arrays."
        ) from error


def check_names(names: Iterable[str], inputs: Sequence[InputSpec], where: str) -> None:
    """Raise DataError unless `names` are exactly the names of the inputs."""
    given, wanted = list(names), [spec.name for spec in inputs]
    missing = [name for name in wanted if name not in given]
    unexpected = [name for name in given if name not in wanted]
    listing = ", ".join(f"{spec.name!r} ({spec})" for spec in inputs)
    if missing:
        raise DataError(
            f"{where}: no array for the model's input {missing[0]!r}{did_you_mean(missing[0], unexpected)}",
            f"The model takes {listing}; the data has {', '.join(map(repr, given)) or 'no arrays'}.",
        )
    if unexpected:
        raise DataError(
            f"{where}: {unexpected[0]!r} is not an input of the model",
            f"The model takes {listing}; leave other arrays out, except {LABELS!r}.",
        )


def check_one_sample(feed: Feed, inputs: Sequence[InputSpec], where: str) -> None:
    """Raise DataError unless a feed of a batchable model has a leading axis of 1 everywhere."""
    if not is_batchable(inputs):
        return
    for name, array in feed.items():
        if array.shape[0] != 1:
            raise DataError(
                f"{where}: input {name!r} has shape {array.shape}, but one sample was expected",
                "Give each sample a leading axis of 1, or put all samples into one .npz.",
            )


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ``" (did you mean 'x'?)"`` with the nearest known word, or nothing where none is near."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def kind(dtype: np.dtype[Any]) -> str:
    """Classify a dtype: ``float``, ``int``, ``bool``, ``string`` or ``other`` (complex, records)."""
    if dtype.kind == "f" or dtype.name == "bfloat16" or dtype.name.startswith("float"):
        return "float"
    if dtype.kind in "iu" or dtype.name.startswith(("int", "uint")):
        return "int"
    return {"b": "bool", "O": "string", "U": "string", "S": "string"}.get(dtype.kind, "other")


def cast_note(feed: Mapping[str, Any], inputs: Sequence[InputSpec]) -> tuple[str, ...]:
    """Say which inputs of a raw feed :func:`check_feed` casts."""
    given = {spec.name: np.asarray(feed[spec.name]).dtype for spec in inputs}
    return tuple(
        f"input {spec.name!r}: {given[spec.name].name} data is cast to {spec.dtype.name}"
        for spec in inputs
        if given[spec.name] != spec.dtype and kind(spec.dtype) != "string"
    )


def check_labels(labels: Any, count: int, where: str) -> Array:
    """Check labels against the number of rows; labels that are whole numbers, such as 3.0, become integers.

    Parameters
    ----------
    labels
        ``(count, ...)``: class indices, maps of them, token ids, target arrays. Which of them a metric takes
        is its own business.
    count
        Rows of all samples.
    where
        Their place, for messages.

    Raises
    ------
    DataError
        If their number differs from `count`, or they are no numbers, or NaN.
    """
    array = np.asarray(labels)
    if array.ndim == 0 or len(array) != count:
        length = "one number" if array.ndim == 0 else f"{len(array)} entries"
        raise DataError(
            f"{where}: {LABELS!r} has {length}, but there are {count} samples",
            "Give one label per sample, samples along the leading axis.",
        )
    if kind(array.dtype) not in ("int", "bool", "float"):
        raise DataError(
            f"{where}: {LABELS!r} has dtype {array.dtype.name}",
            "Labels are numbers: the index of each sample's class, or target arrays.",
        )
    if kind(array.dtype) == "float":
        if not np.isfinite(array).all():
            raise DataError(
                f"{where}: {LABELS!r} holds NaN or infinity",
                "Give finite numbers: the index of each sample's class, or target arrays.",
            )
        if np.array_equal(array, np.rint(array)) and np.abs(array).max(initial=0) < _WHOLE:
            return array.astype(np.int64)
    return array


def join_labels(parts: Sequence[Array], places: Sequence[str]) -> Array:
    """Join labels of several files or feeds along the leading axis.

    Parameters
    ----------
    parts
        What :func:`check_labels` returned for each.
    places
        Where each lies, for messages.

    Raises
    ------
    DataError
        If they differ in shape behind the leading axis.
    """
    for part, place in zip(parts, places, strict=True):
        if part.shape[1:] != parts[0].shape[1:]:
            raise DataError(
                f"{place}: {LABELS!r} has shape {part.shape}, but {parts[0].shape} in {places[0]}",
                "Give samples of one size; pad them, with labels that the metric ignores.",
            )
    return np.concatenate(parts)


def _check_shape(array: Array, spec: InputSpec, where: str, sizes: dict[str, tuple[int, str]]) -> None:
    fits = array.ndim == len(spec.shape) and all(
        not isinstance(dim, int) or dim == extent for dim, extent in zip(spec.shape, array.shape, strict=True)
    )
    if not fits:
        raise DataError(
            f"{where}: input {spec.name!r} has shape {array.shape}, expected {spec}",
            "Give arrays in the model's own layout, batch axis included.",
        )
    for dim, extent in zip(spec.shape, array.shape, strict=True):
        if not isinstance(dim, str):
            continue
        size, name = sizes.setdefault(dim, (extent, spec.name))
        if size != extent:
            raise DataError(
                f"{where}: axis {dim!r} is {size} long in input {name!r}, but {extent} in {spec.name!r}",
                "Inputs that share a symbolic axis need the same extent there.",
            )


def _cast(array: Array, spec: InputSpec, where: str) -> Array:
    have, want = kind(array.dtype), kind(spec.dtype)
    if have != want or want == "other":
        raise DataError(
            f"{where}: input {spec.name!r} has dtype {array.dtype.name}, expected {spec.dtype.name}",
            _cast_hint(have, want, spec),
        )
    if want == "float" and not np.isfinite(array).all():
        raise DataError(
            f"{where}: input {spec.name!r} holds NaN or infinity", "Remove the sample, or repair the values."
        )
    if array.dtype == spec.dtype or want in ("bool", "string"):
        return array
    with np.errstate(over="ignore"):
        cast = array.astype(spec.dtype)
    lossless = np.isfinite(cast).all() if want == "float" else np.array_equal(cast.astype(array.dtype), array)
    sign_kept = want == "float" or np.array_equal(cast < 0, array < 0)
    if not (lossless and sign_kept):
        raise DataError(
            f"{where}: input {spec.name!r} holds {array.dtype.name} values out of {spec.dtype.name}'s range",
            f"Give values that {spec.dtype.name} can hold.",
        )
    return cast


def _cast_hint(have: str, want: str, spec: InputSpec) -> str:
    if (have, want) == ("int", "float"):
        return "Scale the values as in training and give floats; integers are not converted silently."
    return f"Convert the array, for instance with .astype({spec.dtype.name!r}), if that is what it means."
