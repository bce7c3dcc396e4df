"""`stats`: how sparse a model is, in which pattern, and what became of the model it came from."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.analysis import Analysis, analyze
from onnxprune.graph.axes import Axis, Bools
from onnxprune.inspection.compare import Comparison, compare
from onnxprune.inspection.layers import Layers, OtherLayer, WeightLayer, find_layers
from onnxprune.inspection.removable import Removable, live_positions, needed_axes, removable
from onnxprune.inspection.zeros import Zeros, count
from onnxprune.job import Progress
from onnxprune.model.io import LoadedModel
from onnxprune.report.quantised import QuantisedResult, quantised_result
from onnxprune.report.statistics import SparsifiedLayerSummary, SparsifiedModelStatistics
from onnxprune.rules import RuleTable

Source = str | os.PathLike[str] | LoadedModel | Analysis


@dataclass(frozen=True)
class Tally:
    """Elements of some float initializers, and how many of them are zero."""

    elements: int
    zeros: int


@dataclass(frozen=True)
class LayerZeros:
    """A handled layer (Conv, ConvTranspose, Gemm or MatMul) and its zeros.

    Attributes
    ----------
    name, op_type
        Of the node.
    weight, shape
        Name and shape of the initializer.
    shared
        Names of other nodes that use the same weight; it counts once.
    outputs, inputs
        Channels of all groups.
    found
        The zeros.
    """

    name: str
    op_type: str
    weight: str
    shape: tuple[int, ...]
    shared: tuple[str, ...]
    outputs: int
    inputs: int
    found: Zeros

    @property
    def zero_filters(self) -> int:
        """Output channels whose weights are all zero."""
        return int(np.count_nonzero(self.found.filters))

    @property
    def zero_channels(self) -> int:
        """Input channels whose weights are all zero."""
        return int(np.count_nonzero(self.found.channels))

    @property
    def pattern(self) -> str:
        """The most useful pattern that all zeros follow; empty where nothing is zero."""
        return next(iter(self.found.patterns), "")


@dataclass(frozen=True)
class LeftOut:
    """A layer that is not handled, why, and its float weights, which count in the whole model all the same."""

    name: str
    op_type: str
    reason: str
    tally: Tally


@dataclass(frozen=True)
class ModelStatistics:
    """What `stats` found.

    Attributes
    ----------
    source
        The model as loaded.
    bindings, guessed
        Sizes of symbolic dims at which MACs are counted, and which of them nobody gave.
    macs
        Multiply-adds of one sample, as the file stands: zeros are multiplied like other numbers.
    layers
        Handled layers in the order of the graph.
    left_out
        Layers that are not handled.
    vectors
        Biases, norms and scales.
    removable
        Units that zeros have made superfluous.
    against
        The comparison with the original, where one was given.
    quantised
        How the model is quantised; None where it is not.
    """

    source: LoadedModel
    bindings: Mapping[str, int]
    guessed: tuple[str, ...]
    macs: int
    layers: tuple[LayerZeros, ...]
    left_out: tuple[LeftOut, ...]
    vectors: Tally
    removable: Removable
    against: Comparison | None = None
    quantised: QuantisedResult | None = None

    @property
    def handled(self) -> Tally:
        """Over the weights of the handled layers."""
        return _sum(Tally(layer.found.elements, layer.found.zeros) for layer in self.layers)

    @property
    def whole(self) -> Tally:
        """Over all float initializers."""
        return _sum((self.handled, self.vectors, *(layer.tally for layer in self.left_out)))

    @property
    def filters(self) -> int:
        """Output channels of all handled layers."""
        return sum(layer.outputs for layer in self.layers)

    @property
    def sparsity(self) -> SparsifiedModelStatistics:
        """The same in NNCF's words, with all handled layers."""
        whole, handled = self.whole, self.handled
        return SparsifiedModelStatistics(
            _ratio(whole.zeros, whole.elements),
            _ratio(handled.zeros, handled.elements),
            tuple(
                SparsifiedLayerSummary(
                    layer.name,
                    layer.shape,
                    _ratio(layer.found.zeros, layer.found.elements),
                    100 * _ratio(layer.found.elements, whole.elements),
                )
                for layer in self.layers
            ),
        )

    def __str__(self) -> str:
        from onnxprune.report.stats import render

        return render(self)

    def __repr__(self) -> str:
        whole = self.whole
        return (
            f"ModelStatistics({str(self.source.path)!r}: {whole.zeros:,} of {whole.elements:,} weights are zero, "
            f"{self.removable.units} of {self.removable.total} units superfluous)"
        )


