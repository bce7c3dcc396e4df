"""Two linear layers whose gradients are written out by hand, and samples for them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from small_nets import Net, save

from onnxprune.analysis import analyze
from onnxprune.calibrate.data import read_dataset
from onnxprune.calibrate.dataset import input_specs
from onnxprune.sparsity.layers import find_layers
from onnxprune.statistics.gradients import Differentiation

INPUTS, HIDDEN, OUTPUTS = 6, 8, 4


def two_layers(seed: int = 3):
    """`y = B (A x)`: Gemm, Gemm, the second with alpha = 2 and its weight not transposed."""
    n = Net(seed=seed)
    x = n.data("x", ("n", INPUTS))
    a = n.normal((HIDDEN, INPUTS), "A", 0.4)
    b = n.normal((HIDDEN, OUTPUTS), "B", 0.2)
    hidden = n.op("Gemm", x, a, name="first", transB=1)
    return n.model(n.ops("Gemm", hidden, b, outputs=["y"], name="second", alpha=2.0)[0])


def samples(count: int = 40, seed: int = 5) -> dict:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((count, INPUTS)).astype(np.float32)
    labels = rng.standard_normal((count, OUTPUTS)).astype(np.float32)
    return {"x": x, "labels": labels}


def opened(path: Path, data: dict, model=None, **options):
    """Analysis, layers and how the loss is differentiated; two_layers by default."""
    analysis = analyze(save(two_layers() if model is None else model, path / "net.onnx"))
    dataset = read_dataset(data, input_specs(analysis.source.ir))
    layers = find_layers(analysis.axis_graph).layers
    return analysis, layers, Differentiation(analysis.axis_graph, dataset, **{"size": 8, **options})


def loss_and_gradients(a, b, x, labels):
    """Mean squared error, and its gradients with respect to A (hidden, inputs) and 2 B^T (outputs, hidden)."""
    out = 2 * b.T
    h = x @ a.T
    error = h @ out.T - labels
    slope = 2 * error / error.size
    return np.square(error).mean(), {"A": (slope @ out).T @ x, "B": slope.T @ h}
