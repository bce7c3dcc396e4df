"""What criteria see of gradients: one array per mask over units, one per parameter that makes units."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[np.floating[Any]]]

MASKS = "mask-gradient"
"""The kind of what criteria read that look at `MaskGradients`."""

WEIGHTS = "weight-gradient"
"""The same for `WeightGradients`."""

LOGITS = "mask-logit"
"""The same for logits of masks that were learned."""

KINDS = frozenset({MASKS, WEIGHTS, LOGITS})
"""What criteria read that look at gradients of a loss."""


@dataclass(frozen=True, eq=False)
class MaskGradients:
    """Gradients of the loss with respect to factors by which consumers see a group's units; the factors are 1.

    Minus the gradient is the first-order change of the loss when a unit goes. Held as float64.

    Attributes
    ----------
    samples
        Shape (units, samples): of every sample's own loss.
    batches
        Shape (units, batches): the same, summed over the samples of a batch.

    Raises
    ------
    ValueError
        The arrays are not matrices of equally many units.
    """

    samples: Array
    batches: Array

    def __post_init__(self) -> None:
        """Widen the arrays, and see that they fit together."""
        _widen(self)
        if self.samples.ndim != 2 or self.batches.ndim != 2 or len(self.samples) != len(self.batches):
            raise ValueError(
                f"no matrices of one number of units: {self.samples.shape}, {self.batches.shape}"
            )

    @property
    def units(self) -> int:
        """Number of units."""
        return len(self.samples)


@dataclass(frozen=True, eq=False)
class WeightGradients:
    """Gradients of the loss with respect to the slices of one parameter that belong to a group's units.

    All arrays are held as float64.

    Attributes
    ----------
    values, gradient
        Shape (units, features): the parameter and, of the loss summed over all samples, its gradient.
    saliency
        Shape (units, batches): `sum |w g|` over a unit's features, g being the gradient of one batch's loss.
    norm
        L2 norm of the whole parameter, for rankings across layers.
    change
        Shape (units, batches): `sum w g`, the same with its signs; minus this is the first-order change of the
        batch's loss when the unit's weights go. None where nobody collected it.

    Raises
    ------
    ValueError
        The arrays do not fit together.
    """

    values: Array
    gradient: Array
    saliency: Array
    norm: float
    change: Array | None = None

    def __post_init__(self) -> None:
        """Widen the arrays, and see that they fit together."""
        _widen(self)
        shapes = self.values.shape, self.gradient.shape, self.saliency.shape
        if shapes[0] != shapes[1] or len(shapes[0]) != 2 or self.saliency.ndim != 2:
            raise ValueError(f"values, gradients and saliencies of shapes {shapes}")
        if len(self.values) != len(self.saliency):
            raise ValueError(f"not equally many units: {shapes}")
        if self.change is not None and self.change.shape != self.saliency.shape:
            raise ValueError(f"changes of shape {self.change.shape}, saliencies of shape {shapes[2]}")

    @property
    def units(self) -> int:
        """Number of units."""
        return len(self.values)


@dataclass(frozen=True, eq=False)
class UnitGradients:
    """What is known of one group.

    Attributes
    ----------
    masks
        None where nobody asked for them, or where nothing consumes the units.
    weights
        One entry per parameter that makes units; empty where nobody asked for them.
    logits
        Shape (units,): of masks that were learned (`onnxprune.criteria.binary`). None as of `masks`.
    """

    masks: MaskGradients | None = None
    weights: Sequence[WeightGradients] = ()
    logits: Array | None = None


def _widen(arrays: Any) -> None:
    for field in fields(arrays):
        value = getattr(arrays, field.name)
        if isinstance(value, np.ndarray):
            object.__setattr__(arrays, field.name, np.asarray(value, np.float64))
