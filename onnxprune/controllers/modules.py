"""What pruners prune: the weights of a model's layers, or arrays by name. Both look the same from here on.

A weight is a matrix (outputs, columns) for patterns and criteria, and lies as its owner has it for everybody
else.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir

from onnxprune.choosing.evidence import Evidence
from onnxprune.controllers.inc import PrunerConfig
from onnxprune.criteria.weights import WeightCriterion
from onnxprune.errors import UsageError
from onnxprune.job import Job, Opened
from onnxprune.model.finalize import finalize
from onnxprune.patterns import Element, Grid, Pattern
from onnxprune.patterns.pattern import Bools
from onnxprune.sparsity.given import with_zeros
from onnxprune.sparsity.layers import WeightLayer, find_layers, same_layers
from onnxprune.sparsity.rounds import weights_of
from onnxprune.sparsity.scoring import Scorer
from onnxprune.surgery.clone import clone_model
from onnxprune.threads import few_threads

Array = np.ndarray[Any, Any]


class Modules(Protocol):
    """Weights by name.

    Attributes
    ----------
    grids
        Extents of every weight as a matrix, in order.
    skipped
        Why other layers are left alone, by name.
    """

    grids: dict[str, Grid]
    skipped: dict[str, str]

    def weights(self) -> dict[str, Array]:
        """The weights as they are now, each as it lies."""
        ...

    def matrix(self, name: str, array: Array | None = None) -> Array:
        """A weight as it is now, or an array of its shape, as (outputs, columns), float64."""
        ...

    def gradient(self, name: str, array: Array) -> Array:
        """A gradient with respect to the weight as it lies, as one with respect to `matrix`."""
        ...

    def laid(self, name: str, matrix: Array) -> Array:
        """What `matrix` gives, as the weight lies."""
        ...

    def gradients(self) -> Iterator[dict[str, Array]]:
        """Gradients batch by batch, as the weights lie.

        Raises
        ------
        UsageError
            There are no samples to take them on.
        """
        ...

    def by_inputs(self, criterion: WeightCriterion) -> dict[str, Array]:
        """Scores (outputs, columns) of a criterion that looks at what the weights multiply.

        Raises
        ------
        UsageError
            There are no samples.
        """
        ...

    def put(self, zeros: Mapping[str, Bools]) -> None:
        """Let weights be zero: flags (outputs, columns), by name. Mutates what is held here, nothing else."""
        ...


class ArrayModules:
    """Arrays by name: (outputs, inputs), or (outputs, inputs, kernel...) of a convolution.

    Copies are held: the arrays that were given stay as they are.
    """

    def __init__(self, arrays: Mapping[str, Any]) -> None:
        self._arrays = {str(name): np.array(array) for name, array in arrays.items()}
        self.skipped: dict[str, str] = {}
        self.grids: dict[str, Grid] = {}
        for name, array in self._arrays.items():
            if array.ndim < 2 or array.dtype.kind != "f":
                raise UsageError(
                    f"the weight {name!r} has the shape {array.shape} and the type {array.dtype}",
                    "Give float arrays (outputs, inputs) or (outputs, inputs, kernel...).",
                )
            self.grids[name] = Grid(array.shape[0], array.shape[1], math.prod(array.shape[2:]))

    def weights(self) -> dict[str, Array]:
        """As they are now."""
        return {name: array.copy() for name, array in self._arrays.items()}

    def matrix(self, name: str, array: Array | None = None) -> Array:
        """Taps by channels, channels running fastest."""
        grid, given = self.grids[name], self._arrays[name] if array is None else np.asarray(array)
        if given.shape != self._arrays[name].shape:
            raise UsageError(
                f"an array for {name!r} has the shape {given.shape}, and the weight {self._arrays[name].shape}",
                "Give one number per weight.",
            )
        apart = given.astype(np.float64).reshape(grid.outputs, grid.channels, grid.taps)
        return np.ascontiguousarray(apart.transpose(0, 2, 1)).reshape(grid.shape)

    def gradient(self, name: str, array: Array) -> Array:
        """The same numbers."""
        return self.matrix(name, array)

    def laid(self, name: str, matrix: Array) -> Array:
        """Back as it lies."""
        grid = self.grids[name]
        apart = matrix.reshape(grid.outputs, grid.taps, grid.channels).transpose(0, 2, 1)
        return np.ascontiguousarray(apart).reshape(self._arrays[name].shape)

    def gradients(self) -> Iterator[dict[str, Array]]:
        """Arrays come without a loss."""
        raise UsageError(
            "arrays have no gradients of their own", "Give some: pruner.step([{name: gradient}, ...])."
        )

    def by_inputs(self, criterion: WeightCriterion) -> dict[str, Array]:
        """Arrays come without inputs."""
        raise UsageError(
            f"arrays have no inputs, which the criterion {criterion.name} looks at", "Give a model and data."
        )

    def put(self, zeros: Mapping[str, Bools]) -> None:
        """Zero the flagged weights."""
        for name, flags in zeros.items():
            array = self._arrays[name]
            array[self.laid(name, flags.astype(np.float64)) != 0] = 0


class ModelModules:
    """Layers of a model, and a copy of it that gets the zeros.

    Parameters
    ----------
    opened
        The model and its samples.
    layers
        Those that are pruned.
    solver
        What makes up for the zeros: "mask" (nothing), "sparsegpt", "obc" or "auto" (of these two).
    """

    def __init__(
        self, opened: Opened, job: Job, layers: Iterable[WeightLayer], skipped: Mapping[str, str], solver: str
    ) -> None:
        self.opened, self.job, self._solver = opened, job, solver
        self.layers = {layer.label: layer for layer in layers}
        self.skipped = dict(skipped)
        self.grids = {name: layer.grid for name, layer in self.layers.items()}
        self._sparse = clone_model(opened.analysis.axis_graph.model).model
        self._mine = self._found()
        self._evidence: Evidence | None = None

    def _found(self) -> dict[str, WeightLayer]:
        mine = same_layers(self._sparse, list(self.layers.values()))
        return dict(zip(self.layers, mine, strict=True))

    def adopt(self, sparse: ir.Model) -> None:
        """Take another copy of the model, with other weights, for the one that is held."""
        self._sparse = sparse
        self._mine = self._found()

    @property
    def evidence(self) -> Evidence | None:
        """What the samples say; None where there are none, or the model cannot be run."""
        return self._evidence or self.opened.evidence(self.job)

    @property
    def model(self) -> ir.Model:
        """The model as it is now, a copy."""
        return finalize(self._sparse)

    def weights(self) -> dict[str, Array]:
        """As they are now."""
        return {name: layer.consumer.array.copy() for name, layer in self._mine.items()}

    def matrix(self, name: str, array: Array | None = None) -> Array:
        """As of the layer."""
        return self._mine[name].matrix(array)

    def gradient(self, name: str, array: Array) -> Array:
        """As of the layer."""
        return self._mine[name].gradient(array)

    def laid(self, name: str, matrix: Array) -> Array:
        """As of the layer."""
        return self._mine[name].from_matrix(matrix)

    def gradients(self) -> Iterator[dict[str, Array]]:
        """Of the loss on the calibration samples, at the weights as they are now."""
        evidence, graph = self._seen(), self.opened.analysis.axis_graph
        names = {layer.name: label for label, layer in self.layers.items()}
        with weights_of(graph.model, self._sparse):
            for found in evidence.differentiation.by_batch(list(names)):
                yield {label: found[name] for name, label in names.items()}

    def by_inputs(self, criterion: WeightCriterion) -> dict[str, Array]:
        """On the calibration samples, with the weights as they are now."""
        layers, graph = list(self.layers.values()), self.opened.analysis.axis_graph
        with weights_of(graph.model, self._sparse):
            found = Scorer(layers, Element(), criterion, self._seen()).score({}, 0.0)
        return {layer.label: scored.scores for layer, scored in zip(layers, found, strict=True)}

    def put(self, zeros: Mapping[str, Bools]) -> None:
        """Zero the flagged weights of the original, and let the solver make up for them."""
        by_name = {layer.name: zeros[label] for label, layer in self.layers.items()}
        evidence = self._seen() if self._solver != "mask" else None
        widest = max((grid.columns for grid in self.grids.values()), default=0)
        with few_threads(widest if evidence is not None else 0):
            self._sparse, _ = with_zeros(
                self.opened.analysis,
                list(self.layers.values()),
                by_name,
                solver=self._solver,
                evidence=evidence,
            )
        self._mine = self._found()

    def _seen(self) -> Evidence:
        if self._evidence is None:
            self._evidence = self.opened.evidence(self.job)
        if self._evidence is None:
            raise UsageError(
                "the criterion or the solver looks at samples: there are none, or onnxruntime cannot run the model",
                'Give data=... (data="synthetic" generates samples), or take the criterion magnitude.',
            )
        return self._evidence


@dataclass(frozen=True)
class Chosen:
    """The layers of a model that one config prunes, and why the others are left alone."""

    layers: tuple[WeightLayer, ...]
    skipped: Mapping[str, str]


def choose_layers(opened: Opened, config: PrunerConfig, pattern: Pattern) -> Chosen:
    """The layers that a config names, without the head, and without those that its pattern does not divide.

    Raises
    ------
    UsageError
        A regular expression is none or matches nothing, or no layer is left.
    """
    found = find_layers(opened.analysis.axis_graph)
    only = [_expression("op_names", text, found.layers) for text in config.op_names]
    never = [_expression("excluded_op_names", text, found.layers) for text in config.excluded_op_names]
    linear = [layer for layer in found.layers if not layer.consumer.convolves]
    head = linear[-1] if linear else None
    skipped, layers = dict(found.left), []
    for layer in found.layers:
        names = (layer.label, layer.name)
        why = ""
        if layer.consumer.node.op_type not in config.operators:
            why = f"its operator is none of {', '.join(config.pruning_op_types)}"
        elif only and not any(test.match(name) for test in only for name in names):
            why = "no op_names match it"
        elif any(test.match(name) for test in never for name in names):
            why = "excluded_op_names match it"
        elif layer is head:
            why = "it is the last linear layer, the head"
        else:
            refused = pattern.refuses(layer.grid)
            why = f"the pattern {pattern.name} does not divide it: {refused}" if refused else ""
        if why:
            skipped[layer.label] = why
        else:
            layers.append(layer)
    if not layers:
        whys = "\n".join(f"  {name}: {why}" for name, why in list(skipped.items())[:8])
        raise UsageError("the config prunes no layer", whys or "The model has no layer with a weight.")
    return Chosen(tuple(layers), skipped)


def _expression(option: str, text: str, layers: Iterable[WeightLayer]) -> re.Pattern[str]:
    try:
        found = re.compile(text)
    except re.error as error:
        raise UsageError(
            f"{option} {text!r} is no regular expression: {error}", "Use Python's syntax."
        ) from None
    known = [name for layer in layers for name in (layer.label, layer.name)]
    if not any(found.match(name) for name in known):
        raise UsageError(f"{option} {text!r} matches no layer", f"There are: {', '.join(known[:8])}.")
    return found
