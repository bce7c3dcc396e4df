"""Metrics of classifiers: top-k accuracy, macro F1, and top-1 agreement with the original.

Outputs hold logits of shape ``(samples, classes)``; further axes of extent 1 are ignored. A binary classifier may
have one logit per sample, ``(samples,)`` or ``(samples, 1)``: class 1 where it is above 0 (a probability of more
than one half), else class 0. Labels are integers of shape ``(samples,)`` or ``(samples, 1)``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from onnxprune.errors import DataError
from onnxprune.evaluate.fit import (
    OTHER_OUTPUT,
    Array,
    Ints,
    check_numbers,
    check_range,
    check_rows,
    class_labels,
)
from onnxprune.evaluate.intervals import student_interval, wilson
from onnxprune.evaluate.score import Score

CLASS_HINT = "Give the index of the class among the outputs; some models count a background class first."
_LABEL_HINT = "Give one integer per sample, or choose a metric that takes such labels (--metric)."


@dataclass(frozen=True)
class Hits:
    """Correct samples out of all."""

    correct: int
    total: int

    def __add__(self, other: Hits, /) -> Hits:
        return Hits(self.correct + other.correct, self.total + other.total)

    def score(self, name: str) -> Score:
        """Return the share of correct samples with its Wilson interval."""
        return Score(name, self.correct / self.total, wilson(self.correct, self.total), self.total)


def top_k(k: int) -> Callable[[Array, Array], Hits]:
    """Make the tally of top-`k` accuracy: the share of samples whose label is among the `k` highest outputs.

    It takes outputs of shape ``(samples, classes)`` (further axes of extent 1 are ignored) and integer
    labels of shape ``(samples,)``. Of equal outputs the one with the lower index is the higher, as with
    argmax. A sample with a NaN is wrong. The interval is Wilson's.
    """

    def tally(outputs: Array, labels: Array) -> Hits:
        scores = _class_scores(outputs, k)
        check_rows(scores, labels)
        classes = class_labels(labels, (len(scores),), "class indices", _LABEL_HINT)
        count = scores.shape[1]
        check_range(classes, count, "classes", CLASS_HINT)
        own = np.take_along_axis(scores, classes[:, None], axis=1)
        before = np.arange(count) < classes[:, None]
        rank = np.sum((scores > own) | ((scores == own) & before), axis=1)
        correct = (rank < k) & ~np.isnan(scores).any(axis=1)
        return Hits(int(np.sum(correct)), len(classes))

    return tally


def agreement(outputs: Array, reference: Array) -> Hits:
    """Count the samples for which two models decide for the same class; needs no labels.

    Parameters
    ----------
    outputs, reference
        Logits of the model and of the original, both ``(samples, classes)`` or one logit per sample.

    Returns
    -------
    Hits
        The interval of its score is Wilson's.

    Raises
    ------
    DataError
        For other shapes, and for NaN.
    """
    if outputs.shape != reference.shape:
        raise DataError(
            f"the output has shape {outputs.shape}, that of the original {reference.shape}",
            "Compare a model with the one that it was made from.",
        )
    check_numbers(reference, "the original's output", infinity=True)
    mine, theirs = decisions(outputs)[0], decisions(reference)[0]
    return Hits(int(np.sum(mine == theirs)), len(mine))


@dataclass(frozen=True)
class Confusion:
    """How often each pair of (label, decision) occurred; pairs that did not are missing.

    Parameters
    ----------
    cells
        Number of samples per pair.
    """

    cells: Mapping[tuple[int, int], int]

    def __add__(self, other: Confusion, /) -> Confusion:
        cells = Counter(self.cells)
        cells.update(other.cells)
        return Confusion(cells)

    def score(self, name: str) -> Score:
        """Return the mean F1 of the classes that occur among labels or decisions.

        The interval is normal, by the delta method for multinomial counts (Takahashi et al., *Confidence interval
        for micro-averaged F1 and macro-averaged F1 scores*, Applied Intelligence 52, 2022), with Student's t: it
        takes the set of classes as given and wants some dozens of samples per class. Where all samples are right
        (or all wrong) the counts have no spread, and there is none.
        """
        pairs = np.array(list(self.cells), np.int64)
        counts = np.array(list(self.cells.values()), np.float64)
        present, places = np.unique(pairs, return_inverse=True)
        label, decision = places.reshape(pairs.shape).T
        right = label == decision
        size = len(present)
        both = np.bincount(label, counts, size) + np.bincount(decision, counts, size)
        f1 = 2 * np.bincount(label[right], counts[right], size) / both
        value, samples = float(f1.mean()), int(counts.sum())
        pull = (2 * right / both[label] - f1[label] / both[label] - f1[decision] / both[decision]) / size
        variance = float(np.sum(counts * pull**2)) * samples / max(samples - 1, 1)
        interval, note = student_interval(value, variance**0.5, samples)
        if interval is not None:
            interval = max(interval[0], 0.0), min(interval[1], 1.0)
        return Score(name, value, interval, samples, note=note)


def macro_f1(outputs: Array, labels: Array) -> Confusion:
    """Count labels and decisions of one batch, for the macro F1 (see :meth:`Confusion.score`).

    Parameters
    ----------
    outputs
        Logits, ``(samples, classes)`` or one per sample.
    labels
        Integers, ``(samples,)``.

    Raises
    ------
    DataError
        For other shapes, for NaN, and for labels that are no class.
    """
    check_rows(outputs, labels)
    decided, count = decisions(outputs)
    classes = class_labels(labels, (len(decided),), "class indices", _LABEL_HINT)
    check_range(classes, count, "classes", CLASS_HINT)
    return Confusion(Counter(zip(classes.tolist(), decided.tolist(), strict=True)))


def decisions(outputs: Array) -> tuple[Ints, int]:
    """Return the class of each sample (the first of equally high ones), and how many classes there are.

    Raises
    ------
    DataError
        If the outputs are no logits in the sense of this module.
    """
    check_numbers(outputs, infinity=True)
    if outputs.ndim == 0 or any(extent != 1 for extent in outputs.shape[2:]) or outputs.shape[1:2] == (0,):
        raise DataError(
            f"the output has shape {outputs.shape}, expected (samples, classes) or one logit per sample",
            OTHER_OUTPUT,
        )
    rows = outputs.reshape(len(outputs), -1)
    if rows.shape[1] > 1:
        return np.argmax(rows, axis=1).astype(np.int64), rows.shape[1]
    if rows.dtype.kind != "f":
        raise DataError(f"the output has one {rows.dtype.name} per sample, which is no logit", OTHER_OUTPUT)
    return (rows[:, 0] > 0).astype(np.int64), 2


def _class_scores(outputs: Array, k: int) -> Array:
    shape = outputs.shape
    if outputs.ndim < 2 or any(extent != 1 for extent in shape[2:]):
        raise DataError(f"the output has shape {shape}, but accuracy needs (samples, classes)", OTHER_OUTPUT)
    if shape[1] <= k:
        raise DataError(
            f"top-{k} accuracy says nothing about {shape[1]} classes", "Choose a metric with a smaller k."
        )
    return outputs.reshape(shape[:2])
