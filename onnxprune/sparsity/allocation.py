"""How many weights each layer loses where a solver chooses which: as much as costs the outputs least in all.

The error of a layer's output is solved for at several levels, each layer for itself and with the original's
inputs. How much of that error the model's outputs see is measured once per layer, at the level that is asked
for, on samples that the statistics have not seen. The product is a curve of loss against zeros; of its lower
convex hulls the cheapest stretches are taken, layer against layer, until there are enough zeros: what
minimises the sum of the losses.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxprune.choosing.evidence import BATCH, Evidence
from onnxprune.patterns import Pattern
from onnxprune.patterns.pattern import Bools
from onnxprune.sparsity.layers import WeightLayer
from onnxprune.sparsity.select import count
from onnxprune.sparsity.solving import Order, input_covariance, solve_alone
from onnxprune.statistics.collect import input_statistics
from onnxprune.statistics.moments import Moments
from onnxprune.statistics.sensitivity import Trial, refitted

Array = np.ndarray[Any, Any]

DENSITIES = (4.0, 2.8, 2.0, 1.4, 1.0, 0.7, 0.5, 0.35, 0.25, 0.12)
"""Shares of what stays at the level that is asked for, at which errors are solved for."""

LARGEST_CHANGE = 1e6
"""Of outputs, as a share of their variance; stands for anything larger, infinities among them."""


@dataclass(frozen=True)
class Curve:
    """What a layer's zeros cost.

    Attributes
    ----------
    zeros
        Ascending numbers of zeros, from 0 on.
    losses
        At each of them.
    """

    zeros: tuple[float, ...]
    losses: tuple[float, ...]

    def hull(self) -> list[tuple[float, float, float]]:
        """Stretches of the lower convex hull: slope, zeros before, zeros after; slopes ascend."""
        points: list[tuple[float, float]] = []
        for point in zip(self.zeros, self.losses, strict=True):
            while len(points) > 1 and _slope(points[-2], point) <= _slope(points[-2], points[-1]):
                points.pop()
            points.append(point)
        return [(_slope(a, b), a[0], b[0]) for a, b in zip(points, points[1:], strict=False)]


def _slope(a: tuple[float, float], b: tuple[float, float]) -> float:
    return (b[1] - a[1]) / (b[0] - a[0])


def spread(curves: Sequence[Curve], total: int, least: Sequence[int]) -> list[int]:
    """Numbers of zeros per curve that add up to `total` at the least loss in all.

    Parameters
    ----------
    total
        At most the last point of all curves together.
    least
        What every curve has at least.
    """
    counts = [float(n) for n in least]
    parts = sorted(
        (slope, number, start, end)
        for number, curve in enumerate(curves)
        for slope, start, end in curve.hull()
    )
    room = total - sum(counts)
    for _, number, _, end in parts:
        more = min(max(end - counts[number], 0.0), room)
        counts[number] += more
        room -= more
    whole = [math.floor(n + 1e-6) for n in counts]
    order = sorted(range(len(curves)), key=lambda n: (whole[n] - counts[n], n))
    for n in order[: max(total - sum(whole), 0)]:
        whole[n] += 1
    return whole


def levels_by_loss(
    layers: Sequence[WeightLayer],
    pattern: Pattern,
    level: float,
    evidence: Evidence,
    *,
    gone: Mapping[str, Bools],
    min_ratio: float = 0.0,
    max_ratio: float = 1.0,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> dict[str, float]:
    """The level of each layer, by the weight's name.

    Parameters
    ----------
    gone
        By the weight's name, flags (outputs, columns) of weights that stay zero.
    """
    statistics = input_statistics(
        evidence.analysis.axis_graph,
        [layer.consumer for layer in layers],
        evidence.batches,
        provider=evidence.provider,
        budget=evidence.budget,
        seed=evidence.seed,
        progress=evidence.tick("collecting statistics"),
    )
    samples = list(evidence.divided[1].batches(BATCH))[:3]
    trial = Trial(
        evidence.analysis.axis_graph.model, [layer.consumer for layer in layers], samples, evidence.provider
    )
    curves, least = [], []
    top = min(max_ratio, pattern.most)
    for number, layer in enumerate(layers):
        seen = statistics[layer.consumer.weight].moments
        curves.append(_curve(layer, pattern, level, seen, trial, top))
        least.append(max(count(min_ratio, layer.grid.size), int(gone[layer.name].sum())))
        progress(number + 1, len(layers))
    sizes = [layer.grid.size for layer in layers]
    counts = spread(curves, count(level, sum(sizes)), least)
    return {layer.name: n / size for layer, n, size in zip(layers, counts, sizes, strict=True)}


def _curve(
    layer: WeightLayer, pattern: Pattern, level: float, seen: Moments, trial: Trial, top: float
) -> Curve:
    levels = sorted({min(max(1 - share * (1 - level), 0.0), top) for share in DENSITIES} - {0.0})
    matrix = layer.consumer.matrix()
    covariance = input_covariance(seen, matrix.shape[2])
    errors, factor = [], 0.0
    for each in levels:
        order = Order(each, None, np.zeros(layer.grid.shape, bool))
        solved = solve_alone(layer, order, pattern, matrix, covariance)
        change = solved - matrix
        errors.append(max(float(np.einsum("gof,gfh,goh->", change, covariance, change)), 0.0))
        if each == level:
            seen_change = trial.change(refitted([layer.consumer], [solved], [seen]))
            factor = min(seen_change, LARGEST_CHANGE) / max(errors[-1], 1e-12)
    losses = np.maximum.accumulate([0.0, *(factor * error for error in errors)])
    return Curve((0.0, *(each * layer.grid.size for each in levels)), tuple(losses.tolist()))
