"""Running models that onnxruntime has kernels for, and those in bfloat16, which it runs as float32."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir

from onnxprune.calibrate.sessions import open_session, run
from onnxprune.errors import ModelError
from onnxprune.model.convert import to_float32
from onnxprune.testing.feeds import Array

Results = Callable[[Mapping[str, Array]], dict[str, Array]]
TOLERANCE, HALF = 1e-4, 2e-2
"""Largest difference between two outputs, as a share of the largest value; with a part in 16 bits."""


def results_of(model: ir.Model, optimize: bool = False) -> Results:
    """A function from inputs to outputs, by one session; what onnxruntime refuses is an AssertionError."""
    widened = in_bfloat16(model)
    try:
        session = open_session(to_float32(model) if widened else model, threads=1, optimize=optimize)
    except ModelError as error:
        raise AssertionError(f"onnxruntime cannot load the model: {error}") from error

    def results(feed: Mapping[str, Array]) -> dict[str, Array]:
        given = {name: as_fed(array) if widened else array for name, array in feed.items()}
        try:
            return run(session, given)
        except ModelError as error:
            raise AssertionError(f"onnxruntime cannot run the model: {error}") from error

    return results


def in_bfloat16(model: ir.Model) -> bool:
    """Whether some value is in bfloat16."""
    values = [*model.graph.inputs, *model.graph.initializers.values()]
    values += [value for node in model.graph for value in node.outputs]
    return any(value.dtype == ir.DataType.BFLOAT16 for value in values)


def as_fed(array: Array) -> Array:
    """An input of a model that was widened."""
    return array.astype("float32") if array.dtype.name in ("float16", "bfloat16", "float64") else array


def difference(expected: Mapping[str, Array], found: Mapping[str, Array], half: bool) -> str | None:
    """The first output in which two results differ by more than a share of the largest value, and by how much."""
    tolerance = HALF if half else TOLERANCE
    for name, array in expected.items():
        ours, theirs = array.astype(np.float64), found[name].astype(np.float64)
        top = np.abs(ours).max(initial=0.0)
        off = np.abs(ours - theirs).max(initial=0.0) if ours.shape == theirs.shape else np.inf
        if not off <= tolerance * top:
            return f"{name} is off by {off:.3g} of {top:.3g}"
    return None
