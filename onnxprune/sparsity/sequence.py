"""Layer after layer: inputs from the model that is sparse so far, targets from the original.

As in `onnxprune.repair.sequence`, both models run piece by piece over the samples, and a layer that is added
to a residual stream has the stream as its target, so that errors that came before are corrected and do not
pile up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxprune.graph.build import AxisGraph
from onnxprune.patterns import Pattern
from onnxprune.patterns.pattern import Bools
from onnxprune.repair.rows import Collector
from onnxprune.repair.sequence import ready
from onnxprune.repair.targets import Pair, Target
from onnxprune.repair.write import TOO_LARGE, fits, write
from onnxprune.sparsity.layers import WeightLayer
from onnxprune.sparsity.select import Scored, select
from onnxprune.sparsity.solving import Order, Solved, affordable, solve_again, solve_layer
from onnxprune.statistics.batches import Batches
from onnxprune.statistics.piecewise import Piecewise
from onnxprune.statistics.views import sights

Progress = Callable[[int, int], None]

NOT_FINITE = "what it sees is not finite on the calibration samples"


@dataclass(frozen=True)
class LayerSolution:
    """What became of one layer.

    Attributes
    ----------
    kind
        "weights" (the solver's), "bias" (zeros, and a bias that makes up for them) or "mask" (zeros alone).
    solver
        "obc" or "sparsegpt".
    before, after
        Error of the layer's output on held-out samples as a share of its variance: with zeros alone, and as
        it is. Where the fit looked behind a Relu or Clip, `after` is what is left there at most.
    why
        Why it has zeros alone where it could not be solved.
    """

    kind: str
    solver: str
    before: float = float("nan")
    after: float = float("nan")
    why: str = ""


@dataclass(frozen=True)
class Work:
    """A layer in the original and in the sparse model, and what is asked of it."""

    original: WeightLayer
    mine: WeightLayer
    order: Order

    @property
    def pair(self) -> Pair:
        """As `onnxprune.repair` sees it."""
        return Pair(self.mine.consumer, self.original.consumer, True)


@dataclass(frozen=True)
class Solver:
    """How layers are solved.

    Parameters
    ----------
    kind
        "sparsegpt", "obc" or "auto": obc in layers in which it takes seconds rather than minutes.
    pattern
        Of the zeros.
    batches
        Calibration samples.
    provider
        onnxruntime's.
    budget
        Bytes that tensors between two layers may take, for both models.
    seed
        For the positions that are drawn.
    progress
        Called with (layers done, layers in all).
    """

    kind: str
    pattern: Pattern
    batches: Batches
    provider: str = "cpu"
    budget: float = 2.0**31
    seed: int = 0
    progress: Progress = lambda _done, _total: None

    def solve(
        self, axis_graph: AxisGraph, sparse: ir.Model, works: Sequence[Work]
    ) -> dict[str, tuple[Bools, LayerSolution]]:
        """Give layers their zeros, and weights that make up for them.

        Parameters
        ----------
        axis_graph
            Of the original; not mutated.
        sparse
            A copy of it; its weights are mutated, and biases may be added to convolutions and Gemm.
        works
            In topological order.

        Returns
        -------
        dict
            By the weight's name: flags (outputs, columns) of the zeros, and what became of the layer.
        """
        teacher = Piecewise(axis_graph.model, self.batches, self.provider, self.budget / 2)
        student = Piecewise(sparse, list(self.batches), self.provider, self.budget / 2)
        layers = [work.original.consumer for work in works]
        found = sights(axis_graph, layers, self.batches, self.provider)
        seen = {layer.key: sight for layer, sight in zip(layers, found, strict=True)}
        rng = np.random.default_rng(self.seed)
        waiting = [work.mine.consumer.node for work in works]
        done: dict[str, tuple[Bools, LayerSolution]] = {}
        while len(done) < len(works):
            rest = works[len(done) :]
            targets = ready(axis_graph, student, {}, [work.pair for work in rest], waiting)
            now = rest[: len(targets)]
            for work in now:
                waiting.remove(work.mine.consumer.node)
            collector = Collector(teacher, student, targets, self.batches, rng, seen)
            for work, solved in zip(now, self._solved(collector, targets, now), strict=True):
                done[work.mine.name] = self._written(work, solved)
            self.progress(len(done), len(works))
        return done

    def of(self, layer: WeightLayer) -> str:
        """What solves a layer."""
        if self.kind != "auto":
            return self.kind
        return "obc" if affordable(layer.grid.outputs, layer.grid.columns) else "sparsegpt"

    def _solved(
        self, collector: Collector, targets: Sequence[Target], works: Sequence[Work]
    ) -> list[Solved | None]:
        """What is best for layers that do not depend on each other; None where inputs are not finite."""
        moments = collector.collect()
        if not all(np.isfinite(each.gram).all() for pair in moments for each in pair):
            return [None] * len(works)
        solved = [
            solve_layer(
                work.mine, work.order, self.of(work.mine), self.pattern, *pair, shifts=shifts(work.mine)
            )
            for work, pair in zip(works, moments, strict=True)
        ]
        behind = collector.behind([each.fit for each in solved], moments)
        return [
            solve_again(each, *pair) if target.flat is not None and shifts(work.mine) else each
            for each, pair, target, work in zip(solved, behind, targets, works, strict=True)
        ]

    def _written(self, work: Work, solved: Solved | None) -> tuple[Bools, LayerSolution]:
        """Give a layer what was solved, or zeros alone."""
        layer, kind = work.mine, self.of(work.mine)
        if solved is None:
            zeros = work.order.zeros
            if zeros is None:
                scored = Scored(layer.name, layer.grid, np.abs(layer.matrix()), work.order.gone)
                zeros = select([scored], self.pattern, work.order.level, scope="local")[layer.name]
            layer.set(np.where(zeros, 0.0, layer.matrix()))
            return zeros, LayerSolution("mask", kind, why=NOT_FINITE)
        found, scale = solved.fit, solved.fit.energy or 1.0
        weight, bias = layer.consumer.from_matrix(found.weight), found.bias.ravel()
        if not fits(layer.consumer, weight, bias):
            layer.set(np.where(solved.zeros, 0.0, layer.matrix()))
            return solved.zeros, LayerSolution("mask", kind, why=TOO_LARGE)
        if found.kind == "mask" or not shifts(layer):
            layer.set(found.weight.reshape(layer.grid.shape))
        else:
            write(layer.consumer, weight, bias)
        return solved.zeros, LayerSolution(found.kind, kind, found.before / scale, found.error / scale)


def shifts(layer: WeightLayer) -> bool:
    """Whether a layer has a bias, or can get one without another node."""
    return layer.consumer.bias is not None or layer.consumer.node.op_type != "MatMul"