def stats(
    model: Source,
    *,
    against: Source | None = None,
    bindings: Mapping[str, int] | None = None,
    rules: RuleTable | None = None,
    progress: Progress | None = None,
) -> ModelStatistics:
    """Count the zeros of a model, find their patterns, and compare with the model that it came from.

    Parameters
    ----------
    model
        Path of an .onnx file, what `load` returned, or an analysis. Never modified; weights are read one at a time.
    against
        The original.
    bindings
        Sizes of symbolic dims, for counting MACs; of both models. Analyses have theirs already.
    rules
        The rule table; `default_rules()` by default.
    progress
        Called with (stage, done, total).

    Raises
    ------
    ModelError
        A file is no usable model, or has no float weights.
    UsageError
        A binding names no symbolic dim.
    """
    tell = progress or _silent
    tell("analysing", 0, 0)
    analysis = _analysis(model, bindings, rules)
    original = None if against is None else _analysis(against, bindings, rules)
    layers = find_layers(analysis.axis_graph)
    if original is None:
        return _collect(analysis, layers, None, tell)
    comparison = compare(original, find_layers(original.axis_graph), analysis, layers, tell)
    return _collect(analysis, layers, comparison, tell)


def _silent(stage: str, done: int, total: int) -> None:
    pass


def _analysis(model: Source, bindings: Mapping[str, int] | None, rules: RuleTable | None) -> Analysis:
    return model if isinstance(model, Analysis) else analyze(model, bindings=bindings, rules=rules)


def _collect(
    analysis: Analysis, layers: Layers, comparison: Comparison | None, tell: Progress
) -> ModelStatistics:
    live = _Live(analysis)
    found = []
    for number, layer in enumerate(layers.handled):
        tell("counting zeros", number, len(layers.handled))
        found.append(_count(layer, live))
    left_out = tuple(_left_out(layer, live) for layer in layers.others)
    vectors = _sum(live.tally(value) for value in layers.vectors)
    return ModelStatistics(
        source=analysis.source,
        bindings=dict(analysis.bindings),
        guessed=tuple(analysis.guessed),
        macs=analysis.cost.macs,
        layers=tuple(found),
        left_out=left_out,
        vectors=vectors,
        removable=removable(analysis, live.finish()),
        against=comparison,
        quantised=quantised_result(analysis.axis_graph.model),
    )


class _Live:
    """Reads initializers one at a time and notes which positions of the axes of groups are not zero."""

    def __init__(self, analysis: Analysis) -> None:
        self._needed = needed_axes(analysis)
        self._blocked = analysis.axis_graph.blocked
        self._found: dict[Axis, Bools] = {}

    def read(self, value: ir.Value) -> Bools:
        """Where an initializer is not zero, in its own shape."""
        nonzero = nonzero_of(value)
        for dim in self._needed.get(value, ()):
            axis = Axis(value, dim)
            self._found[axis] = live_positions(nonzero, dim, self._blocked.get(axis))
        return nonzero

    def tally(self, value: ir.Value) -> Tally:
        """Of one initializer."""
        nonzero = self.read(value)
        return Tally(nonzero.size, nonzero.size - int(np.count_nonzero(nonzero)))

    def finish(self) -> Mapping[Axis, Bools]:
        """All that `removable` needs; vectors that the file stores once are read for every other use, too."""
        for value, dims in self._needed.items():
            if any(Axis(value, dim) not in self._found for dim in dims):
                self.read(value)
        return self._found


def nonzero_of(value: ir.Value) -> Bools:
    """Where an initializer is not zero (NaN is not); -0.0 is zero."""
    data = value.const_value
    if data is None:
        raise ValueError(f"{value.name!r} is no initializer")
    array: np.ndarray[Any, Any] = np.asarray(data.numpy())
    return np.asarray(array != np.zeros((), array.dtype), bool)


def _count(layer: WeightLayer, live: _Live) -> LayerZeros:
    nonzero = live.read(layer.weight)
    return LayerZeros(
        name=layer.name,
        op_type=layer.op_type,
        weight=str(layer.weight.name),
        shape=layer.shape,
        shared=layer.shared,
        outputs=layer.outputs,
        inputs=layer.inputs,
        found=count(layer.place.arranged(nonzero), layer.place.columns),
    )


def _left_out(layer: OtherLayer, live: _Live) -> LeftOut:
    return LeftOut(layer.name, layer.op_type, layer.reason, _sum(live.tally(value) for value in layer.values))


def _sum(tallies: Iterable[Tally] | Sequence[Tally]) -> Tally:
    elements = zeros = 0
    for tally in tallies:
        elements, zeros = elements + tally.elements, zeros + tally.zeros
    return Tally(elements, zeros)


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
