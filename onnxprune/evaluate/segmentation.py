"""Mean intersection over union of segmentation maps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxprune.errors import DataError
from onnxprune.evaluate.classes import CLASS_HINT
from onnxprune.evaluate.fit import OTHER_OUTPUT, Array, check_numbers, check_range, check_rows, class_labels
from onnxprune.evaluate.intervals import ROUNDING, Floats, student_interval
from onnxprune.evaluate.score import Score

IGNORED = 255
"""Label of pixels that count nowhere."""


@dataclass(frozen=True, eq=False)
class Overlaps:
    """Intersections and unions of all classes, in pixels, summed over images.

    Parameters
    ----------
    images
        How many.
    totals
        ``(2 * classes,)``: intersections, then unions.
    products
        ``(2 * classes, 2 * classes)``: the outer product of each image's own vector, summed over images.
    """

    images: int
    totals: Floats
    products: Floats

    def __add__(self, other: Overlaps, /) -> Overlaps:
        return Overlaps(
            self.images + other.images, self.totals + other.totals, self.products + other.products
        )

    def score(self, name: str) -> Score:
        """Return the mean, over the classes that occur in labels or decisions, of intersection over union.

        Both are summed over all images first, as usual. The interval is normal, by the delta method with images
        (not pixels, which depend on one another) as units, with Student's t; it takes the set of classes as
        given.

        Raises
        ------
        DataError
            If no pixel has a label.
        """
        inside, union = self.totals.reshape(2, -1)
        there = union > 0
        if not there.any():
            raise DataError(
                f"every pixel is labelled {IGNORED}, which is ignored", "Give maps of class indices."
            )
        count = int(there.sum())
        safe = np.where(there, union, 1.0)
        shares = inside / safe
        value = float(shares[there].mean())
        slope = np.concatenate([there / safe, -shares / safe]) / count
        spread = float(slope @ self.products @ slope)
        if spread <= ROUNDING * float(np.abs(slope) @ self.products @ np.abs(slope)):
            spread = 0.0
        error = (spread * self.images / max(self.images - 1, 1)) ** 0.5
        interval, note = student_interval(value, error, self.images, unit="image")
        if interval is not None:
            interval = max(interval[0], 0.0), min(interval[1], 1.0)
        return Score(name, value, interval, self.images, note=note)


def mean_iou(outputs: Array, labels: Array) -> Overlaps:
    """Sum up intersections and unions of one batch (see :meth:`Overlaps.score`).

    Parameters
    ----------
    outputs
        Logits, ``(images, classes, height, width)``, or with any other number of spatial axes. One channel is a
        binary decision: class 1 where its logit is above 0. Of equal logits the first wins.
    labels
        Integers, ``(images, height, width)``; pixels with label 255 are ignored.

    Raises
    ------
    DataError
        For other shapes, for NaN, and for labels that are no class.
    """
    if outputs.ndim < 3 or outputs.shape[1] == 0:
        raise DataError(
            f"the output has shape {outputs.shape}, but mIoU needs (images, classes, height, width)",
            OTHER_OUTPUT,
        )
    check_rows(outputs, labels)
    check_numbers(outputs, infinity=True)
    size = outputs.shape[2:]
    hint = f"Give one integer per pixel of the output, {(len(outputs), *size)}; resize the maps, do not crop them."
    classes = class_labels(labels, (len(outputs), *size), "class maps for this output", hint)
    binary = outputs.shape[1] == 1
    decided = outputs[:, 0] > 0 if binary else np.argmax(outputs, axis=1)
    count = 2 if binary else outputs.shape[1]
    known = classes != IGNORED
    check_range(classes[known], count, "classes", CLASS_HINT)
    images = [_overlaps(c[k], d[k], count) for c, d, k in zip(classes, decided, known, strict=True)]
    rows = np.array(images, np.float64).reshape(len(images), 2 * count)
    return Overlaps(len(images), rows.sum(axis=0), rows.T @ rows)


def _overlaps(classes: Array, decided: Array, count: int) -> Array:
    """Return intersections and unions of one image, ``(2, count)``."""
    labelled, found = (np.bincount(each, minlength=count) for each in (classes, decided))
    inside = np.bincount(classes[classes == decided], minlength=count)
    return np.stack([inside, labelled + found - inside])
