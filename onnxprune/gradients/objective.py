"""Which loss is differentiated on calibration samples, and what is fed to it.

labels
    The loss that goes with the data's labels: cross-entropy for classes, per pixel and per token too; squared error
    for numbers. Labels that are the model's own input tokens are predicted from the position before.
sampled
    Cross-entropy with classes drawn from the model's own predictions. Its squared gradients average to the Fisher
    information (the labels' give the empirical one), and its gradients to zero. Of a model's first output, as with
    labels.
outputs
    The outputs times random signs, drawn per sample (Hutchinson): squared gradients average to the Gauss-Newton
    curvature of the squared distance to the dense outputs, whose own gradient is zero. Of several outputs each is
    divided by its standard deviation on the first batch.
distance
    Not to be asked for: what takes the place of `outputs` where the model is not the original (`off_original`).
    Squared distance to the original's outputs, 1 for outputs that are lost altogether.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from zlib import crc32

import numpy as np
import onnx_ir as ir

from onnxprune.errors import DataError, UsageError
from onnxprune.gradients.losses import (
    BinaryCrossEntropy,
    CrossEntropy,
    Loss,
    NextToken,
    Projection,
    SquaredError,
    WeightedSum,
)
from onnxprune.model import edit
from onnxprune.model.shapes import Dims, Shapes

Array = np.ndarray[Any, Any]

LOSSES = ("auto", "labels", "sampled", "outputs")
"""auto: labels where the data has some that fit the first output, else sampled for a classifier, else outputs."""

LABELS = "labels"
"""Name of the input that holds labels, where the model has no value of that name."""

SIGNS = "signs"
"""Prefix of the inputs that hold random signs."""

ORIGINAL = "original"
"""Prefix of the inputs that hold the original's outputs."""

_VOID = 255
_IGNORED = -100


class Draws:
    """A stream of random numbers per name: a sample's do not depend on how many run at once.

    Parameters
    ----------
    seed
        Of all streams.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._streams: dict[str, np.random.Generator] = {}

    def of(self, name: str) -> np.random.Generator:
        """The stream of that name."""
        if name not in self._streams:
            self._streams[name] = np.random.default_rng([self._seed, crc32(name.encode())])
        return self._streams[name]


@dataclass(frozen=True, eq=False)
class Objective:
    """A loss, and how its inputs are made.

    Attributes
    ----------
    kind
        "labels", "sampled", "outputs" or "distance".
    loss
        What the graph computes.
    output
        Name of the output with classes; "" for `outputs`.
    axis
        Its axis of classes.
    ending
        "Softmax", "LogSoftmax" or "Sigmoid" where the output ends in one, else "".
    trailing
        Extents of the labels behind the samples'.
    labels
        Name of the input that holds labels.
    """

    kind: str
    loss: Loss
    output: str = ""
    axis: int = -1
    ending: str = ""
    trailing: tuple[int, ...] = ()
    labels: str = LABELS
    _scales: dict[str, float] = field(default_factory=dict, repr=False)

    @property
    def sentence(self) -> str:
        """What is differentiated, for people."""
        if self.kind == "outputs":
            return "all outputs times random signs"
        if self.kind == "distance":
            return "the squared distance to the original's outputs"
        what = {
            CrossEntropy: "cross-entropy",
            BinaryCrossEntropy: "binary cross-entropy",
            NextToken: "cross-entropy with the token that follows",
            SquaredError: "squared error",
        }[type(self.loss)]
        whose = (
            "the data's labels" if self.kind == "labels" else "labels drawn from the model's own predictions"
        )
        return f"{what} at the output {self.output}, {whose}"

    @property
    def classes(self) -> bool:
        """Whether one of several classes is told apart along `axis` of the output."""
        return isinstance(self.loss, CrossEntropy | NextToken)

    @property
    def needs_outputs(self) -> bool:
        """Whether the model's own outputs have to be known first."""
        return self.kind != "labels"

    def feed(self, outputs: Mapping[str, Array], labels: Array | None, draws: Draws) -> dict[str, Array]:
        """Inputs of the loss for one batch.

        Parameters
        ----------
        outputs
            The model's, where they are needed.
        labels
            Of the batch's samples.
        draws
            Random numbers for labels and signs.
        """
        if self.kind == "labels" and labels is not None:
            return self._given(labels)
        if self.kind == "sampled":
            return {
                self.labels: self._sampled(np.asarray(outputs[self.output], np.float64), draws.of(LABELS))
            }
        if self.kind == "distance":
            return {
                f"{ORIGINAL}/{name}": array.astype(np.float32)
                for name, array in outputs.items()
                if array.dtype.kind == "f"
            }
        found = {}
        for name, array in outputs.items():
            if array.dtype.kind == "f":
                scale = self._scales.setdefault(name, _scale(array, len(outputs)))
                found[f"{SIGNS}/{name}"] = np.where(draws.of(name).random(array.shape) < 0.5, -scale, scale)
        return {name: array.astype(np.float32) for name, array in found.items()}

    def _given(self, labels: Array) -> dict[str, Array]:
        labels = labels.reshape(len(labels), *self.trailing)
        if isinstance(self.loss, NextToken):
            counts = labels != _IGNORED
            return {
                self.labels: np.where(counts, labels, 0).astype(np.int64),
                f"{self.labels}/weight": counts.astype(np.float32),
            }
        if isinstance(self.loss, CrossEntropy):
            return {self.labels: labels.astype(np.int64)}
        return {self.labels: labels.astype(np.float32)}

    def _sampled(self, z: Array, rng: np.random.Generator) -> Array:
        if isinstance(self.loss, BinaryCrossEntropy):
            p = z if self.ending else 1 / (1 + np.exp(-z))
            return (rng.random(z.shape) < p).astype(np.float32)
        z = np.moveaxis(z, self.axis, -1)
        if self.ending != "Softmax":
            z = np.exp(z - z.max(axis=-1, keepdims=True))
        below = np.cumsum(z, axis=-1)
        drawn = (below < rng.random(z.shape[:-1])[..., None] * below[..., -1:]).sum(axis=-1)
        return np.asarray(np.minimum(drawn, z.shape[-1] - 1), np.int64)


