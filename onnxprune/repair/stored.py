"""Weights and biases by name, as they are fed to a model or stored in it, and as a matrix and a vector."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from onnxprune.statistics.consumers import Consumer
from onnxprune.statistics.moments import Matrix

Array = np.ndarray[Any, Any]


def read(layer: Consumer, feed: Mapping[str, Array]) -> tuple[Matrix, Matrix]:
    """The weight, (groups, outputs per group, features), and the bias, (outputs,), in the initializer's units.

    Parameters
    ----------
    layer
        The layer.
    feed
        By name, what its initializers are overridden with.
    """
    weight = layer.matrix(feed.get(str(layer.weight.name)))
    if layer.bias is None or layer.bias.const_value is None:
        return weight, np.zeros(layer.outputs)
    stored = feed.get(str(layer.bias.name), layer.bias.const_value.numpy())
    return weight, np.broadcast_to(np.asarray(stored, np.float64).ravel(), (layer.outputs,)).copy()


def named(layer: Consumer, weight: Matrix, bias: Matrix) -> dict[str, Array]:
    """The inverse of `read`; without a bias where the layer has none."""
    found = {str(layer.weight.name): layer.from_matrix(weight).astype(layer.array.dtype)}
    data = None if layer.bias is None else layer.bias.const_value
    if layer.bias is not None and data is not None:
        shape = tuple(int(d) for d in data.shape.numpy())
        shape = shape if math.prod(shape) == len(bias) else (-1,)
        found[str(layer.bias.name)] = bias.reshape(shape).astype(data.dtype.numpy())
    return found
