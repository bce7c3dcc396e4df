"""Recurrent layers as two linear maps: their rows, their moments, and what masks over units have as gradients."""

from __future__ import annotations

import numpy as np
import pytest
from recurrent_nets import GATES, classifier, saved, sequences

from onnxprune.analysis import analyze
from onnxprune.calibrate.data import read_dataset
from onnxprune.calibrate.dataset import input_specs
from onnxprune.calibrate.sessions import open_session, run
from onnxprune.choosing.evidence import Evidence
from onnxprune.model import edit
from onnxprune.statistics.batches import Batches
from onnxprune.statistics.collect import input_statistics
from onnxprune.statistics.gates import all_gates
from onnxprune.statistics.gradients import Differentiation
from onnxprune.surgery.clone import clone_model

STEP = 5e-3


def opened(tmp_path, *args, **kw):
    analysis = analyze(saved(classifier(*args, **kw), tmp_path / "net.onnx"))
    return analysis, read_dataset(sequences(24), input_specs(analysis.source.ir))


def values(model, names, feed):
    """Values inside a model."""
    clone = clone_model(model).model
    made = {out.name: out for node in clone.graph for out in node.outputs}
    clone.graph.outputs.extend(made[name] for name in names)
    return run(open_session(clone), feed, names)


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("op_type", GATES)
def test_moments_are_those_of_inputs_and_states(tmp_path, op_type, both):
    analysis, data = opened(tmp_path, op_type, both=both)
    graph = analysis.axis_graph
    gates = all_gates(graph)
    assert [layer.label for layer in gates.values()] == [
        f"layer{n} ({part})" for n in (0, 1) for part in "WR"
    ]
    found = input_statistics(graph, gates.values(), Batches.of(data, 8, 1))
    for weight, layer in gates.items():
        rows = 0.0
        for feed in data.batches(8):
            x = values(graph.model, [layer.x.name], feed)[layer.x.name].astype(np.float64)
            x = x[:, None] if x.ndim == 3 else x  # directions
            flat = x.transpose(1, 0, 2, 3).reshape(x.shape[1], -1, x.shape[3])
            rows = rows + np.einsum("drf,drg->dfg", flat, flat)
        np.testing.assert_allclose(found[weight].moments.gram, rows, rtol=1e-4, atol=1e-4)
        assert found[weight].moments.count == 24 * 7


@pytest.mark.parametrize("both", [False, True])
def test_matrix_and_biases(tmp_path, both):
    """W x + b and R h + b are what the gates get: recomputed step by step they give the layer's states."""
    analysis, data = opened(tmp_path, "RNN", both=both)
    w, r, *_ = all_gates(analysis.axis_graph).values()
    feed = next(data.batches(4))
    got = values(analysis.axis_graph.model, [w.x.name, r.x.name], feed)
    x, y = got[w.x.name].astype(np.float64), got[r.x.name]
    inputs = (x @ w.matrix()[0].T + w.bias_vector()).reshape(*x.shape[:2], w.directions, -1)
    for d in range(w.directions):
        h, steps = np.zeros((4, r.columns)), range(len(x)) if d == 0 else reversed(range(len(x)))
        bias = r.bias_vector().reshape(w.directions, -1)[d]
        for t in steps:
            h = np.tanh(inputs[t, :, d] + h @ r.matrix()[d].T + bias)
            np.testing.assert_allclose(y[t, d], h, atol=1e-5)
    for layer in (w, r):
        np.testing.assert_array_equal(layer.from_matrix(layer.matrix()), layer.array)
    changed = w.to_bias(w.bias_vector() + 1)
    np.testing.assert_allclose(
        r.to_bias(r.bias_vector() + 2, changed), w.bias.const_value.numpy() + _halves(w)
    )


def _halves(gates):
    half = gates.outputs // gates.directions
    return np.repeat([1.0, 2.0], half)[None]


def test_every_group_sees_its_readers(tmp_path):
    """The first layer's units are read by itself and by the next layer, the second's by itself and the end."""
    analysis, data = opened(tmp_path, "GRU", both=True)
    evidence = Evidence(analysis, data)
    readers = {
        group.name: [layer.label for layer, _ in evidence.layers(group)] for group in analysis.groups.values()
    }
    assert readers == {"layer0": ["layer0 (R)", "layer1 (W)"], "layer1": ["layer1 (R)", "fc"]}
    for group in analysis.groups.values():
        for _, unit in evidence.layers(group):
            assert sorted(unit.ravel().tolist()) == list(range(group.units))


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("op_type", GATES)
def test_masks_are_slopes(tmp_path, op_type, both):
    """All that reads a unit, R's column among it, multiplied by 1 + h and 1 - h."""
    analysis, data = opened(tmp_path, op_type, (3, 4), both=both)
    rng = np.random.default_rng(4)
    labels = rng.standard_normal((24, 4)).astype(np.float32)
    data = read_dataset(
        {"x": np.concatenate([f["x"] for f in sequences(24)]), "labels": labels},
        input_specs(analysis.source.ir),
    )
    graph = analysis.axis_graph
    found = Differentiation(graph, data, "labels", size=4).masks(analysis.groups.values())
    assert found.keys() == analysis.groups.keys()
    feed = next(data.batches(24))

    def loss(group, unit, factor):
        model = clone_model(graph.model)
        for use in group.sinks:
            array = use.axis.value.const_value.numpy().astype(np.float64)
            view = np.moveaxis(array, use.axis.dim, -1)
            for position in np.flatnonzero(use.unit == unit):
                block, column = divmod(int(position), view.shape[-1])
                view[(block if use.axis in graph.blocked else slice(None), ..., column)] *= factor
            value = model.values[use.axis.value]
            edit.set_array(value, array)
        made = run(open_session(model.model), feed)
        return np.square(next(iter(made.values())).astype(np.float64) - labels).sum(axis=1)

    for name, group in analysis.groups.items():
        slopes = np.stack(
            [(loss(group, u, 1 + STEP) - loss(group, u, 1 - STEP)) / (2 * STEP) for u in range(group.units)]
        )
        assert np.abs(slopes).max() > 1e-2
        np.testing.assert_allclose(found[name].samples, slopes, atol=4e-3 * np.abs(slopes).max())
