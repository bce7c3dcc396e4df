"""How much the outputs change when one group is cut alone.

One session on the original takes the weights of all layers as inputs that may be overridden, so that a cut group
is tried by feeding its layers' refitted weights. The change is measured on the outputs as they are (before any
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

Array = np.ndarray[Any, Any]
Feed = Mapping[str, Array]


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
    """

    def __init__(
        self, model: ir.Model, layers: Iterable[Consumer], batches: Sequence[Feed], provider: str
    ) -> None:
        copy = model.clone()
        copy.ir_version = max(copy.ir_version, 8)
        listed = {value.name for value in copy.graph.inputs}
        for layer in layers:
            for value in (layer.weight, layer.bias):
                if value is not None and value.name not in listed:
                    copy.graph.inputs.append(copy.graph.initializers[str(value.name)])
                    listed.add(value.name)
        self._batches = batches
        self._session = open_session(copy, provider)
        self._provider = provider
        self._whole = self._run(self._session, {})

    def change(self, weights: Feed) -> float:
        """Mean squared change of all float outputs, as a share of their variance, with other weights.

        Infinite where the outputs are no numbers any more.
        """
        return self._compare(self._run(self._session, weights))

    def change_of(self, model: ir.Model) -> float:
        """The same for another model with the same inputs and outputs."""
        return self._compare(self._run(open_session(model, self._provider), {}))

    def _compare(self, other: Mapping[str, Matrix]) -> float:
        shares = []
        for name, whole in self._whole.items():
            around = whole - whole.mean(axis=0, keepdims=True) if len(whole) > 1 else whole
            variance = float(np.square(around).mean())
            if variance > 0 and np.isfinite(variance):
                shares.append(float(np.square(other[name] - whole).mean()) / variance)
        change = float(np.mean(shares)) if shares else 0.0
        return change if np.isfinite(change) else float("inf")

    def _run(self, session: Any, weights: Feed) -> dict[str, Matrix]:
        parts: dict[str, list[Array]] = {}
        for feed in self._batches:
            for name, array in run(session, {**feed, **weights}).items():
                if array.dtype.kind == "f":
                    parts.setdefault(name, []).append(array)
        return {name: _joined(arrays) for name, arrays in parts.items()}


def _joined(arrays: Sequence[Array]) -> Matrix:
    """Outputs of all batches, float64: one row per sample; one row in all where batches differ in shape."""
    if arrays[0].ndim and len({a.shape[1:] for a in arrays}) == 1:
        return np.concatenate([a.reshape(len(a), -1) for a in arrays]).astype(np.float64)
    return np.concatenate([a.ravel() for a in arrays])[None].astype(np.float64)


def refitted(
    layers: Sequence[Consumer], weights: Sequence[Matrix], seen: Sequence[Moments]
) -> dict[str, Array]:
    """What to feed so that layers have other weights, and biases that keep their mean outputs.

    Parameters
    ----------
    layers, weights
        Layers, and their new weights in the form of `Consumer.matrix`.
    seen
        Moments of their inputs.
    """
    feed: dict[str, Array] = {}
    for layer, weight, moments in zip(layers, weights, seen, strict=True):
        feed[str(layer.weight.name)] = layer.from_matrix(weight).astype(layer.array.dtype)
        if layer.bias is None or layer.bias.const_value is None:
            continue
        lost = np.einsum("gof,gf->go", layer.matrix() - weight, moments.mean[:, : weight.shape[2]])
        feed[str(layer.bias.name)] = layer.to_bias(layer.bias_vector() + lost.ravel())
    return feed
