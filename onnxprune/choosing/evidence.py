"""What the calibration samples say about a model: statistics of its layers, and what each cut would cost.

Everything is computed when it is first asked for, and kept: one pass over the samples serves all groups.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.analysis import Analysis
from onnxprune.calibrate.dataset import Dataset, hold_out, input_specs, symbol
from onnxprune.choosing.activations import unit_activations
from onnxprune.criteria.criterion import UnitActivations
from onnxprune.criteria.elimination import Elimination, Layer, eliminate, refit
from onnxprune.criteria.exchange import Exchanged, exchange
from onnxprune.criteria.logits import Logits
from onnxprune.criteria.plain import Plain
from onnxprune.criteria.unit_gradients import MASKS, WEIGHTS, MaskGradients, UnitGradients, WeightGradients
from onnxprune.graph.axes import Bools, Index
from onnxprune.graph.groups import Group
from onnxprune.model.quantisers import Quantiser, find_quantisers
from onnxprune.repair.trial import mixed
from onnxprune.repair.turn import Spectrum, Turn, checked, spectrum, tails
from onnxprune.statistics.batches import Batches
from onnxprune.statistics.collect import InputStatistics, consumers, input_statistics
from onnxprune.statistics.consumers import Consumer
from onnxprune.statistics.factors import Seen, product_statistics, sides
from onnxprune.statistics.gates import all_gates
from onnxprune.statistics.gradients import Differentiation, bytes_at_once
from onnxprune.statistics.moments import Matrix, Moments
from onnxprune.statistics.paths import Route
from onnxprune.statistics.products import Product, find_products
from onnxprune.statistics.sensitivity import Trial, refitted
from onnxprune.statistics.views import why_unseen
from onnxprune.surgery.keep import kept_positions
from onnxprune.surgery.mask import mask

log = logging.getLogger(__name__)

Tick = Callable[[int, int], None]

BATCH = 32
"""Samples per run."""

FEWEST_BATCHES = 10
"""Batches are made smaller rather than fewer than this, so that some can be held out."""

TRIED = 96
"""Samples on which the change of the outputs is measured."""


def _silent(_done: int, _total: int) -> None:
    pass


@dataclass(frozen=True, eq=False)
class Evidence:
    """Samples that a model is calibrated on, and what follows from them.

    Parameters
    ----------
    analysis
        Of the model.
    data
        The samples.
    provider
        onnxruntime's.
    budget
        Bytes that statistics and tensors between layers may take.
    seed
        For the positions that are drawn.
    kinds
        How layers will be repaired ("affine", "rescale", "bias"): what a unit costs depends on it.
    loss
        What gradients are those of: one of `onnxprune.gradients.objective.LOSSES`.
    tick
        Makes a function that reports the progress of a stage.
    """

    analysis: Analysis
    data: Dataset
    provider: str = "cpu"
    budget: float = 2.0**31
    seed: int = 0
    kinds: tuple[str, ...] = ("affine",)
    loss: str = "auto"
    tick: Callable[[str], Tick] = field(default=lambda _: _silent)

    @cached_property
    def batches(self) -> Batches:
        """All samples, in batches."""
        return self._in_batches(self.data)

    def _in_batches(self, data: Dataset) -> Batches:
        size = min(BATCH, max(1, len(data) // FEWEST_BATCHES))
        return Batches.of(data, size, self._unit)

    @property
    def _unit(self) -> int:
        """The batch size that the analysis assumed."""
        model = self.analysis.source.ir
        leading = {symbol(spec, 0) for spec in input_specs(model)} if self.data.batchable else set()
        sizes = {self.analysis.bindings.get(name, 1) for name in leading}
        return sizes.pop() if len(sizes) == 1 else 1

    @cached_property
    def divided(self) -> tuple[Dataset, Dataset]:
        """Samples for statistics, and samples to try on."""
        return hold_out(self.data)

    @property
    def tried(self) -> str:
        """Where changes of the outputs are measured, in words."""
        learned, other = self.divided
        return "the samples" if learned is other else "held-out samples"

    @cached_property
    def used(self) -> list[Consumer]:
        """Layers that consume units of some group, each once."""
        groups = self.analysis.groups.values()
        return list({layer.weight: layer for group in groups for layer, _ in self.layers(group)}.values())

    @cached_property
    def consumers(self) -> dict[ir.Value, Consumer]:
        """Every layer that is a linear map of an activation, by its weight; of recurrent ones, their products."""
        graph = self.analysis.axis_graph
        gates = {weight: each for weight, each in all_gates(graph).items() if not why_unseen(graph, each)}
        return {**consumers(graph), **gates}

    @property
    def refits(self) -> bool:
        """Whether layers get other weights, which make up for what they lose."""
        return "affine" in self.kinds

    @property
    def largest(self) -> int:
        """Features of the widest layer that consumes units."""
        return max((layer.columns * layer.taps for layer in self.used), default=0)

    def layers(self, group: Group) -> list[tuple[Consumer, Index]]:
        """The layers that consume a group's units, with the unit of every feature, (blocks, features)."""
        found = []
        for use in group.sinks:
            consumer = self.consumers.get(use.axis.value)
            if consumer is not None:
                unit = use.unit.reshape(-1, consumer.columns)
                joined = consumer.groups // len(unit)  # directions that are not told apart
                found.append((consumer, np.tile(unit, (joined, consumer.taps))))
        return found

    @cached_property
    def products(self) -> list[Product]:
        """Every product of two activations that sums over units of some group: queries and keys."""
        used = {use.axis for group in self.analysis.groups.values() for use in group.axes}
        graph = self.analysis.axis_graph
        found = find_products(graph, consumers(graph), self._unit)
        return [product for product in found if product.axes[0] in used]

    def products_of(self, group: Group) -> list[tuple[Product, Index]]:
        """The products that sum over a group's units, with the unit of every dim."""
        units = {use.axis: use.unit for use in group.axes}
        return [(product, units[product.axes[0]]) for product in self.products if product.axes[0] in units]

    def sees(self, group: Group) -> bool:
        """Whether samples show what all layers inside bodies see that consume a group's units."""
        axes = {use.axis for use in group.axes}
        sinks = [sink for sink in self.analysis.axis_graph.inner_sinks if sink.axis in axes]
        inside = [sink.axis.value if sink.parameter is None else sink.parameter.value for sink in sinks]
        return all(weight in self.consumers and self.statistics[weight].moments.count for weight in inside)

    def shows(self, group: Group) -> bool:
        """Whether `change` sees it when units of a group go."""
        if not self.sees(group):
            return False
        products = self.products_of(group) if self.refits else []
        return any(isinstance(product.route, Route) for product, _ in products) or bool(self.layers(group))

    @cached_property
    def product_statistics(self) -> dict[ir.Node, Seen]:
        """Of the factors of all products that sum over units, by node."""
        return self._product_statistics(self.divided[0])

    @cached_property
    def held_statistics(self) -> dict[ir.Node, Seen]:
        """The same on samples that these have not seen."""
        return self._product_statistics(self.divided[1])

    @cached_property
    def _spectra(self) -> dict[ir.Node, Spectrum]:
        """How products are turned that can be, by node."""
        seen = self.product_statistics
        return {
            product.node: spectrum(product, seen[product.node]) for product in self.products if product.turns
        }

    @cached_property
    def _quantisers(self) -> list[Quantiser]:
        """What rounds activations."""
        return find_quantisers(self.analysis.axis_graph.model.graph)

    def _product_statistics(self, data: Dataset) -> dict[ir.Node, Seen]:
        return product_statistics(
            self.analysis.axis_graph,
            self.products,
            self._in_batches(data),
            provider=self.provider,
            budget=self.budget,
            seed=self.seed,
            progress=self.tick("collecting statistics"),
        )

    @cached_property
    def statistics(self) -> dict[ir.Value, InputStatistics]:
        """Of the inputs of all layers that consume units, by weight."""
        return input_statistics(
            self.analysis.axis_graph,
            self.used,
            self._in_batches(self.divided[0]),
            provider=self.provider,
            budget=self.budget,
            seed=self.seed,
            progress=self.tick("collecting statistics"),
        )

    def activations(self, group: Group) -> list[UnitActivations]:
        """What each consumer sees of a group's units, for criteria."""
        return [
            unit_activations(layer, unit, self.statistics[layer.weight], group.units)
            for layer, unit in self.layers(group)
        ]

    def gradients(self, group: Group, kinds: frozenset[str]) -> UnitGradients:
        """What criteria of these kinds see of a group's gradients."""
        masks = self.mask_gradients.get(group.id) if MASKS in kinds else None
        return UnitGradients(masks, self.weight_gradients.get(group.id, ()) if WEIGHTS in kinds else ())

    @cached_property
    def mask_gradients(self) -> Mapping[str, MaskGradients]:
        """Of the loss with respect to masks over the units of every group, by group id."""
        return self.differentiation.masks(self.analysis.groups.values())

    @cached_property
    def weight_gradients(self) -> Mapping[str, Sequence[WeightGradients]]:
        """Of the loss with respect to the weights that make the units of every group, by group id."""
        return self.differentiation.weights(self.analysis.groups.values())

    @property
    def differentiated(self) -> str:
        """What gradients are those of, for the report."""
        return f"gradients are those of {self.differentiation.objective().sentence}"

    @property
    def differentiation(self) -> Differentiation:
        """The loss on the samples for statistics, and how it is run."""
        data = self.divided[0]
        size = min(BATCH, max(1, len(data) // FEWEST_BATCHES))
        progress = self.tick("differentiating")
        graph = self.analysis.axis_graph
        most = int(self.budget // max(bytes_at_once(graph) / self._unit, 1.0))
        return Differentiation(graph, data, self.loss, size, most, self.provider, self.seed, progress)

    def elimination(self, group: Group, order: Index | None = None) -> Elimination | None:
        """The order in which a group's units go at the least cost, or the errors of another order.

        None where no linear map consumes them, and no product of two activations sums over them, or where a layer
        inside a body does that no sample shows.
        """
        if not self.sees(group):
            return None
        products = self.products_of(group)
        turned = [pair for pair in products if pair[0].turns and self.refits]
        deciding = self._parts(group, [pair for pair in products if not (pair[0].turns and self.refits)])
        parts = deciding or self._parts(group, turned)
        if not parts:
            return None
        found = eliminate(parts, group.units, group.blocks, order=order)
        if not turned:
            return found
        # after a turn it does not matter which dims go, only how many
        errors: Matrix = found.errors if deciding else np.zeros(len(found.errors))
        for product, unit in turned:
            lost = np.cumsum([0, *(np.isin(unit, rung).sum() for rung in found.rungs)])
            errors = errors + tails(self._spectra[product.node], lost)
        return Elimination(found.rungs, errors)

    def _parts(self, group: Group, products: Sequence[tuple[Product, Index]]) -> list[Layer | Plain | Logits]:
        """The layers that consume a group's units, and some products."""
        layers = [
            self._part(layer, self.statistics[layer.weight].moments, unit, group.units)
            for layer, unit in self.layers(group)
        ]
        logits = [
            Logits.of(*sides(product, self.product_statistics[product.node]), unit)
            for product, unit in products
        ]
        return [*layers, *logits]

    def _part(self, layer: Consumer, seen: Moments, unit: Index, units: int) -> Layer | Plain:
        if self.refits:
            return Layer.of(layer.matrix(), seen.covariance, unit)
        return Plain.of(layer.matrix(), seen, unit, units, shifted=bool(self.kinds))

    def turns(self, gone: Mapping[str, Bools]) -> list[Turn]:
        """How products are turned before units go, so that these are the ones that matter least."""
        found = []
        for product in self.products:
            dims = self._dims(product, gone)
            if product.turns and dims.any():
                seen, held = self.product_statistics[product.node], self.held_statistics[product.node]
                found.append(checked(product, self._spectra[product.node], seen, held, dims))
        return [turn for turn in found if turn is not None]

    def _dims(self, product: Product, gone: Mapping[str, Bools]) -> Bools:
        """Which dims of a product go."""
        dims = np.zeros(product.dims, bool)
        for name, flags in gone.items():
            for use in self.analysis.groups[name].axes:
                if use.axis == product.axes[0]:
                    dims |= (use.unit >= 0) & flags[np.maximum(use.unit, 0)]
        return dims

    def exchange(self, group: Group, gone: Bools) -> Exchanged | None:
        """As many units of a group as are flagged, at less error where swaps find it.

        None where no linear map consumes them, where a product of two activations sums over them, too, or where
        layers are not refitted.
        """
        if self.products_of(group) or not self.refits:
            return None
        if not self.sees(group):
            return None
        parts = [
            (layer.matrix(), self.statistics[layer.weight].moments.covariance, unit)
            for layer, unit in self.layers(group)
        ]
        return exchange(parts, gone, group.blocks) if parts else None

    @cached_property
    def trial(self) -> Trial:
        """The original, to try other weights in, on samples that the statistics have not seen."""
        held = self.divided[1]
        some = held.take(np.linspace(0, len(held) - 1, min(TRIED, len(held))).astype(np.int64))
        batches = list(some.batches(BATCH))
        routes = [route for product in self.products for route in product.routes]
        mended = [route.layer for route in routes if isinstance(route, Route)]
        return Trial(self.analysis.axis_graph.model, [*self.used, *mended], batches, self.provider)

    def change(self, gone: Mapping[str, Bools]) -> float:
        """How much the outputs change when units go and the layers behind them are repaired, each for itself.

        As a share of their variance, on a few samples.

        Parameters
        ----------
        gone
            One flag per unit, by group id.
        """
        return self.trial.change(self.refitted(gone))

    def refitted(self, gone: Mapping[str, Bools]) -> dict[str, np.ndarray[Any, Any]]:
        """Weights and biases, by name, of all layers that lose some of these units."""
        lost: dict[ir.Value, Bools] = {}
        for name, flags in gone.items():
            for layer, unit in self.layers(self.analysis.groups[name]):
                mine = (unit >= 0) & flags[np.maximum(unit, 0)]
                lost[layer.weight] = lost[layer.weight] | mine if layer.weight in lost else mine
        layers, weights, seen = [], [], []
        for weight, flags in lost.items():
            if flags.any() and self.statistics[weight].moments.count:
                layers.append(self.consumers[weight])
                seen.append(self.statistics[weight].moments)
                matrix = layers[-1].matrix()
                weights.append(
                    refit(matrix, seen[-1].covariance, flags)
                    if self.refits
                    else np.where(flags[:, None], 0.0, matrix)
                )
        feed = refitted(layers, weights, seen, shifted=bool(self.kinds))
        for product in self.products if self.refits else ():
            dims = self._dims(product, gone)
            if dims.any():
                known = self._spectra.get(product.node)
                seen_here = self.product_statistics[product.node]
                feed |= mixed(product, seen_here, dims, feed, known, self._quantisers)
        return feed

    def masked_change(self, group: Group, gone: Bools) -> float:
        """The same without any refit: the flagged units are masked where they are summed over."""
        kept = kept_positions(self.analysis.groups, {group.id: ~gone})
        return self.trial.change_of(mask(self.analysis.axis_graph, kept))
