"""Channels that hold the same number for every input go into biases, and only where that is exact."""

from __future__ import annotations

import numpy as np
import pytest
from slimmed import change, counts, put, shapes, slimmed, unpadded
from small_nets import Net, convnet, residual


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", ["Relu", "Sigmoid", "Tanh", "HardSwish", "Identity"])
def test_constants_go_into_biases(tmp_path, activation, bias):
    model = change(unpadded(activation, bias=bias, kernel=3), "first.weight", put([1, 4], 0))
    model = change(model, "first.bias", put([1, 4], [0.7, 1.3]))
    made = slimmed(model, tmp_path)
    assert counts(made) == {"first": (0, 2, 0)}
    assert shapes(made.model)["second.weight"] == (6, 6, 3, 3)


def test_sigmoid_of_zero_is_no_zero(tmp_path):
    """Weights and bias of zero, and still the channel carries 0.5."""
    model = change(unpadded("Sigmoid"), "first.weight", put([1, 4], 0))
    model = change(model, "first.bias", put([1, 4], 0))
    made = slimmed(model, tmp_path)
    assert counts(made) == {"first": (0, 2, 0)}
    weight = model.graph.initializers["second.weight"].const_value.numpy()
    bias = model.graph.initializers["second.bias"].const_value.numpy()
    expected = bias + 0.5 * weight[:, [1, 4], 0, 0].sum(axis=1)
    found = made.model.graph.initializers["second.bias"].const_value.numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_padding_sees_zeros_where_the_channel_has_a_constant(tmp_path):
    model = change(convnet(), "conv1.weight", put(3, 0))
    model = change(model, "conv1.bias", put(3, 2.0))
    made = slimmed(model, tmp_path, exact=0)
    assert made.report.units == 0
    (left,) = made.report.left
    assert (left.name, left.what, left.units) == ("conv1", "constant", 1)
    assert "outputs at the border do not see it" in left.why


@pytest.mark.parametrize("transposed", [0, 1])
def test_gemm_takes_constants_with_its_factors(tmp_path, transposed):
    net = Net()
    x = net.data("x", ("n", 5))
    x = net.op("Relu", net.linear(x, "first", 5, 8), name="relu")
    shape = (4, 8) if transposed else (8, 4)
    x = net.op(
        "Gemm",
        x,
        net.normal(shape, "second.weight"),
        net.normal((1, 4), "second.bias"),
        name="second",
        transB=transposed,
        alpha=0.5,
        beta=2.0,
    )
    model = change(net.model(x), "first.weight", put([0, 7], 0))
    model = change(model, "first.bias", put([0, 7], [3.0, 1.0]))
    assert counts(slimmed(model, tmp_path)) == {"first": (0, 2, 0)}


def test_matmul_gets_a_bias(tmp_path):
    net = Net()
    x = net.data("x", ("n", 4, 5))
    x = net.op("MatMul", x, net.normal((5, 8), "first.weight"), name="first")
    x = net.op("Gelu" if net.opset >= 20 else "Softplus", x, name="act")
    y = net.op("MatMul", x, net.normal((8, 3), "second.weight"), name="second")
    model = change(net.model(y), "first.weight", put((slice(None), [2, 3]), 0))
    made = slimmed(model, tmp_path)
    assert counts(made) == {"first": (0, 2, 0)}
    assert [n.op_type for n in made.model.graph][-1] == "Add"
    assert [v.name for v in made.model.graph.outputs] == [v.name for v in model.graph.outputs]


def test_batch_norm_with_scale_zero_leaves_its_shift(tmp_path):
    net = Net()
    x = net.conv(net.data("image", ("n", 3, 8, 8)), "first", (8, 3, 3, 3))
    x = net.op("Relu", net.batch_norm(x, "bn", 8), name="relu")
    x = net.op("Conv", x, net.normal((6, 8, 1, 1), "second.weight"), name="second")
    model = change(net.model(net.head(x, 6)), "bn.weight", put([1, 2], 0))
    model = change(model, "bn.bias", put([1, 2], [0.5, -0.5]))
    made = slimmed(model, tmp_path)
    assert counts(made) == {"first": (1, 1, 0)}  # Relu(-0.5) is zero


