"""Each loss against the same loss in numpy, value and gradient; final Softmax, merged models, weights."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from vjp_cases import central_differences

from onnxprune.calibrate.sessions import open_session, run
from onnxprune.errors import UsageError
from onnxprune.gradients import (
    LOSS,
    CrossEntropy,
    Distillation,
    ModelLoss,
    NextToken,
    SoftCrossEntropy,
    SquaredError,
    WeightedSum,
    build_backward,
    gradient_name,
)
from onnxprune.testing import ModelBuilder

RNG = np.random.default_rng(0)
X = RNG.standard_normal((3, 4)).astype(np.float32)
P = RNG.dirichlet(np.ones(4), 3).astype(np.float32)
T = RNG.standard_normal((3, 4)).astype(np.float32)
LABELS = np.array([1, 3, 0])


def log_softmax(x, axis=-1):
    moved = x - x.max(axis=axis, keepdims=True)
    return moved - np.log(np.exp(moved).sum(axis=axis, keepdims=True))


def passing(end: str = "Identity", shape=("n", 4)) -> ir.Model:
    b = ModelBuilder(18)
    x = b.input("x", shape)
    return b.model(b.ops(end, x, outputs=["y"])[0])


def evaluate(model, loss, feed, wrt=("x",)):
    built = build_backward(model, loss, list(wrt))
    found = run(open_session(built, threads=1), feed)
    return float(found[LOSS]), [found[gradient_name(name)] for name in wrt]


def cross_entropy(x):
    return -log_softmax(x)[np.arange(3), LABELS].sum()


def divergence(x, teacher, t=1.0):
    p, q = log_softmax(x / t), log_softmax(teacher / t)
    return t * t * (np.exp(q) * (q - p)).sum()


CASES = {
    "labels": (CrossEntropy(), {"labels": LABELS}, cross_entropy),
    "labels-mean": (CrossEntropy(mean=True), {"labels": LABELS}, lambda x: cross_entropy(x) / 3),
    "ignored": (
        *(CrossEntropy(ignore=-100), {"labels": np.array([1, -100, 0])}),
        lambda x: -log_softmax(x)[[0, 2], [1, 0]].sum(),
    ),
    "probabilities": (SoftCrossEntropy(), {"targets": P}, lambda x: -(P * log_softmax(x)).sum()),
    "distillation": (Distillation(), {"teacher": T}, lambda x: divergence(x, T)),
    "temperature": (Distillation(temperature=2.0), {"teacher": T}, lambda x: divergence(x, T, 2.0)),
    "squares": (SquaredError(), {"teacher": T}, lambda x: ((x - T) ** 2).sum()),
    "squares-mean": (SquaredError(mean=True), {"teacher": T}, lambda x: ((x - T) ** 2).sum() / 3),
    "weighted": (
        WeightedSum(((0.5, CrossEntropy()), (2.0, SquaredError()))),
        {"labels": LABELS, "teacher": T},
        lambda x: 0.5 * cross_entropy(x) + 2 * ((x - T) ** 2).sum(),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_loss(name):
    loss, feed, expected = CASES[name]
    value, (gradient,) = evaluate(passing(), loss, {"x": X, **feed})
    wide = X.astype(np.float64)
    assert value == pytest.approx(expected(wide), rel=1e-5)
    slope = central_differences(lambda feed: float(expected(feed["x"])), {"x": wide})["x"]
    np.testing.assert_allclose(gradient, slope, atol=1e-4 * np.abs(slope).max())


@pytest.mark.parametrize("end", ["Softmax", "LogSoftmax"])
def test_logits_are_taken_before_a_final_softmax(end):
    far = X * 200  # probabilities round to 0 and 1
    value, (gradient,) = evaluate(passing(end), CrossEntropy(), {"x": far, "labels": LABELS})
    assert value == pytest.approx(float(cross_entropy(far.astype(np.float64))), rel=1e-5)
    p = np.exp(log_softmax(far.astype(np.float64)))
    p[np.arange(3), LABELS] -= 1
    np.testing.assert_allclose(gradient, p, atol=1e-5)


def test_classes_along_another_axis():
    x = RNG.standard_normal((2, 3, 2, 2)).astype(np.float32)
    labels = RNG.integers(0, 3, (2, 2, 2))
    model = passing(shape=("n", 3, 2, 2))
    value, _ = evaluate(model, CrossEntropy(axis=1), {"x": x, "labels": labels})
    expected = -np.take_along_axis(log_softmax(x, 1), labels[:, None], 1).sum()
    assert value == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("masked", [False, True])
def test_next_token(masked):
    """The ids are the model's own input: an embedding, and logits by a product with it."""
    b = ModelBuilder(18)
    ids = b.input("input_ids", ("n", "t"), ir.DataType.INT64)
    table = b.weight((5, 3), "table")
    h = b.op("Tanh", b.op("Gather", table, ids))
    logits = b.op("MatMul", h, b.op("Transpose", table, perm=[1, 0]))
    model = b.model(logits)
    tokens = RNG.integers(0, 5, (2, 4))
    mask = np.array([[1, 1, 1, 0], [1, 0, 1, 1]], np.float32)
    feed = {"input_ids": tokens, **({"mask": mask} if masked else {})}
    name = next(iter(model.graph.initializers))
    value, (gradient,) = evaluate(model, NextToken(mask="mask" if masked else None), feed, [name])

    def expected(table):
        log_p = log_softmax(np.tanh(table[tokens]) @ table.T)[:, :-1]
        picked = np.take_along_axis(log_p, tokens[:, 1:, None], 2)[..., 0]
        return -(picked * (mask[:, 1:] if masked else 1)).sum()

    wide = model.graph.initializers[name].const_value.numpy().astype(np.float64)
    assert value == pytest.approx(expected(wide), rel=1e-5)
    slope = central_differences(lambda feed: float(expected(feed["w"])), {"w": wide})["w"]
    np.testing.assert_allclose(gradient, slope, atol=1e-4 * np.abs(slope).max())


def test_a_loss_that_is_a_model():
    """It reads an output and an input of the model, and has an input and a weight of its own."""
    b = ModelBuilder(18)
    y, x, extra = b.input("y", ("n", 4)), b.input("x", ("n", 4)), b.input("extra", ("n", 4))
    weight = b.weight((4,), "scale")
    loss = b.op("ReduceSum", b.op("Mul", b.op("Mul", y, x), b.op("Add", extra, weight)), keepdims=0)
    built = b.model(loss)
    value, (gradient,) = evaluate(passing("Sin"), ModelLoss(built), {"x": X, "extra": T})
    scale = next(iter(built.graph.initializers.values())).const_value.numpy()
    assert value == pytest.approx(float((np.sin(X) * X * (T + scale)).sum()), rel=1e-5)
    np.testing.assert_allclose(gradient, (np.cos(X) * X + np.sin(X)) * (T + scale), atol=1e-5)
    assert len(built.graph) == 4  # it is not mutated


def test_wrong_names_are_said():
    with pytest.raises(UsageError, match="no output 'z'"):
        build_backward(passing(), CrossEntropy("z"), ["x"])
    with pytest.raises(UsageError, match="'y' already"):
        build_backward(passing(), CrossEntropy(labels="y"), ["x"])
    with pytest.raises(UsageError, match="no losses"):
        build_backward(passing(), WeightedSum(()), ["x"])
