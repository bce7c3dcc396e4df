"""Which loss goes with which outputs and labels, and what is drawn for it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from onnxprune.calibrate.sessions import open_session, run
from onnxprune.errors import DataError, UsageError
from onnxprune.gradients import (
    LOSS,
    BinaryCrossEntropy,
    CrossEntropy,
    NextToken,
    Projection,
    SquaredError,
    build_backward,
)
from onnxprune.gradients.objective import Draws, Objective, choose_objective
from onnxprune.model.shapes import infer_shapes
from onnxprune.testing import ModelBuilder

RNG = np.random.default_rng(0)


def net(*shapes, ending="", inputs=("n", 3)):
    """Each output is Expand(a part of x, shape); `ending` is an activation behind the last axis."""
    b = ModelBuilder(18)
    x = b.input("x", inputs)
    outputs = []
    for number, shape in enumerate(shapes):
        size = int(np.prod(shape))
        rows = b.op("MatMul", x, b.weight((3, size)))
        y = b.op("Reshape", rows, b.constant(np.array([-1, *shape])))
        options = {"axis": 1} if ending.endswith("oftmax") else {}
        outputs.append(b.ops(ending or "Tanh", y, outputs=[f"out{number}"], **options)[0])
    return b.model(*outputs)


def chosen(model, wanted="auto", labels=None, feed=None):
    return choose_objective(model, infer_shapes(model), wanted, labels, feed)


CLASSES = RNG.integers(0, 5, 8)


@pytest.mark.parametrize(
    ("shape", "labels", "loss", "axis"),
    [
        ((5,), CLASSES, CrossEntropy, 1),
        ((5,), CLASSES[:, None], CrossEntropy, 1),
        ((5, 1, 1), CLASSES, CrossEntropy, 1),
        ((5, 4, 6), RNG.integers(0, 5, (8, 4, 6)), CrossEntropy, 1),
        ((5, 4, 6), np.full((8, 4, 6), 255), CrossEntropy, 1),
        ((7, 5), RNG.integers(0, 5, (8, 7)), CrossEntropy, -1),
        ((7, 5), np.full((8, 7), -100), CrossEntropy, -1),
        ((5, 6), RNG.integers(0, 5, (8, 6)), CrossEntropy, 1),
        ((1,), CLASSES % 2, BinaryCrossEntropy, -1),
        ((), CLASSES % 2, BinaryCrossEntropy, -1),
        ((4, 2), RNG.standard_normal((8, 4, 2)), SquaredError, -1),
    ],
)
def test_labels(shape, labels, loss, axis):
    """The loss that goes with them; and the graph takes what is fed."""
    model = net(shape)
    for wanted in ("auto", "labels"):
        found = chosen(model, wanted, labels)
        assert (found.kind, type(found.loss), found.axis) == ("labels", loss, axis)
        assert not found.needs_outputs and "the data's labels" in found.sentence
    built = build_backward(model, found.loss, ["x"])
    x = RNG.standard_normal((8, 3)).astype(np.float32)
    got = run(open_session(built, threads=1), {"x": x, **found.feed({}, labels, Draws(0))})
    assert got["gradient/x"].shape == (8, 3)
    void = labels.dtype.kind == "i" and labels.max() in (255, -100)
    assert (got[LOSS] == 0) == void


def test_tokens_are_predicted_from_the_position_before():
    b = ModelBuilder(18)
    ids = b.input("ids", ("n", "t"), ir.DataType.INT64)
    z = b.op("MatMul", b.op("Gather", b.weight((6, 4), "table"), ids), b.weight((4, 6)))
    model = b.model(z)
    labels = RNG.integers(0, 6, (4, 5))
    shapes = infer_shapes(model, {"t": 5})
    own = choose_objective(model, shapes, "auto", labels, {"ids": labels[:1]})
    other = choose_objective(model, shapes, "auto", labels, {"ids": labels[:1] * 0 + 7})
    assert isinstance(own.loss, NextToken) and isinstance(other.loss, CrossEntropy)
    labels[:, 3:] = -100
    built = build_backward(model, own.loss, ["table"], bindings={"t": 5})
    feed = {"ids": np.maximum(labels, 0), **own.feed({}, labels, Draws(0))}
    got = run(open_session(built, threads=1), feed)
    logits = got[model.graph.outputs[0].name].astype(np.float64)
    log_p = logits - np.log(np.exp(logits).sum(axis=2, keepdims=True))
    expected = -sum(log_p[n, t, labels[n, t + 1]] for n in range(4) for t in range(2))
    assert got[LOSS] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("labels", [np.array([0, 5]), np.array([-1, 2])])
def test_labels_that_are_no_classes(labels):
    with pytest.raises(DataError, match=r"the label (5|-1) is none of the model's 5 classes"):
        chosen(net((5,)), labels=labels)


@pytest.mark.parametrize(
    ("shapes", "ending", "forced", "kind"),
    [
        ([(5,)], "", "auto", "sampled"),
        ([(5, 1, 1)], "", "auto", "sampled"),
        ([(5,)], "Softmax", "auto", "sampled"),
        ([(5,)], "LogSoftmax", "auto", "sampled"),
        ([(5, 4, 4)], "Softmax", "auto", "sampled"),
        ([(1,)], "Sigmoid", "auto", "sampled"),
        ([(5,), (3,)], "", "auto", "outputs"),
        ([(5,), (3,)], "Softmax", "auto", "outputs"),
        ([(5,), (3,)], "Softmax", "sampled", "sampled"),
        ([(5, 4, 4)], "", "auto", "outputs"),
        ([(5, 4, 4)], "", "sampled", "sampled"),
        ([(1,)], "", "auto", "outputs"),
        ([(1,)], "", "sampled", "sampled"),
        ([(4,)], "Sigmoid", "auto", "outputs"),
        ([(5,)], "", "outputs", "outputs"),
        ([(4, 4)], "", "outputs", "outputs"),
    ],
)
def test_without_labels(shapes, ending, forced, kind):
    model = net(*shapes, ending=ending)
    found = chosen(model, forced)
    assert found.kind == kind and found.needs_outputs
    built = build_backward(model, found.loss, ["x"])
    x = RNG.standard_normal((8, 3)).astype(np.float32)
    outputs = run(open_session(model, threads=1), {"x": x})
    got = run(open_session(built, threads=1), {"x": x, **found.feed(outputs, None, Draws(0))})
    assert np.isfinite(got["gradient/x"]).all() and np.abs(got["gradient/x"]).max() > 0


@pytest.mark.parametrize("ending", ["", "Softmax", "LogSoftmax"])
def test_labels_follow_the_predictions(ending):
    z = RNG.standard_normal(4) * 2
    p = np.exp(z) / np.exp(z).sum()
    shown = {"": z, "Softmax": p, "LogSoftmax": np.log(p)}[ending]
    found = chosen(net((4,), ending=ending), "sampled")
    outputs = {"out0": np.repeat(shown[None], 20_000, axis=0).astype(np.float32)}
    drawn = found.feed(outputs, None, Draws(0))["labels"]
    shares = np.bincount(drawn, minlength=4) / 20_000
    np.testing.assert_allclose(shares, p, atol=4 * np.sqrt(p * (1 - p) / 20_000).max())


def test_binary_labels_follow_the_predictions():
    outputs = {"out0": np.full((20_000, 1), 0.3, np.float32)}
    drawn = chosen(net((1,), ending="Sigmoid"), "sampled").feed(outputs, None, Draws(0))["labels"]
    assert abs(drawn.mean() - 0.3) < 0.015
    logits = {"out0": np.log(outputs["out0"] / 0.7)}
    again = chosen(net((1,)), "sampled").feed(logits, None, Draws(0))["labels"]
    assert (drawn != again).mean() < 1e-3


@pytest.mark.parametrize("kind", ["sampled", "outputs"])
def test_what_is_drawn_depends_on_the_seed_and_not_on_batches(kind):
    found = chosen(net((5,)), kind)
    outputs = RNG.standard_normal((10, 5)).astype(np.float32)

    def draw(seed, size):
        draws = Draws(seed)
        parts = [found.feed({"out0": outputs[i : i + size]}, None, draws) for i in range(0, 10, size)]
        (name,) = parts[0]
        return np.concatenate([part[name] for part in parts])

    np.testing.assert_array_equal(draw(0, 10), draw(0, 3))
    assert (draw(0, 10) != draw(1, 10)).any()


def test_signs_of_several_outputs_count_alike():
    found = chosen(net((5,), (2, 3)), "outputs")
    outputs = {"out0": RNG.standard_normal((6, 5)) * 100, "out1": RNG.standard_normal((6, 2, 3))}
    fed = found.feed(outputs, None, Draws(0))
    for name, array in outputs.items():
        signs = fed[f"signs/{name}"]
        assert signs.shape == array.shape and signs.dtype == np.float32
        np.testing.assert_allclose(np.abs(signs), 1 / array.std(), rtol=1e-6)
        assert (signs > 0).any() and (signs < 0).any()


def test_squared_gradients_of_signed_outputs_are_the_gauss_newton_curvature():
    """On average over signs: the diagonal of J^T J."""
    model = net((4,))
    built = build_backward(model, Projection(), ["x"])
    x = np.repeat(RNG.standard_normal((1, 3)).astype(np.float32), 4000, axis=0)
    signs = np.where(RNG.random((4000, 4)) < 0.5, -1, 1).astype(np.float32)
    rows = run(open_session(built, threads=1), {"x": x, "signs/out0": signs})["gradient/x"]
    session, eye = open_session(built, threads=1), np.eye(4, dtype=np.float32)
    jacobian = run(session, {"x": x[:4], "signs/out0": eye})["gradient/x"].astype(np.float64)
    np.testing.assert_allclose((rows**2).mean(axis=0), (jacobian**2).sum(axis=0), rtol=0.1)


def test_refusals():
    with pytest.raises(UsageError, match="there is no loss 'mse'"):
        chosen(net((5,)), "mse")
    with pytest.raises(UsageError, match="--loss labels needs labels, and the data has none"):
        chosen(net((5,)), "labels")
    with pytest.raises(UsageError, match=r"labels of shape \(8, 3\) do not go with the output 'out0'"):
        chosen(net((5,)), "labels", np.zeros((8, 3), np.int64))
    with pytest.raises(UsageError, match="has no classes to draw labels from"):
        chosen(net((4,), ending="Sigmoid"), "sampled")
    assert chosen(net((4, 4)), "auto", np.zeros((8, 3), np.int64)).kind == "outputs"
    assert "random signs" in Objective("outputs", Projection()).sentence
