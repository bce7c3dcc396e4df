"""Repair a cut model layer by layer: inputs from the model repaired so far, targets from the original.

Both models run piece by piece over the calibration samples. Before a layer that lost input channels runs, it
gets the weights that bring its output closest to what the original computes there. Where the output is added to
a residual stream, the target is the stream, so that errors that came before are corrected and do not pile up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.evaluate.smaller import cut_feed, cuts_by_name
from onnxprune.graph.axes import Kept
from onnxprune.graph.build import AxisGraph
from onnxprune.repair.fit import fit
from onnxprune.repair.rows import Collector
from onnxprune.repair.targets import Pair, Target, layers_to_repair, target_of
from onnxprune.repair.write import write
from onnxprune.statistics.batches import Batches
from onnxprune.statistics.piecewise import Piecewise

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class LayerRepair:
    """What became of one layer that lost inputs, or that lies behind such layers.

    Attributes
    ----------
    name
        Of the layer.
    lost
        Whether it lost inputs.
    kind
        "affine", "rescale", "bias", or "none" where the old weights were best or nothing could be done.
    before, after
        Error of the layer's output on held-out samples, as a share of its variance, without and with the repair.
    why
        Why nothing could be done.
    """

    name: str
    lost: bool
    kind: str
    before: float
    after: float
    why: str = ""


@dataclass(frozen=True)
class Repairs:
    """What the repair of a model did.

    Attributes
    ----------
    layers
        One entry per layer that lost inputs or lies behind such layers.
    arrays
        By the name of a layer's first output: its new weight and bias (outputs,).
    """

    layers: tuple[LayerRepair, ...] = ()
    arrays: dict[str, tuple[Array, Array]] = field(default_factory=dict, repr=False)


def repair(
    axis_graph: AxisGraph,
    cut: ir.Model,
    kept: Kept,
    batches: Batches,
    *,
    kinds: Sequence[str],
    provider: str = "cpu",
    budget: float = 2.0**31,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Repairs:
    """Give the layers of a cut model that lost inputs, and those behind them, the weights that make up for it.

    Parameters
    ----------
    axis_graph
        Of the original; not mutated.
    cut
        What `onnxprune.surgery.remove` made of it; its weights are mutated, and biases may be added.
    kept
        Positions that `cut` still has.
    batches
        Calibration samples.
    kinds
        What to try per layer: "affine", "rescale", "bias". A repair is taken only if it lowers the error on
        batches that it was not fitted on.
    budget
        Bytes that tensors between two layers may take, for both models.
    """
    pairs, left = layers_to_repair(axis_graph, cut, kept)
    teacher = Piecewise(axis_graph.model, batches, provider, budget / 2)
    cuts = cuts_by_name(kept)  # inputs may be smaller, too
    student = Piecewise(cut, [cut_feed(feed, cuts) for feed in batches], provider, budget / 2)
    rng = np.random.default_rng(seed)
    done: list[LayerRepair] = []
    arrays: dict[str, tuple[Array, Array]] = {}
    waiting = [pair.student.node for pair in pairs]
    while pairs:
        targets = _ready(axis_graph, student, kept, pairs, waiting)
        pairs = pairs[len(targets) :]
        collector = Collector(axis_graph, teacher, student, targets, batches, rng)
        for target, (seen, held) in zip(targets, collector.collect(), strict=True):
            layer = target.pair.student
            waiting.remove(layer.node)
            if not (np.isfinite(seen.gram).all() and np.isfinite(held.gram).all()):
                left[layer.label] = "what it sees is not finite on the calibration samples"
                continue
            bias = layer.bias_vector().reshape(layer.groups, -1)
            found = fit(seen, held, layer.matrix(), bias, kinds)
            if found.kind != "none":
                weight, vector = layer.from_matrix(found.weight), found.bias.ravel()
                write(layer, weight, vector)
                arrays[str(target.pair.teacher.node.outputs[0].name)] = weight, vector
            scale = found.energy or 1.0
            done.append(
                LayerRepair(
                    layer.label, target.pair.lost, found.kind, found.before / scale, found.error / scale
                )
            )
        if progress is not None:
            progress(len(done), len(done) + len(pairs))
    done += [LayerRepair(name, True, "none", float("nan"), float("nan"), why) for name, why in left.items()]
    return Repairs(tuple(done), arrays)


def _ready(
    axis_graph: AxisGraph, student: Piecewise, kept: Kept, pairs: Sequence[Pair], waiting: Sequence[ir.Node]
) -> list[Target]:
    """The first layers whose inputs do not depend on layers that are still to be repaired."""
    found: list[Target] = []
    for pair in pairs:
        target = target_of(axis_graph, student, kept, pair, waiting)
        if found and student.ahead(target.needs) & set(waiting):
            break
        found.append(target)
    return found
