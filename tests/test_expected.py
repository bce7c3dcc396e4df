"""What the head of a graph says about its inputs: likeness, units, ranges."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from small_nets import Net

from onnxprune.calibrate.dataset import input_specs
from onnxprune.expected import BRIGHTNESS, CONTRAST, drawings

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def drawn(model: ir.Model, samples: int = 40):
    """The drawing of the only input, and samples of it along a new leading axis."""
    (spec,) = input_specs(model)
    shape = tuple(extent if isinstance(extent, int) else 1 for extent in spec.shape)
    drawing = drawings(model, [spec], {spec.name: shape})[spec.name]
    values = [drawing.draw(np.random.default_rng(seed), spec.dtype, shape) for seed in range(samples)]
    assert {(value.shape, value.dtype) for value in values} == {(shape, spec.dtype)}
    return drawing, np.stack(values).astype(np.float64)


def head(net: Net, x: ir.Value, channels: int = 3) -> ir.Model:
    return net.model(net.conv(x, "conv", (4, channels, 3, 3)))


def column(figures) -> np.ndarray:
    return np.array(figures, np.float32).reshape(1, -1, 1, 1)


def test_pictures_without_a_normalisation():
    net = Net()
    drawing, values = drawn(head(net, net.data("image", ("n", 3, 16, 16))))
    assert (drawing.likeness, drawing.channel) == ("picture", 1)
    assert values.std() == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize("scaled", [False, True])
def test_mean_and_deviation_that_the_graph_takes_away(scaled):
    net = Net()
    x = net.data("image", ("n", 3, 16, 16))
    most = 1.0
    if scaled:
        most, x = 255.0, net.op("Mul", x, net.constant(np.float32(1 / 255), "scale"))
    x = net.op("Sub", x, net.constant(column(MEAN), "mean"))
    x = net.op("Div", x, net.constant(column(STD), "std"))
    drawing, values = drawn(head(net, x))
    np.testing.assert_allclose(drawing.mean, np.array(MEAN) * most, rtol=1e-5)
    np.testing.assert_allclose(drawing.std, np.array(STD) * most, rtol=1e-5)
    assert values.mean() == pytest.approx(np.mean(MEAN) * most, rel=0.2)


@pytest.mark.parametrize(
    ("steps", "most"),
    [
        ([("Div", 255.0)], 255),
        ([("Mul", 1 / 255)], 255),
        ([("Div", 127.5), ("Sub", 1.0)], 255),
        ([("Sub", 127.5), ("Mul", 1 / 127.5)], 255),
        ([("Mul", 2.0), ("Add", -1.0)], 1),
    ],
)
def test_ranges_that_the_graph_scales(steps, most):
    net = Net()
    x = net.data("image", ("n", 3, 16, 16))
    for number, (operator, figure) in enumerate(steps):
        x = net.op(operator, x, net.constant(np.float32(figure), f"figure{number}"))
    drawing, values = drawn(head(net, x))
    assert (drawing.low, drawing.high) == (0, pytest.approx(most, rel=0.01))
    assert (values.min() >= 0, values.max() <= most * 1.01) == (True, True)
    assert values.mean() == pytest.approx(BRIGHTNESS * most, rel=0.2)
    assert values.std() == pytest.approx(CONTRAST * most, rel=0.3)


def test_a_constant_minus_the_input():
    net = Net()
    x = net.op("Sub", net.constant(np.float32(3), "three"), net.data("x", ("n", 6)))
    drawing, _ = drawn(net.model(net.linear(x, "fc", 6, 2)))
    assert (drawing.likeness, drawing.mean, drawing.std) == ("noise", (3.0,), (1.0,))


def test_statistics_of_a_batch_normalization_at_the_head():
    net = Net()
    x = net.op("Mul", net.data("image", ("n", 3, 16, 16)), net.constant(np.float32(0.5), "half"))
    model = head(net, net.batch_norm(x, "bn", 3))
    drawing, _ = drawn(model)
    weights = {name: value.const_value.numpy() for name, value in model.graph.initializers.items()}
    np.testing.assert_allclose(drawing.mean, 2 * weights["bn.mean"], rtol=1e-4)
    np.testing.assert_allclose(drawing.std, 2 * np.sqrt(weights["bn.variance"] + 1e-5), rtol=1e-4)


@pytest.mark.parametrize("figure", [0.0, np.inf])
def test_figures_that_lead_nowhere_are_left_alone(figure):
    net = Net()
    x = net.op("Mul", net.data("image", ("n", 3, 16, 16)), net.constant(np.float32(figure), "figure"))
    drawing, values = drawn(head(net, x))
    assert (drawing.mean, drawing.std) == ((0.0,), (1.0,))
    assert np.isfinite(values).all()


def test_a_bias_of_every_pixel_is_no_normalisation():
    net = Net()
    x = net.op("Add", net.data("image", ("n", 3, 16, 16)), net.normal((1, 3, 16, 16), "pixels"))
    assert drawn(head(net, x))[0].mean == (0.0,)


def test_colours_last():
    net = Net()
    x = net.op("Div", net.data("image", ("n", 16, 16, 3)), net.constant(np.float32(255), "most"))
    x = net.op("Transpose", x, perm=[0, 3, 1, 2], name="to_nchw")
    drawing, values = drawn(head(net, x))
    assert (drawing.likeness, drawing.channel, drawing.high) == ("picture", 3, 255)
    red, green = values[..., 0].ravel(), values[..., 1].ravel()
    assert np.corrcoef(red, green)[0, 1] > 0.7


def test_bytes_are_pictures():
    net = Net()
    x = net.input("image", ("n", 3, 16, 16), ir.DataType.UINT8)
    drawing, values = drawn(head(net, net.op("Cast", x, to=ir.DataType.FLOAT, name="cast")))
    assert drawing.likeness == "picture"
    assert values.min() >= 0
    assert 100 < values.max() <= 255
    assert values.mean() == pytest.approx(BRIGHTNESS * 255, rel=0.2)


@pytest.mark.parametrize("shape", [("n", 64, 16, 16), ("n", 3, 2, 64), ("n", 7)])
def test_other_floats_are_noise(shape):
    net = Net()
    drawing, values = drawn(net.model(net.op("Relu", net.data("x", shape), name="relu")))
    assert drawing.likeness == "noise"
    assert values.std() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("normalised", [False, True])
def test_signals_in_front_of_a_convolution_are_smooth_along_time(normalised):
    net = Net()
    x = net.data("x", ("n", 32, 48))
    if normalised:
        x = net.op("Div", x, net.constant(np.full((32, 1), 4, np.float32), "deviations"))
    drawing, values = drawn(net.model(net.conv(x, "conv", (4, 32, 3))))
    assert (drawing.likeness, drawing.axes, set(drawing.std)) == (
        "signal",
        (2,),
        {4.0 if normalised else 1.0},
    )
    values = values / drawing.std[0]
    near = {axis: np.mean(values * np.roll(values, 1, axis=axis + 1)) for axis in (1, 2)}
    assert near[2] > 0.4
    assert abs(near[1]) < 0.1


def test_features_over_time_are_noise_in_the_units_of_each():
    net = Net()
    x = net.op("Sub", net.data("x", ("n", 20, 4)), net.constant(np.arange(4, dtype=np.float32), "mean"))
    x = net.op("Div", x, net.constant(np.array([1, 2, 3, 4], np.float32), "deviation"))
    drawing, values = drawn(net.model(net.op("MatMul", x, net.normal((4, 8), "w"), name="proj")))
    assert (drawing.likeness, drawing.mean, drawing.std) == ("noise", (0, 1, 2, 3), (1, 2, 3, 4))
    np.testing.assert_allclose(values.std(axis=(0, 1, 2)), [1, 2, 3, 4], rtol=0.1)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("attention_mask", [1] * 6),
        ("encoder_attention_mask", [1] * 6),
        ("input_mask", [1] * 6),
        ("key_padding_mask", [0] * 6),
        ("token_type_ids", [0] * 6),
        ("segment_ids", [0] * 6),
        ("position_ids", [0, 1, 2, 3, 4, 0]),
    ],
)
@pytest.mark.parametrize("dtype", [ir.DataType.INT64, ir.DataType.INT32])
def test_masks_types_and_positions(name, values, dtype):
    net = Net()
    x = net.input(name, ("n", 6), dtype)
    model = net.model(net.op("Gather", net.normal((5, 8), "table"), x, name="embed"))
    assert drawn(model, samples=1)[1].tolist() == [[values]]


def test_masks_of_booleans():
    net = Net()
    x = net.input("mask", ("n", 6), ir.DataType.BOOL)
    model = net.model(net.op("Not", x, name="not"))
    assert drawn(model, samples=1)[1].all()


def test_tokens_are_drawn_from_their_table():
    net = Net()
    x = net.input("input_ids", ("n", 6), ir.DataType.INT64)
    model = net.model(net.op("Gather", net.normal((5, 8), "table"), x, name="embed"))
    assert sorted(set(drawn(model)[1].ravel())) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("dtype", [ir.DataType.INT64, ir.DataType.INT32])
def test_lengths_are_those_of_the_sequences(dtype):
    net = Net()
    tokens, rows = (
        net.input(name, shape, dtype) for name, shape in (("tokens", ("n", 6)), ("n_len", ("n",)))
    )
    embedded = net.op("Gather", net.normal((5, 8), "table"), tokens, name="embed")
    model = net.model(embedded, net.op("Mul", rows, rows, name="square"))
    specs = input_specs(model)
    found = drawings(model, specs, {"tokens": (1, 6), "n_len": (1,)})
    assert str(found["n_len"]) == "the length 6"
    assert found["n_len"].draw(np.random.default_rng(0), specs[1].dtype, (1,)).tolist() == [6]
    alone = drawings(model, specs[1:], {"n_len": (1,)})
    assert alone["n_len"].likeness == "integers"  # the length of what?
