"""First states of zeros are left out, last states are read where they are made; the model computes what it did."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from recurrent_nets import GATES
from small_nets import Net

from onnxprune.calibrate.sessions import open_session, run
from onnxprune.model.normalize import normalize

HIDDEN = 3


def states(kind, net, x):
    """A first state (1, n, HIDDEN), as exporters and people make it."""
    if kind == "ConstantOfShape":
        ends = (net.constant([1]), net.constant([2]))
        n = net.op("Slice", net.op("Shape", x), *ends)
        shape = net.op("Concat", net.constant([4]), n, net.constant([HIDDEN]), axis=0)
        every = net.op("ConstantOfShape", shape)
        return net.op("Slice", every, net.constant([1]), net.constant([2]), net.constant([0]))
    if kind in ("Expand", "ones"):
        one = net.constant(np.full((1, 1, 1), float(kind == "ones"), np.float32))
        n = net.op("Slice", net.op("Shape", x), net.constant([1]), net.constant([2]))
        return net.op("Expand", one, net.op("Concat", net.constant([1]), n, net.constant([HIDDEN]), axis=0))
    array = np.zeros((1, 2, HIDDEN), np.float32)
    array[0, 1, 1] = float(kind == "weight")
    return net.constant(array, "state")


def weights(net, op_type, name, features):
    rows = GATES[op_type] * HIDDEN
    shapes = {"w": (1, rows, features), "r": (1, rows, HIDDEN), "b": (1, 2 * rows)}
    return [net.normal(shape, f"{name}.{part}") for part, shape in shapes.items()]


def same(model, steps=4, samples=2, width=5):
    normal = normalize(model)
    x = np.random.default_rng(0).standard_normal((steps, samples, width)).astype(np.float32)
    before, after = (run(open_session(each), {"x": x}) for each in (model, normal))
    for name, array in before.items():
        np.testing.assert_array_equal(after[name], array)
    return normal


def layers(model):
    return [node for node in model.graph if node.op_type in GATES]


@pytest.mark.parametrize("kind", ["ConstantOfShape", "Expand", "zeros", "ones", "weight"])
@pytest.mark.parametrize("op_type", GATES)
def test_first_states(op_type, kind):
    net = Net(seed=1)
    x = net.data("x", (4, 2, 5))
    given = [states(kind, net, x) for _ in range(2 if op_type == "LSTM" else 1)]
    y, *_ = net.ops(
        op_type,
        x,
        *weights(net, op_type, "layer", 5),
        None,
        *given,
        outputs=2,
        hidden_size=HIDDEN,
        name="layer",
    )
    (layer,) = layers(same(net.model(net.op("Squeeze", y, net.constant([1])))))
    stays = kind in ("ones", "weight", "zeros")  # initializers that nothing else reads
    assert [value is not None for value in layer.inputs] == [True] * 4 + (
        [False] + [True] * len(given)
    ) * stays


def test_zeros_that_several_layers_share():
    """They stay with the first layer, by name, whatever the order of nodes."""
    net = Net(seed=1)
    x = net.data("x", (4, 2, 5))
    zeros = states("zeros", net, x)
    for name, width in (("b", 5), ("a", HIDDEN), ("c", HIDDEN)):
        y, *_ = net.ops(
            "LSTM",
            x,
            *weights(net, "LSTM", name, width),
            None,
            zeros,
            zeros,
            outputs=1,
            hidden_size=HIDDEN,
            name=name,
        )
        x = net.op("Squeeze", y, net.constant([1]))
    found = {layer.name: len(layer.inputs) for layer in layers(same(net.model(x)))}
    assert found == {"b": 4, "a": 6, "c": 4}


def test_a_state_of_zeros_beside_another():
    """The cell begins with zeros, the hidden state does not: the latter stays where it is."""
    net = Net(seed=1)
    x = net.data("x", (4, 2, 5))
    given = [states(kind, net, x) for kind in ("weight", "Expand")]
    y, *_ = net.ops("LSTM", x, *weights(net, "LSTM", "l", 5), None, *given, outputs=1, hidden_size=HIDDEN)
    (layer,) = layers(same(net.model(y)))
    assert len(layer.inputs) == 6 and layer.inputs[5] is not None


def test_a_state_that_callers_may_feed_stays():
    net = Net(seed=1)
    x = net.data("x", (4, 2, 5))
    state = states("zeros", net, x)
    y, *_ = net.ops("GRU", x, *weights(net, "GRU", "l", 5), None, state, outputs=1, hidden_size=HIDDEN)
    model = net.model(y)
    model.graph.inputs.append(state)
    (layer,) = layers(normalize(model))
    assert layer.inputs[5] is not None


def stacked(reader):
    """Three layers whose last states are joined; `reader` takes some of them."""
    net = Net(seed=2)
    x, last = net.data("x", (4, 2, 5)), []
    for number, features in enumerate((5, HIDDEN, HIDDEN)):
        y, h = net.ops(
            *("GRU", x, *weights(net, "GRU", f"l{number}", features)),
            outputs=2,
            hidden_size=HIDDEN,
            name=f"l{number}",
        )
        x = net.op("Squeeze", y, net.constant([1]))
        last.append(h)
    return net.model(reader(net, net.op("Concat", *last, axis=0, name="joined")))


@pytest.mark.parametrize(
    ("index", "layer"),
    [(-1, "l2"), (0, "l0"), (1, "l1"), ([2], "l2"), ([-3], "l0")],
    ids=str,
)
def test_last_state_of_one_layer(index, layer):
    index = np.array(index, np.int64)
    normal = same(stacked(lambda net, h: net.op("Gather", h, net.constant(index), axis=0, name="pick")))
    (pick,) = (node for node in normal.graph if node.name == "pick")
    assert pick.inputs[0].producer().name == layer
    assert "Concat" not in [node.op_type for node in normal.graph]


@pytest.mark.parametrize(("start", "end", "layer"), [(-1, 9, "l2"), (1, 2, "l1"), (1, 3, None), (0, 3, None)])
def test_slice_of_last_states(start, end, layer):
    bounds = [[start], [end], [0]]
    normal = same(stacked(lambda net, h: net.op("Slice", h, *map(net.constant, bounds), name="pick")))
    (pick,) = (node for node in normal.graph if node.name == "pick")
    assert pick.inputs[0].producer().name == (layer or "joined")


def test_all_last_states_stay_together():
    normal = same(stacked(lambda net, h: net.op("Relu", h)))
    assert isinstance(normal, ir.Model)
    assert "Concat" in [node.op_type for node in normal.graph]