def off_original(objective: Objective, outputs: Mapping[str, Array]) -> Objective:
    """A loss that is least at the original: the same, or the distance to its outputs instead of random signs.

    Parameters
    ----------
    outputs
        The original's on the first samples; these are on the leading axis.
    """
    if objective.kind != "outputs":
        return objective
    parts = []
    for name, array in outputs.items():
        if array.dtype.kind == "f" and array.size:
            spread = float(array.astype(np.float64).var())
            per_sample = max(array.size // max(len(array), 1), 1)
            weight = 1.0 / (per_sample * spread) if np.isfinite(spread) and spread > 0 else 1.0 / per_sample
            parts.append((weight, SquaredError(name, f"{ORIGINAL}/{name}")))
    return replace(objective, kind="distance", loss=WeightedSum(tuple(parts)))


def _scale(array: Array, outputs: int) -> float:
    """What makes outputs of several scales count alike."""
    spread = float(array.astype(np.float64).std()) if outputs > 1 and array.size else 1.0
    return 1.0 / spread if np.isfinite(spread) and spread > 0 else 1.0


def choose_objective(
    model: ir.Model,
    shapes: Shapes,
    wanted: str,
    labels: Array | None,
    feed: Mapping[str, Array] | None = None,
) -> Objective:
    """The loss for a model and its data.

    Parameters
    ----------
    model, shapes
        The model as analysed.
    wanted
        One of `LOSSES`.
    labels
        Of the data, samples first; None where it has none.
    feed
        The first samples: tells labels that are the model's own input tokens.

    Raises
    ------
    UsageError
        The data has no labels, they do not fit the model's first output, or it has no classes to draw labels from.
    DataError
        Labels are no classes of the model.
    """
    if wanted not in LOSSES:
        raise UsageError(f"there is no loss {wanted!r}", f"Known: {', '.join(LOSSES)}.")
    outputs = [value for value in model.graph.outputs if _floats(value)]
    if not outputs:
        raise UsageError("the model has no float output, so it has no gradients", "Take another criterion.")
    first, dims = outputs[0], shapes.dims.get(outputs[0])
    name, label = str(first.name), edit.fresh(model.graph, LABELS)
    if wanted == "labels" and labels is None:
        raise UsageError(
            "--loss labels needs labels, and the data has none",
            "Give some, or take --loss sampled or outputs.",
        )
    if wanted in ("auto", "labels") and labels is not None and dims is not None:
        found = _labelled(name, label, dims, labels, feed or {})
        if found is not None:
            return replace(found, labels=label)
    if wanted == "labels":
        raise UsageError(
            f"labels of shape {() if labels is None else labels.shape} do not go with the output {name!r} of "
            f"extents {dims}",
            "Give classes, per sample, pixel or token, or numbers of the output's shape; or take --loss outputs.",
        )
    if wanted in ("auto", "sampled") and dims is not None:
        found = _classifier(name, label, first, dims, forced=wanted == "sampled", alone=len(outputs) == 1)
        if found is not None:
            return replace(found, labels=label)
    if wanted == "sampled":
        raise UsageError(
            f"the output {name!r} of extents {dims} has no classes to draw labels from",
            "Take --loss outputs.",
        )
    return Objective("outputs", Projection(tuple(str(value.name) for value in outputs), SIGNS))


def _floats(value: ir.Value) -> bool:
    return value.dtype is None or (value.dtype.is_floating_point() and isinstance(value.type, ir.TensorType))


def _labelled(
    name: str, label: str, dims: Dims, labels: Array, feed: Mapping[str, Array]
) -> Objective | None:
    """The loss with labels, None where they do not fit."""
    if labels.dtype.kind == "f":
        same = labels.ndim == len(dims) and all(
            d is None or d == n for d, n in zip(dims[1:], labels.shape[1:], strict=True)
        )
        return (
            Objective("labels", SquaredError(name, label), name, trailing=labels.shape[1:]) if same else None
        )
    if labels.dtype.kind not in "iub":
        return None
    per_sample = all(extent == 1 for extent in labels.shape[1:])
    if per_sample and all(extent == 1 for extent in dims[1:]):
        _check(labels, 2, ())
        return Objective("labels", BinaryCrossEntropy(name, label), name, trailing=(1,) * len(dims[1:]))
    if len(dims) < 2:
        return None
    if per_sample and dims[1] is not None and dims[1] > 1 and all(extent == 1 for extent in dims[2:]):
        _check(labels, dims[1], ())
        return Objective("labels", CrossEntropy(name, label, axis=1), name, 1, trailing=(1,) * len(dims[2:]))
    if labels.ndim != len(dims) - 1:
        return None
    trailing = labels.shape[1:]
    if len(dims) == 3 and labels.shape[1] == dims[1] and dims[2] is not None:
        _check(labels, dims[2], (_IGNORED,))
        if any(np.array_equal(array, labels[: len(array)]) for array in feed.values()):
            return Objective("labels", NextToken(label, name, f"{label}/weight"), name, trailing=trailing)
        loss = CrossEntropy(name, label, axis=-1, ignore=_IGNORED)
        return Objective("labels", loss, name, trailing=trailing)
    if labels.shape[1:] == dims[2:] and dims[1] is not None and dims[1] > 1:
        _check(labels, dims[1], (_VOID,))
        loss = CrossEntropy(name, label, axis=1, ignore=_VOID)
        return Objective("labels", loss, name, 1, trailing=trailing)
    return None


def _check(labels: Array, classes: int, ignored: tuple[int, ...]) -> None:
    counts = labels[~np.isin(labels, ignored)]
    if counts.size and (counts.min() < 0 or counts.max() >= classes):
        bad = counts.max() if counts.max() >= classes else counts.min()
        raise DataError(
            f"the label {bad} is none of the model's {classes} classes",
            "Give the index of the class among the outputs, or take --loss sampled, which needs no labels.",
        )


def _classifier(
    name: str, label: str, output: ir.Value, dims: Dims, *, forced: bool, alone: bool
) -> Objective | None:
    """The loss with labels that the model draws; None for a model that does not look like a classifier."""
    ending, over = _ending(output, len(dims))
    rank = len(dims)
    if not (alone or forced):  # what other outputs see would not count
        return None
    if ending == "Sigmoid" or (forced and all(extent == 1 for extent in dims[1:])):
        if any(extent != 1 for extent in dims[1:]):
            return None
        return Objective("sampled", BinaryCrossEntropy(name, label), name, ending=ending)
    if ending:
        axis = over
    elif rank >= 2 and all(extent == 1 for extent in dims[2:]):
        axis = 1
    elif forced and rank >= 3:
        axis = 2 if rank == 3 else 1
    else:
        return None
    if (dims[axis] or 0) < 2:
        return None
    return Objective("sampled", CrossEntropy(name, label, axis=axis), name, axis, ending)


def _ending(output: ir.Value, rank: int) -> tuple[str, int]:
    """The activation that ends an output, and its axis."""
    node = output.producer()
    while node is not None and node.op_type == "Identity" and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    if node is None or node.domain not in ("", "ai.onnx"):
        return "", 1
    if node.op_type == "Sigmoid":
        return "Sigmoid", 1
    if node.op_type not in ("Softmax", "LogSoftmax"):
        return "", 1
    version = 13 if node.graph is None else node.graph.opset_imports.get("", 13)
    axis = node.attributes.get("axis")
    return node.op_type, (axis.as_int() if axis is not None else -1 if version >= 13 else 1) % rank
