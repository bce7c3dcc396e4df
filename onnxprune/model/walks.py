"""Two walks of a model, at two sizes of its symbolic dims, compared."""

from __future__ import annotations

from collections.abc import Container, Mapping

import numpy as np
import onnx_ir as ir

from onnxprune.model.inferred import Dims


def lost(dims: Mapping[ir.Value, Dims], other: Mapping[ir.Value, Dims], inside: Container[ir.Value]) -> bool:
    """Whether the second walk knows less than the first: the model does not fit the other binding.

    What a body makes (`inside`) says nothing: it may be one that does not run then.
    """
    return any(
        value not in other or sum(d is None for d in other[value]) > sum(d is None for d in extents)
        for value, extents in dims.items()
        if value not in inside
    )


def changed_axes(dims: Mapping[ir.Value, Dims], other: Mapping[ir.Value, Dims]) -> set[tuple[ir.Value, int]]:
    """Axes whose extent is not the same at both bindings."""
    changed: set[tuple[ir.Value, int]] = set()
    for value, extents in dims.items():
        theirs = other.get(value, ())
        if len(theirs) != len(extents):
            changed.update((value, axis) for axis in range(len(extents)))
            continue
        changed.update(
            (value, axis) for axis, (a, b) in enumerate(zip(extents, theirs, strict=True)) if a != b
        )
    return changed


def changed_values(
    data: Mapping[ir.Value, np.ndarray], other: Mapping[ir.Value, np.ndarray]
) -> frozenset[ir.Value]:
    """Values that are known at one binding, and not the same at the other."""
    return frozenset(v for v, array in data.items() if v not in other or not np.array_equal(array, other[v]))