def test_batch_norm_shifts_a_filter_of_zeros(tmp_path):
    model = change(convnet(norm=True), "conv1.weight", put(3, 0))
    made = slimmed(model, tmp_path, exact=1e-5)
    bn = {
        part: float(model.graph.initializers[f"bn1.{part}"].const_value.numpy()[3])
        for part in ("weight", "bias", "mean", "variance")
    }
    start = float(model.graph.initializers["conv1.bias"].const_value.numpy()[3])
    value = (start - bn["mean"]) / np.sqrt(bn["variance"] + 1e-5) * bn["weight"] + bn["bias"]
    assert made.report.units == (1 if value <= 0 else 0)


def test_residual_sums_keep_what_one_side_adds(tmp_path):
    """A zero filter in a block's last convolution: the stream's channel still carries the shortcut."""
    model = change(residual(), "block0.b.weight", put([0, 1], 0))
    model = change(model, "block0.b.bias", put([0, 1], 0))
    made = slimmed(model, tmp_path, exact=0)
    assert made.report.units == 0


def test_depthwise_convolutions_hand_zeros_on_and_padding_stops_constants(tmp_path):
    def build():
        net = Net()
        x = net.op("Relu", net.conv(net.data("image", ("n", 3, 8, 8)), "first", (8, 3, 1, 1)), name="relu0")
        x = net.op("Relu", net.conv(x, "depthwise", (8, 1, 3, 3), group=8), name="relu1")
        return net.model(net.head(net.op("Relu", net.conv(x, "last", (6, 8, 1, 1)), name="relu2"), 6))

    model = change(build(), "first.weight", put(2, 0))
    model = change(model, "first.bias", put(2, 0))
    model = change(model, "depthwise.bias", put(2, 0.75))
    assert counts(slimmed(model, tmp_path)) == {"first": (0, 1, 0)}
    model = change(model, "first.bias", put(2, 1.0))
    folder = tmp_path / "padded"
    folder.mkdir()
    made = slimmed(model, folder)
    assert made.report.units == 0


def test_a_shared_weight_needs_all_its_uses(tmp_path):
    net = Net()
    x, y = net.data("x", ("n", 8)), net.data("y", ("n", 8))
    shared = net.normal((8, 8), "shared.weight")
    a = net.op("Relu", net.op("MatMul", x, shared, name="one"), name="relu_a")
    b = net.op("Sigmoid", net.op("MatMul", y, shared, name="two"), name="relu_b")
    a = net.op("MatMul", a, net.normal((8, 4), "a.weight"), name="a")
    b = net.op("MatMul", b, net.normal((8, 4), "b.weight"), name="b")
    model = change(net.model(a, b), "shared.weight", put((slice(None), 3), 0))
    made = slimmed(model, tmp_path)
    assert counts(made) == {"one": (0, 1, 0)}  # zero for one of them, 0.5 for the other
    assert shapes(made.model)["a.weight"] == shapes(made.model)["b.weight"] == (7, 4)


def test_flattened_maps_give_constants_to_a_gemm(tmp_path):
    net = Net()
    x = net.conv(net.data("image", ("n", 3, 4, 4)), "first", (6, 3, 3, 3))
    x = net.op("Flatten", net.op("Relu", x, name="relu"), name="flat")
    model = change(net.model(net.linear(x, "fc", 96, 5)), "first.weight", put([0, 4], 0))
    model = change(model, "first.bias", put([0, 4], [1.5, 2.5]))
    made = slimmed(model, tmp_path)
    assert counts(made) == {"first": (0, 2, 0)}
    assert shapes(made.model)["fc.weight"] == (5, 64)
