"""Adaptation of batch norms: running means and variances as the pruned model's own activations give them.

NNCF runs calibration batches with batch norms in training mode. Here every BatchNormalization gets the mean
and the variance of what it sees on all samples, one after the other in topological order, so that each sees
what those before it make of the pruned model: what the running averages of training mode go to.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir

from onnxprune.model import edit
from onnxprune.statistics.batches import Batches
from onnxprune.statistics.norms import MEAN, VARIANCE, Norm, norm_of
from onnxprune.statistics.piecewise import Piecewise


def norms_of(model: ir.Model) -> list[Norm]:
    """Batch norms in inference form, in the order of the graph."""
    found = (norm_of(node) for node in model.graph if node.op_type == "BatchNormalization")
    return [norm for norm in found if isinstance(norm, Norm)]


def adapt_batchnorm(
    model: ir.Model, batches: Batches, provider: str = "cpu", budget: float = 2.0**31
) -> tuple[str, ...]:
    """Re-estimate the mean and the variance of every BatchNormalization.

    Parameters
    ----------
    model
        Mutated: norms get statistics of their own where they shared some.
    batches
        Calibration samples.
    budget
        Bytes of tensors that may be held between two norms.

    Returns
    -------
    tuple of str
        Names of the norms that were adapted. One stays as it is where what it sees is not finite.
    """
    runner = Piecewise(model, batches, provider, budget)
    done = []
    for norm in norms_of(model):
        count, total, squares = 0, np.zeros(norm.groups), np.zeros(norm.groups)
        for found in runner.advance([norm.x]):
            array = found[str(norm.x.name)].astype(np.float64)
            rows = np.moveaxis(array, 1, -1).reshape(-1, norm.groups) - norm.centre
            count, total, squares = count + len(rows), total + rows.sum(0), squares + np.square(rows).sum(0)
        shift = total / max(count, 1)
        variance = squares / max(count, 1) - shift**2
        if count and np.isfinite(shift).all() and np.isfinite(variance).all():
            _give(norm, MEAN, norm.centre + shift)
            _give(norm, VARIANCE, np.maximum(variance, 0.0))
            done.append(norm.label)
    return tuple(done)


def first_batches(batches: Batches, samples: int) -> Batches:
    """The first batches, as many as hold so many samples."""
    count = total = 0
    while count < len(batches) and total < samples:
        total += batches.sizes[count]
        count += 1
    return replace(batches, feeds=batches.feeds[:count], sizes=batches.sizes[:count])


def _give(norm: Norm, slot: int, array: np.ndarray) -> None:
    """Let a norm have other statistics: in place where no one else uses the initializer."""
    value, graph = norm.node.inputs[slot], norm.node.graph
    if value is None or value.const_value is None or not isinstance(graph, ir.Graph):
        raise ValueError(f"{norm.label} has no statistics")
    if len(value.uses()) == 1 and not value.is_graph_output():
        edit.set_array(value, array)
    else:
        dtype = value.const_value.dtype
        norm.node.replace_input_with(slot, edit.add_initializer(graph, str(value.name), array, dtype))
