"""Which layers get zeros in a pattern, and why others do not."""

from __future__ import annotations

from onnxprune.errors import UsageError
from onnxprune.graph.build import AxisGraph
from onnxprune.sparsity.choices import Settled, Sparsity
from onnxprune.sparsity.layers import WeightLayer, find_layers


def handled(
    graph: AxisGraph, sparsity: Sparsity, settled: Settled
) -> tuple[list[WeightLayer], dict[str, str]]:
    """The layers that the pattern divides, and why others stay dense.

    Raises
    ------
    UsageError
        It divides none.
    """
    found = find_layers(graph, only=sparsity.only, ignore=sparsity.ignore)
    left, layers = dict(found.left), []
    looks = settled.solver != "mask" or (settled.criterion is not None and settled.criterion.inputs)
    for layer in found.layers:
        why = sparsity.shape.refuses(layer.grid)
        if looks and not why and not _shaped(graph, layer):
            why = "the shape of its input or output is not known, so what it sees cannot be looked at"
        if why:
            left[layer.label] = why
        else:
            layers.append(layer)
    if not layers:
        whys = [f"  {name}: {why}" for name, why in left.items()]
        raise UsageError(
            f"no layer can get zeros in the pattern {sparsity.shape.name}",
            "\n".join(whys[:8]) or "The model has no layer with a weight of its own.",
        )
    return layers, left


def _shaped(graph: AxisGraph, layer: WeightLayer) -> bool:
    """Whether all extents around a layer are known."""
    shapes = [graph.shapes.dims.get(value) for value in (layer.consumer.x, layer.consumer.y)]
    return all(shape is not None and None not in shape for shape in shapes)
