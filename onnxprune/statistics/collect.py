"""Moments of the inputs of all layers that consume prunable channels, in few passes over the samples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import onnx_ir as ir

from onnxprune.calibrate.sessions import open_session, run
from onnxprune.errors import DataError
from onnxprune.graph.build import AxisGraph
from onnxprune.model.opset import raise_opset
from onnxprune.model.taps import Tap, add_taps
from onnxprune.statistics.batches import Batches
from onnxprune.statistics.consumers import Consumer, consumer_of
from onnxprune.statistics.moments import Matrix, Moments
from onnxprune.statistics.norms import LinearMap
from onnxprune.statistics.probes import LEAST_OPSET, Probe
from onnxprune.statistics.views import Sight, name_of, sights, view_of, why_unseen

ROWS = 48
"""Rows per feature that are looked at, where the samples have as many."""

FEWEST = 16384
"""Rows that are looked at in any case."""


T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class InputStatistics:
    """Of the unfolded input of one layer.

    Attributes
    ----------
    moments
        Of its rows.
    positive
        Shape (groups, features): share of the rows in which a feature is above zero.
    """

    moments: Moments
    positive: Matrix


def consumers(axis_graph: AxisGraph) -> dict[ir.Value, Consumer]:
    """Every layer of which a session shows what it sees that is a linear map of an activation, by its weight."""
    found = {}
    for op in axis_graph.ops:
        consumer = consumer_of(op.node)
        if isinstance(consumer, Consumer) and not why_unseen(axis_graph, consumer):
            found[consumer.weight] = consumer
    return found


def share_of_rows(consumer: LinearMap, sight: Sight) -> float:
    """Which share of a layer's rows is enough."""
    want = max(ROWS * consumer.columns * consumer.taps, FEWEST)
    return min(1.0, want / max(sight.place.rows * sum(sight.sizes), 1))


def input_statistics(
    axis_graph: AxisGraph,
    layers: Iterable[Consumer],
    batches: Batches,
    *,
    provider: str = "cpu",
    budget: float = 2**30,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> dict[ir.Value, InputStatistics]:
    """Statistics of each layer's unfolded input, by its weight.

    Parameters
    ----------
    axis_graph
        Of the model; not mutated.
    layers
        What to look at.
    batches
        Feeds of the model's inputs.
    budget
        Bytes of float64 matrices and of rows that one pass may take; more layers take more passes.
    """
    found: dict[ir.Value, InputStatistics] = {}
    layers = list(layers)
    seen = dict(zip(layers, sights(axis_graph, layers, batches, provider), strict=True))
    passes = divide(layers, lambda layer: 16.0 * layer.groups * (layer.columns * layer.taps) ** 2, budget)
    for number, part in enumerate(passes):
        found |= _one_pass(axis_graph, {layer: seen[layer] for layer in part}, batches, provider, seed)
        if progress is not None:
            progress(number + 1, len(passes))
    return found


def divide(items: Iterable[T], need: Callable[[T], float], budget: float) -> list[list[T]]:
    """Items in passes, in order, so that what those of one pass need together stays below the budget."""
    passes: list[list[T]] = []
    room = 0.0
    for item in items:
        if not passes or room < need(item):
            passes.append([])
            room = budget
        passes[-1].append(item)
        room -= need(item)
    return passes


def read_moments(found: Mapping[str, Any], name: str, rows: int) -> Moments:
    """Moments of so many rows, from the outputs that a probe of this name has; zeros where there are none.

    What a probe shows then is made of a row of zeros (see `onnxprune.statistics.probes`).
    """
    total, gram = (found[f"{name}/{key}"].astype(np.float64) for key in ("total", "gram"))
    if not rows:
        total, gram = np.zeros_like(total), np.zeros_like(gram)
    return Moments(float(rows), total[:, 0], gram)


def _one_pass(
    axis_graph: AxisGraph,
    layers: Mapping[Consumer, Sight],
    batches: Batches,
    provider: str,
    seed: int,
) -> dict[ir.Value, InputStatistics]:
    rng = np.random.default_rng(seed)
    views = [view_of(layer, layer.x) for layer in layers]
    taps = [view for view in views if isinstance(view, Tap)]
    model = axis_graph.model.clone()
    model = raise_opset(model, LEAST_OPSET) if taps else model
    graph = model.graph
    known = add_taps(graph, taps)  # may make loops, and what they put out, once more
    known |= {str(v.name): v for v in graph.inputs} | {str(o.name): o for n in graph for o in n.outputs}
    shares = [share_of_rows(layer, sight) for layer, sight in layers.items()]
    probes = []
    names: list[str] = []
    graph.outputs.clear()
    for n, ((layer, sight), share) in enumerate(zip(layers.items(), shares, strict=True)):
        place = sight.place
        probe = Probe(graph, layer, f"probe{n}", place.count(share), place if place.flat else None)
        rows = probe.input_rows(known[name_of(views[n])])
        names += [*probe.moments(rows), probe.positive(rows)]
        probes.append(probe)
    model.ir_version = max(model.ir_version, 8)
    session = open_session(model, provider)
    sums: dict[ir.Value, Moments] = {}
    positive: dict[ir.Value, Matrix] = {}
    for batch, feed in enumerate(batches):
        more: dict[str, Any] = {}
        counts = []
        for probe, sight, share in zip(probes, layers.values(), shares, strict=True):
            drawn = sight.draw(rng, share, batch)
            counts.append(sight.rows(drawn, batch))
            more |= probe.feed(drawn, sight.shown(drawn, batch))
        got = run(session, {**feed, **more}, names)
        for n, layer in enumerate(layers):
            part = read_moments(got, f"probe{n}", counts[n])
            above = got[f"probe{n}/positive"][:, 0].astype(np.float64)
            above = above if counts[n] else np.zeros_like(above)
            known_before = layer.weight in sums
            sums[layer.weight] = sums[layer.weight] + part if known_before else part
            positive[layer.weight] = positive[layer.weight] + above if known_before else above
    for layer in layers:
        if not np.isfinite(sums[layer.weight].gram).all():
            raise DataError(
                f"the input of layer {layer.label} is not finite on the calibration samples",
                "Leave out samples with NaN or infinities, and check the preprocessing.",
            )
    return {
        weight: InputStatistics(moments, positive[weight] / max(moments.count, 1.0))
        for weight, moments in sums.items()
    }
