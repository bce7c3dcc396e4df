"""Statistics of what layers see, unit by unit, for criteria that read activations."""

from __future__ import annotations

import numpy as np

from onnxprune.criteria.criterion import UnitActivations
from onnxprune.criteria.gather import by_unit
from onnxprune.graph.axes import Index
from onnxprune.statistics.collect import InputStatistics
from onnxprune.statistics.consumers import Consumer


def unit_activations(
    layer: Consumer, unit: Index, statistics: InputStatistics, units: int
) -> UnitActivations:
    """Statistics of a layer's features, sorted by unit; units with fewer features than others get zeros."""
    moments = statistics.moments
    second = np.einsum("gff->gf", moments.gram) / max(moments.count, 1.0)
    mean = moments.mean
    matrix = layer.matrix()
    fields = {
        "mean": mean,
        "variance": np.maximum(second - mean**2, 0.0),
        "second_moment": second,
        "nonzero": statistics.positive,
        "weight_energy": np.square(matrix).sum(axis=1),
        "weight_l1": np.abs(matrix).sum(axis=1),
    }
    flat = unit.ravel()
    order, counts, slot = by_unit(flat, units)
    arrays = {}
    for name, values in fields.items():
        arrays[name] = np.zeros((units, int(counts.max())))
        arrays[name][flat[order], slot] = values.ravel()[order]
    return UnitActivations(**arrays)
