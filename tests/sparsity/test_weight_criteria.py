"""Criteria of single weights are their formulas, with gradients that finite differences confirm."""

from __future__ import annotations

import numpy as np
import pytest
from small_nets import convnet, save

import onnxprune
from onnxprune.calibrate.sessions import open_session, run
from onnxprune.criteria.weights import (
    Blocks,
    WeightCriterion,
    WeightCriterionTable,
    Weights,
    default_weight_criteria,
)
from onnxprune.model import edit
from onnxprune.model.io import load
from onnxprune.patterns import Grid, parse_pattern

SAMPLES = 20


@pytest.fixture
def net(tmp_path):
    return save(convnet((6, 4), size=4), tmp_path / "net.onnx")


@pytest.fixture
def data(tmp_path):
    rng = np.random.default_rng(3)
    path = tmp_path / "data.npz"
    image = rng.standard_normal((SAMPLES, 3, 4, 4)).astype(np.float32)
    np.savez(path, image=image, labels=rng.integers(0, 4, SAMPLES))
    return path


def loss(model, data, rows) -> float:
    """Cross-entropy of the labels, summed over some samples, in float64 from the logits on."""
    found = np.load(data)
    logits = next(iter(run(open_session(model, threads=1), {"image": found["image"][rows]}).values()))
    logits = logits.astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    chosen = logits[np.arange(len(logits)), found["labels"][rows]]
    return float((np.log(np.exp(logits).sum(axis=1)) - chosen).sum())


def by_differences(path, data, name, places, rows, step=1e-2) -> np.ndarray:
    """The gradient at a few places of a weight, by central differences."""
    model = load(path).ir
    value = model.graph.initializers[name]
    array = value.const_value.numpy().copy()
    found = []
    for place in places:
        sides = []
        for sign in (1, -1):
            moved = array.astype(np.float64)
            moved[place] += sign * step
            edit.set_array(value, moved)
            sides.append(loss(model, data, rows))
        found.append((sides[0] - sides[1]) / (2 * step))
    edit.set_array(value, array)
    return np.array(found)


def seen_by(name, net, data) -> dict[str, Weights]:
    """What a criterion is given, by the number of calls, through a table of one's own."""
    inner = default_weight_criteria()[name]
    calls: list[Weights] = []

    def spy(weights: Weights) -> np.ndarray:
        calls.append(weights)
        return inner.function(weights)

    spied = WeightCriterion("spy", spy, inputs=inner.inputs, fold=inner.fold, in_blocks=inner.in_blocks)
    table = WeightCriterionTable({"spy": spied})
    onnxprune.sparsify(
        net,
        None,
        sparsity=0.5,
        criterion="spy",
        criteria=table,
        solver="mask",
        data=data,
        test=data,
        loss="labels",
    )
    return calls


def test_gradients_are_those_of_the_loss(net, data):
    """`gradient` folds the sum over all batches. Every fourth sample or so is held out from criteria."""
    head = seen_by("gradient", net, data)[-1]  # its loss is smooth: no Relu is behind it
    names = [layer.weight for layer in onnxprune.sparsify(net, None).report.layers]
    places = [(0, 0), (1, 2), (3, 3)]
    ours = np.array([head.folded[place] for place in places])
    from onnxprune.calibrate.data import read_dataset
    from onnxprune.calibrate.dataset import hold_out, input_specs

    kept, _ = hold_out(read_dataset(str(data), input_specs(load(net).ir)))
    image = np.load(data)["image"]
    rows = [
        next(
            n for n in range(SAMPLES) if np.array_equal(image[n], np.asarray(feed["image"]).reshape(3, 4, 4))
        )
        for feed in (kept.feeds[i] for i in range(len(kept)))
    ]
    assert ours == pytest.approx(by_differences(net, data, names[-1], places, rows), rel=1e-2, abs=1e-3)


def test_folds_are_their_formulas():
    rng = np.random.default_rng(0)
    grid, pattern = Grid(4, 6), parse_pattern("2x3")
    w, batches = rng.standard_normal(grid.shape), rng.standard_normal((5, *grid.shape))
    blocks, criteria = Blocks(pattern, grid), default_weight_criteria()

    def folded(name):
        state = 0.0
        for g in batches:
            state = criteria[name].fold(state, w, g, blocks)
        return criteria[name].score(Weights(w, folded=state))

    total = batches.sum(axis=0)
    momentum = block_momentum = np.zeros(grid.shape)
    for g in batches:
        momentum = 0.9 * momentum + np.abs(w * g)
        sums = (w * g).reshape(2, 2, 2, 3).sum(axis=(1, 3))
        block_momentum = 0.9 * block_momentum + np.abs(sums).repeat(2, axis=0).repeat(3, axis=1)
    expected = {
        "gradient": np.abs(total),
        "snip": np.abs(w * total),
        "snip_momentum": momentum,
        "snip_momentum_block": block_momentum,
        "taylor": np.abs(w * batches).sum(axis=0),
        "fisher": np.square(w * batches).sum(axis=0) / 2,
        "movement": -(w * batches).sum(axis=0),
    }
    for name, scores in expected.items():
        assert folded(name) == pytest.approx(scores), name


def test_magnitudes():
    w = np.array([[3.0, -4.0], [0.0, 0.0]])
    criteria = default_weight_criteria()
    assert criteria["magnitude"].score(Weights(w)) == pytest.approx(np.abs(w))
    assert criteria["normed_abs"].score(Weights(w)) == pytest.approx(np.abs(w) / 5)
    assert criteria["normed_abs"].score(Weights(np.zeros((2, 2)))) == pytest.approx(np.zeros((2, 2)))
    x = np.array([[1.0, 2.0], [1.0, 2.0]])
    assert criteria["wanda"].score(Weights(w, x)) == pytest.approx(np.abs(w) * x)


def test_a_function_of_ones_own_is_checked(net):
    table = WeightCriterionTable({"mine": WeightCriterion("mine", lambda seen: seen.values.sum(axis=1))})
    with pytest.raises(onnxprune.OnnxPruneError, match="scores of shape"):
        onnxprune.sparsify(net, None, criterion="mine", criteria=table, solver="mask")
