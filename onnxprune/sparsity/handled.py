"""Which layers get zeros in a pattern, and why others do not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from onnxprune.choosing.evidence import Evidence
from onnxprune.errors import UsageError
from onnxprune.graph.build import AxisGraph
from onnxprune.model.taps import reached
from onnxprune.repair.targets import undecided
from onnxprune.sparsity.choices import Settled, Sparsity
from onnxprune.sparsity.layers import WeightLayer, find_layers
from onnxprune.statistics.views import NEVER, sights


def handled(
    graph: AxisGraph, sparsity: Sparsity, settled: Settled
) -> tuple[list[WeightLayer], dict[str, str]]:
    """The layers that the pattern divides, and why others stay dense.

    Those in bodies are among them where no gradients are looked at, which are not taken of weights there.

    Raises
    ------
    UsageError
        It divides none.
    """
    inside = not settled.differentiates
    found = find_layers(graph, only=sparsity.only, ignore=sparsity.ignore, inside=inside)
    left, layers = dict(found.left), []
    looks = settled.solver != "mask" or (settled.criterion is not None and settled.criterion.inputs)
    nodes = {layer.consumer.node for layer in found.layers}
    behind = reached(graph.model.graph, nodes) if looks and graph.inner_ops else set()
    for layer in found.layers:
        why = sparsity.shape.refuses(layer.grid)
        if looks and not why and not _shaped(graph, layer):
            why = "the shape of its input or output is not known, so what it sees cannot be looked at"
        if looks and not why:
            why = undecided(graph, layer.consumer.node, behind)
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


def seen(
    graph: AxisGraph, layers: Sequence[WeightLayer], left: Mapping[str, str], evidence: Evidence
) -> tuple[list[WeightLayer], dict[str, str]]:
    """The same layers and reasons, without the layers that no sample runs.

    Raises
    ------
    UsageError
        There are no others.
    """
    found = sights(graph, [layer.consumer for layer in layers], evidence.batches, evidence.provider)
    never = {layer.label for layer, sight in zip(layers, found, strict=True) if not sum(sight.sizes)}
    if len(never) == len(layers):
        raise UsageError(
            "no sample takes a way on which a layer is",
            "Give samples that do, or take --solver mask with a criterion that looks at weights alone.",
        )
    return [layer for layer in layers if layer.label not in never], {**left, **dict.fromkeys(never, NEVER)}


def _shaped(graph: AxisGraph, layer: WeightLayer) -> bool:
    """Whether all extents around a layer are known."""
    shapes = [graph.shapes.dims.get(value) for value in (layer.consumer.x, layer.consumer.y)]
    return all(shape is not None and None not in shape for shape in shapes)
