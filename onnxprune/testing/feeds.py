"""Random inputs for small models, and running them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.calibrate.sessions import open_session, run
from onnxprune.errors import ModelError

Array = np.ndarray[Any, Any]


def execute(model: ir.Model, feed: Mapping[str, Array]) -> dict[str, Array]:
    """Run a model as it stands; what onnxruntime refuses is an AssertionError."""
    try:
        return run(open_session(model, threads=1, optimize=False), feed)
    except ModelError as error:
        raise AssertionError(f"onnxruntime cannot run the model: {error}") from error


def make_feeds(
    model: ir.Model, highs: Mapping[str, int], bindings: Mapping[str, int] | None = None
) -> dict[str, Array]:
    """Normal floats (numbers near 1 for the feeds of activations), integers in [0, high)."""
    rng = np.random.default_rng(1)
    feed: dict[str, Array] = {}
    for value in model.graph.inputs:
        if value.const_value is not None or value.dtype is None:
            continue
        name, dtype = str(value.name), value.dtype.numpy()
        shape = [
            d if isinstance(d, int) else (bindings or {}).get(str(d.value), 1) for d in value.shape or ()
        ]
        if name.endswith("/feed"):
            feed[name] = np.full(shape, 0.99, np.float32)
        elif value.dtype.is_floating_point():
            feed[name] = rng.standard_normal(shape).astype(dtype)
        else:
            feed[name] = rng.integers(0, highs.get(name, 2), shape).astype(dtype)
    return feed
