"""Whether outputs and labels fit what a metric takes; every refusal says what was found and what to do."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from onnxprune.errors import DataError

Array: TypeAlias = npt.NDArray[Any]
Ints: TypeAlias = npt.NDArray[np.int64]

OTHER_OUTPUT = (
    "Choose the output that holds the logits (--output). For a model that is no classifier, give samples without "
    "labels (images in one folder, without class folders): then its distance from the original is measured."
)


def check_rows(outputs: Array, labels: Array) -> None:
    """Raise DataError unless there is one row of outputs for each label."""
    if outputs.ndim == 0 or labels.ndim == 0 or len(outputs) != len(labels):
        rows = len(outputs) if outputs.ndim else 1
        count = len(labels) if labels.ndim else 1
        raise DataError(
            f"the output has {rows} rows for {count} labels",
            "Choose the output that gives one row per sample (--output).",
        )


def check_numbers(array: Array, what: str = "the output", *, infinity: bool = False) -> None:
    """Raise DataError where an array holds NaN or, unless `infinity` is allowed, infinity."""
    if array.dtype.kind not in "fiub":
        raise DataError(f"{what} has dtype {array.dtype.name}, which are no real numbers", OTHER_OUTPUT)
    bad = np.isnan(array) if infinity else ~np.isfinite(array)
    if bad.any():
        row = int(np.argwhere(bad)[0][0]) if array.ndim else 0
        value = "NaN" if np.isnan(array).any() else "infinity"
        raise DataError(
            f"{what} holds {value} (first in row {row} of the batch)",
            "Find out where the model overflows on this sample (float16?), or leave the sample out.",
        )


def class_labels(labels: Array, shape: tuple[int, ...], what: str, hint: str) -> Ints:
    """Return integer labels in the given shape; axes of extent 1 do not matter.

    Raises
    ------
    DataError
        If they are no integers or have another shape; `what` and `hint` say what would fit.
    """
    found = tuple(extent for extent in labels.shape[1:] if extent != 1)
    wanted = tuple(extent for extent in shape[1:] if extent != 1)
    if labels.dtype.kind not in "iub" or found != wanted or len(labels) != shape[0]:
        raise DataError(f"labels of shape {labels.shape} and dtype {labels.dtype.name} are no {what}", hint)
    return labels.reshape(shape).astype(np.int64)


def check_range(labels: Ints, count: int, noun: str, hint: str) -> None:
    """Raise DataError unless all labels are indices of one of the model's `count` classes (or tokens)."""
    if labels.size and (labels.min() < 0 or labels.max() >= count):
        wrong = labels.min() if labels.min() < 0 else labels.max()
        raise DataError(f"label {wrong} is not one of the model's {count} {noun} (0 to {count - 1})", hint)
