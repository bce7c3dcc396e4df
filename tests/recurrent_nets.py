"""Small recurrent networks that several test files share."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from small_nets import Net

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def layer(net: Net, op_type, x, features, hidden, *, name, both=False, twins=False, **attributes):
    """All states as (steps, samples, directions x hidden), as exporters write it.

    With `twins`, units of the second half are made by the same weights as those of the first half, and read
    by others.
    """
    d, gates = 2 if both else 1, GATES[op_type]
    shapes = {"w": (d, gates, hidden, features), "r": (d, gates, hidden, hidden), "b": (d, 2 * gates, hidden)}
    weights = []
    for part, shape in shapes.items():
        array = net.rng.standard_normal(shape) * (0.3 if part == "b" else 1.5 / np.sqrt(shape[-1]))
        if twins:
            array[:, :, hidden // 2 :] = array[:, :, : hidden // 2]
        joined = array.reshape(d, -1, *shape[3:]) if part != "b" else array.reshape(d, -1)
        weights.append(net.constant(joined.astype(np.float32), f"{name}.{part}"))
    y, *_ = net.ops(
        *(op_type, x, *weights),
        outputs=3 if op_type == "LSTM" else 2,
        hidden_size=hidden,
        name=name,
        **({"direction": "bidirectional"} if both else {}),
        **({"linear_before_reset": 1, **attributes} if op_type == "GRU" else attributes),
    )
    turned = net.op("Transpose", y, perm=[0, 2, 1, 3], name=f"{name}/transpose")
    return net.op("Reshape", turned, net.constant([0, 0, -1]), name=f"{name}/reshape")


def classifier(op_type, hidden=(6, 8), *, both=False, twins=False, steps=7, features=5, seed=0, **attributes):
    """Layers one behind the other, the mean of their states over time, and a linear layer; `x` in."""
    net = Net(seed=seed)
    x = net.op("Transpose", net.data("x", ("n", steps, features)), perm=[1, 0, 2], name="time_first")
    before = features
    for number, width in enumerate(hidden):
        x = layer(net, op_type, x, before, width, name=f"layer{number}", both=both, twins=twins, **attributes)
        before = width * (2 if both else 1)
    mean = net.op("ReduceMean", x, net.constant([0]), keepdims=0, name="mean")
    return net.model(net.linear(mean, "fc", before, 4))


def sequences(count=60, steps=7, features=5, seed=0):
    """Inputs of `classifier`, one sample each."""
    rng = np.random.default_rng(seed)
    return [{"x": rng.standard_normal((1, steps, features)).astype(np.float32)} for _ in range(count)]


def saved(model, path):
    ir.save(model, path)
    return path
