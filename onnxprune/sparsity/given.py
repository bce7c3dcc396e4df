"""Zeros that somebody chose: put into a copy of the model, with or without weights that make up for them.

Besides the solvers there is `RESCALE`: every output channel of a layer is scaled and shifted to be close to
what it was, which is what an adaptation of batch norms does where these are folded into the layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from onnxprune.analysis import Analysis
from onnxprune.choosing.evidence import Evidence
from onnxprune.patterns import Element
from onnxprune.patterns.pattern import Bools
from onnxprune.repair.fit import fit
from onnxprune.repair.rows import Collector
from onnxprune.repair.targets import Target
from onnxprune.sparsity.layers import WeightLayer, same_layers
from onnxprune.sparsity.sequence import LayerSolution, Solver, Work, shifts
from onnxprune.sparsity.solving import Order, Solved
from onnxprune.surgery.clone import clone_model

RESCALE = "rescale"


class _Matching(Solver):
    """Scales and shifts channels; weights that are zero stay so."""

    def _solved(
        self, collector: Collector, targets: Sequence[Target], works: Sequence[Work]
    ) -> list[Solved | None]:
        found: list[Solved | None] = []
        for work, (seen, held) in zip(works, collector.collect(), strict=True):
            layer, zeros = work.mine, work.order.zeros
            if zeros is None or not (np.isfinite(seen.gram).all() and np.isfinite(held.gram).all()):
                found.append(None)
                continue
            weight = layer.consumer.matrix()
            left = np.where(zeros.reshape(weight.shape), 0.0, weight)
            bias = layer.consumer.bias_vector().reshape(layer.consumer.groups, -1)
            kinds = (RESCALE, "bias") if shifts(layer) else ()
            found.append(Solved(fit(seen, held, left, bias, kinds), zeros))
        return found


def with_zeros(
    analysis: Analysis,
    layers: Sequence[WeightLayer],
    zeros: Mapping[str, Bools],
    *,
    solver: str = "mask",
    evidence: Evidence | None = None,
) -> tuple[ir.Model, dict[str, LayerSolution]]:
    """A copy of the model in which weights are zero.

    Parameters
    ----------
    layers
        Of the original, in topological order.
    zeros
        By the weight's name, flags (outputs, columns).
    solver
        "mask": all other weights stay as they are. "sparsegpt", "obc" or "auto": they make up for the zeros.
        `RESCALE`: channels are scaled and shifted.
    evidence
        What the samples say; only solvers look at it.

    Returns
    -------
    model, solutions
        The copy, in the form in which it was analysed, and by the weight's name what the solver did.
    """
    sparse = clone_model(analysis.axis_graph.model).model
    mine = same_layers(sparse, layers)
    if solver == "mask" or not any(flags.any() for flags in zeros.values()):
        for layer in mine:
            if zeros[layer.name].any():
                layer.set(np.where(zeros[layer.name], 0.0, layer.matrix()))
        return sparse, {}
    if evidence is None:
        raise ValueError("a solver looks at samples")
    tools = (_Matching if solver == RESCALE else Solver)(
        solver,
        Element(),
        evidence.batches,
        evidence.provider,
        evidence.budget,
        evidence.seed,
        evidence.tick("solving"),
    )
    works = []
    for original, layer in zip(layers, mine, strict=True):
        flags = zeros[layer.name]
        works.append(Work(original, layer, Order(float(flags.mean()), flags, np.zeros_like(flags))))
    found = tools.solve(analysis.axis_graph, sparse, works)
    return sparse, {name: solution for name, (_, solution) in found.items()}
