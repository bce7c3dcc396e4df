"""Nets that are slimmed and compared."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime
from small_nets import Net, save

import onnxprune


def outputs(path, seed=0, batch=2):
    """What onnxruntime makes of random inputs, without any code of onnxprune."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(seed)
    feed = {
        value.name: rng.standard_normal([d if isinstance(d, int) else batch for d in value.shape]).astype(
            np.float32
        )
        for value in session.get_inputs()
    }
    return session.run(None, feed)


def change(model, name, function):
    """Edit a copy of an initializer in place, and put it back."""
    value = model.graph.initializers[name]
    array = value.const_value.numpy().copy()
    function(array)
    value.const_value = ir.Tensor(array, name=name)
    return model


def put(index, number):
    def edit(array):
        array[index] = number

    return edit


def shapes(model):
    return {name: tuple(value.shape) for name, value in model.graph.initializers.items()}


def slimmed(model, folder, *, exact=1e-5, **options):
    """Slim a model, and compare its outputs with the input's on two draws of inputs."""
    path = save(model, folder / "net.onnx")
    before = path.read_bytes()
    made = onnxprune.slim(path, folder / "slim.onnx", **options)
    assert path.read_bytes() == before
    for seed in (0, 1):
        for a, b in zip(outputs(path, seed), outputs(folder / "slim.onnx", seed), strict=True):
            assert np.abs(a).max() > 0
            np.testing.assert_allclose(b, a, rtol=0, atol=exact * np.abs(a).max())
    again = onnxprune.slim(folder / "slim.onnx")
    assert (again.report.units, again.report.branches) == (0, ())
    return made


def counts(made):
    return {g.name: (g.zero, g.constant, g.duplicate) for g in made.report.groups}


def unpadded(activation="Relu", *, bias=True, kernel=1):
    """Two convolutions without padding, an activation between them, pooling, a classifier."""
    net = Net()
    x = net.data("image", ("n", 3, 8, 8))
    first = net.normal((8, 3, 3, 3), "first.weight", 0.3)
    x = net.op("Conv", x, first, net.normal((8,), "first.bias"), name="first", pads=[1] * 4)
    x = net.op(activation, x, name="act")
    second = net.normal((6, 8, kernel, kernel), "second.weight", 0.3)
    inputs = [x, second, *([net.normal((6,), "second.bias")] if bias else [])]
    x = net.op("Relu", net.op("Conv", *inputs, name="second"), name="act2")
    return net.model(net.head(x, 6))


def copy_rows(source, target, factor=1.0):
    def edit(array):
        array[target] = array[source] * np.float32(factor)

    return edit
