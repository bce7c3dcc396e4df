"""What a product would be after its repair, in the original's own weights: dims that are gone are zero there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from onnxprune.criteria.elimination import DAMPING
from onnxprune.graph.axes import Bools
from onnxprune.model.quantisers import Quantiser, of_nodes
from onnxprune.repair.logits import Rows, fold, mix
from onnxprune.repair.stored import named, read
from onnxprune.repair.turn import Spectrum, turn, turned_weights
from onnxprune.statistics.factors import Seen
from onnxprune.statistics.moments import Matrix
from onnxprune.statistics.paths import Route
from onnxprune.statistics.products import Product

Array = np.ndarray[Any, Any]


def mixed(
    product: Product,
    seen: Seen,
    gone: Bools,
    feed: dict[str, Array],
    known: Spectrum | None,
    quantisers: Sequence[Quantiser] = (),
) -> dict[str, Array]:
    """Weights and biases, by name, of the layers that make up for dims that are gone; empty where there are none.

    In quantised models also the scales with which what they make is rounded, where it gets larger.

    Parameters
    ----------
    product
        The product.
    seen
        Moments of its factors, with all dims.
    gone
        Shape (dims,).
    feed
        Weights and biases that the layers have for other reasons, by name.
    known
        The `spectrum` of a product that is turned.
    quantisers
        Of the model.
    """
    route, channels = product.route, product.channels[product.mixed]
    if not isinstance(route, Route) or channels is None or not gone.any():
        return {}
    layer = route.layer
    changed: dict[str, Array] = {}
    if known is not None:
        changed = turned_weights(turn(product, known, gone), feed)
    weight, bias = read(layer, {**feed, **changed})
    left = channels[:, ~gone]
    if known is None and left.size:
        kept = np.flatnonzero(~gone)
        x, z = (
            Rows.of_itself(seen[slot], kept, product.around[slot])
            for slot in (product.mixed, 1 - product.mixed)
        )
        biased = layer.bias is not None and layer.bias.const_value is not None
        shifts = biased and route.factor is not None and not x.centred
        matrix, shift = mix(x, z, DAMPING, shift=shifts)
        changed |= _widened(route, quantisers, x, matrix, shift)
        if shifts:  # as the initializer holds a bias
            whole = np.zeros(layer.outputs)
            whole[left] = shift / (route.factor or 1.0)
            shift = layer.to_bias(whole).astype(np.float64).ravel()[left]
        weight, bias = fold(layer, weight, bias, left, matrix, shift)
    lost = channels[:, gone]
    weight[0, lost] = bias[lost] = 0.0
    return changed | named(layer, weight, bias)


def _widened(
    route: Route, quantisers: Sequence[Quantiser], x: Rows, matrix: Matrix, shift: Matrix
) -> dict[str, Array]:
    """Scales of what a layer makes, as much larger as its largest mean square gets."""
    n = len(x.kept)
    second, mean = x.moments.gram / max(x.moments.count, 1.0), x.moments.mean
    moved = np.einsum("hp,hpq->hq", mean[:, :n], matrix)
    new = np.einsum("hpq,hpr,hrq->hq", matrix, second[:, :n, :n], matrix) + shift * (2 * moved + shift)
    growth = float(np.sqrt(new.max() / max(np.einsum("hii->hi", second[:, n:, n:]).max(), 1e-30)))
    way = {*route.steps, *(node for node, _ in route.layer.node.outputs[0].uses())}
    if not np.isfinite(growth) or growth <= 1:
        return {}
    return {
        name: array * np.float32(growth)
        for quantiser in of_nodes(quantisers, way)
        for name, array in quantiser.scales.items()
    }
