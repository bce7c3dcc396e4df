"""How much the outputs change when one group is cut alone.

The original runs piece by piece once, and what is there at a few places is held: a trial with other weights starts
from the last place before its first changed layer. The change is measured on the outputs as they are (before any
softmax), as a share of their variance: on samples that a network was trained on, probabilities hardly move.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.calibrate.sessions import open_session, run
from onnxprune.statistics.consumers import Consumer
from onnxprune.statistics.moments import Matrix, Moments
from onnxprune.statistics.piecewise import Piecewise, reads

Array = np.ndarray[Any, Any]
Feed = Mapping[str, Array]

PLACES = 8
"""From how many places a trial may start."""


class Trial:
    """The original with weights that can be tried.

    Parameters
    ----------
    model
        Not mutated.
    layers
        Whose weights and biases may change.
    batches
        Samples on which outputs are compared.
    provider
        onnxruntime's.
    budget
        Bytes that tensors may take that are held to start from.
    """

    def __init__(
        self,
        model: ir.Model,
        layers: Iterable[Consumer],
        batches: Sequence[Feed],
        provider: str,
        budget: float = 2.0**30,
    ) -> None:
        self._model, self._batches, self._provider = model, batches, provider
        self._outputs = [value for value in model.graph.outputs if isinstance(value.type, ir.TensorType)]
        start = Piecewise(model, batches, provider, budget / PLACES, self._outputs)
        self._places = _places(start, list(layers))
        self._whole = _gathered(self._places[-1].fork().advance(self._outputs))

    def change(self, weights: Feed) -> float:
        """Mean squared change of all float outputs, as a share of their variance, with other weights.

        An output of another shape has changed by all of its variance. Infinite where the outputs are no numbers any
        more.
        """
        values = [self._model.graph.initializers[name] for name in weights]
        users = {self._places[0].home(node) for value in values for node in value.consumers()}

        def extend(piece: ir.Graph, _known: Mapping[str, ir.Value]) -> None:
            for name, array in weights.items():
                if name in piece.initializers:
                    piece.initializers[name].const_value = ir.tensor(array, name=name)

        place = next(place for place in reversed(self._places) if not users & place.done)
        return self._compare(_gathered(place.fork().advance(self._outputs, extend)))

    def change_of(self, model: ir.Model) -> float:
        """The same for another model with the same inputs and outputs."""
        session = open_session(model, self._provider)
        names = [str(value.name) for value in self._outputs]
        return self._compare(_gathered(run(session, feed, names) for feed in self._batches))

    def _compare(self, other: Mapping[str, Matrix]) -> float:
        shares = []
        for name, whole in self._whole.items():
            around = whole - whole.mean(axis=0, keepdims=True) if len(whole) > 1 else whole
            variance = float(np.square(around).mean())
            if variance > 0 and np.isfinite(variance):
                same = other[name].shape == whole.shape  # how many boxes there are depends on weights
                shares.append(float(np.square(other[name] - whole).mean()) / variance if same else 1.0)
        change = float(np.mean(shares)) if shares else 0.0
        return change if np.isfinite(change) else float("inf")


def _places(start: Piecewise, layers: Sequence[Consumer]) -> list[Piecewise]:
    """Where trials may start, the first one at the inputs; later ones have run more of the model."""
    order = {node: number for number, node in enumerate(start.model.graph)}
    nodes = sorted((start.home(layer.node) for layer in layers), key=lambda node: order[node])
    places = [start]
    for number in range(1, PLACES):
        further = places[-1].fork()
        wanted = [
            value
            for node in nodes[number * len(nodes) // PLACES :][:1]
            for value in reads(node)
            if value.const_value is None
        ]
        if not further.ahead(wanted):
            continue
        for _ in further.advance(wanted):
            pass
        if further.done > places[-1].done:
            places.append(further)
    return places


def _gathered(batches: Iterable[Feed]) -> dict[str, Matrix]:
    """Outputs of all batches, by name."""
    parts: dict[str, list[Array]] = {}
    for found in batches:
        for name, array in found.items():
            if array.dtype.kind == "f":
                parts.setdefault(name, []).append(array)
    return {name: _joined(arrays) for name, arrays in parts.items()}


def _joined(arrays: Sequence[Array]) -> Matrix:
    """Outputs of all batches, float64: one row per sample; one row in all where batches differ in shape."""
    if arrays[0].ndim and len({a.shape[1:] for a in arrays}) == 1:
        return np.concatenate([a.reshape(len(a), -1) for a in arrays]).astype(np.float64)
    return np.concatenate([a.ravel() for a in arrays])[None].astype(np.float64)


def refitted(
    layers: Sequence[Consumer], weights: Sequence[Matrix], seen: Sequence[Moments], *, shifted: bool = True
) -> dict[str, Array]:
    """What to feed so that layers have other weights, and biases that keep their mean outputs.

    Parameters
    ----------
    layers, weights
        Layers, and their new weights in the form of `Consumer.matrix`.
    seen
        Moments of their inputs.
    shifted
        Whether biases change.
    """
    feed: dict[str, Array] = {}
    for layer, weight, moments in zip(layers, weights, seen, strict=True):
        feed[str(layer.weight.name)] = layer.from_matrix(weight).astype(layer.array.dtype)
        if not shifted or layer.bias is None or layer.bias.const_value is None:
            continue
        lost = np.einsum("gof,gf->go", layer.matrix() - weight, moments.mean[:, : weight.shape[2]])
        name = str(layer.bias.name)
        feed[name] = layer.to_bias(layer.bias_vector() + lost.ravel(), feed.get(name))
    return feed
