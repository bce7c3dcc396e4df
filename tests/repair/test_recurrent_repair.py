"""The repair of recurrent layers: units that others can replace cost nothing, and nothing gets worse."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from recurrent_nets import GATES, classifier, saved, sequences

import onnxprune
from onnxprune.calibrate.sessions import open_session, run
from onnxprune.model.io import load
from onnxprune.repair.resets import seen_by_gates, why_not
from onnxprune.testing import ModelBuilder


def error(path, other, feeds):
    """Mean squared difference of the output, as a share of its variance."""
    sides = []
    for file in (path, other):
        session = open_session(load(file).ir, threads=1)
        sides.append(np.concatenate([next(iter(run(session, feed).values())) for feed in feeds]))
    left, right = sides
    return float(np.square(left - right).mean() / np.square(left - left.mean(axis=0)).mean())


def pruned(path, tmp_path, name, **options):
    out = tmp_path / f"{name}.onnx"
    options = {"ratio": 0.5, "round_to": 1, "criterion": "obs", "data": sequences(), **options}
    return out, onnxprune.prune(path, out, **options).report


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("op_type", GATES)
@pytest.mark.parametrize("mode", ["remove", "mask"])
def test_twins_cost_nothing(tmp_path, op_type, both, mode):
    """Of every two units that do the same, one goes: its column of R, and of what is behind, goes to the other."""
    path = saved(classifier(op_type, both=both, twins=True), tmp_path / "net.onnx")
    mended, report = pruned(path, tmp_path, "mended", mode=mode)
    plain, _ = pruned(path, tmp_path, "plain", mode=mode, compensate="none")
    fresh = sequences(seed=1)
    assert error(path, mended, fresh) < 1e-5 < 1e-3 < error(path, plain, fresh)
    names = {layer.name for layer in report.repairs if layer.kind == "affine"}
    assert names == {"layer0 (R)", "layer1 (W)", "layer1 (R)", "fc"}


@pytest.mark.parametrize("op_type", GATES)
def test_the_repair_helps(tmp_path, op_type):
    path = saved(classifier(op_type, (10, 12), both=True, steps=12), tmp_path / "net.onnx")
    data, fresh = sequences(200, steps=12), sequences(seed=1, steps=12)
    mended, report = pruned(path, tmp_path, "mended", ratio=0.3, data=data)
    plain, _ = pruned(path, tmp_path, "plain", ratio=0.3, data=data, compensate="none")
    assert error(path, mended, fresh) < 0.7 * error(path, plain, fresh)
    assert all(layer.after <= layer.before for layer in report.repairs)


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("start", [False, True])
def test_what_the_gates_see_where_states_are_reset_first(direction, start):
    """Against a GRU step by step in numpy."""
    rng = np.random.default_rng(0)
    steps, samples, features, hidden = 5, 3, 4, 6
    d = 2 if direction == "bidirectional" else 1
    x = rng.standard_normal((steps, samples, features))
    w, r, b = (rng.standard_normal(shape) for shape in ((d, 18, features), (d, 18, hidden), (d, 36)))
    first = rng.standard_normal((d, samples, hidden)) if start else None
    states, seen = np.empty((steps, d, samples, hidden)), np.empty((d, 3, steps, samples, hidden))
    for one in range(d):
        h = np.zeros((samples, hidden)) if first is None else first[one]
        order = range(steps) if direction == "forward" or (d == 2 and one == 0) else reversed(range(steps))
        wz, wr, wh = np.split(w[one], 3)
        rz, rr, rh = np.split(r[one], 3)
        bz, br, bh, cz, cr, ch = np.split(b[one], 6)
        for t in order:
            z = 1 / (1 + np.exp(-(x[t] @ wz.T + h @ rz.T + bz + cz)))
            reset = 1 / (1 + np.exp(-(x[t] @ wr.T + h @ rr.T + br + cr)))
            seen[one, :, t] = h, h, reset * h
            h = (1 - z) * np.tanh(x[t] @ wh.T + (reset * h) @ rh.T + bh + ch) + z * h
            states[t, one] = h
    n = ModelBuilder()
    inputs = [
        n.input("x", (steps, samples, features)),
        *(n.constant(a, k) for a, k in ((w, "w"), (r, "r"), (b, "b"))),
    ]
    y, _ = n.ops("GRU", *inputs, outputs=2, hidden_size=hidden, direction=direction)
    found = seen_by_gates(y.producer(), x, states, first)
    np.testing.assert_allclose(found, seen.reshape(found.shape), atol=1e-12)


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("mode", ["remove", "mask"])
def test_twins_cost_nothing_where_states_are_reset_first(tmp_path, both, mode):
    model = classifier("GRU", both=both, twins=True, linear_before_reset=0)
    path = saved(model, tmp_path / "net.onnx")
    mended, report = pruned(path, tmp_path, "mended", mode=mode)
    plain, _ = pruned(path, tmp_path, "plain", mode=mode, compensate="none")
    fresh = sequences(seed=1)
    assert error(path, mended, fresh) < 1e-5 < 1e-3 < error(path, plain, fresh)
    names = {layer.name for layer in report.repairs if layer.kind == "affine"}
    assert names == {"layer0 (R)", "layer1 (W)", "layer1 (R)", "fc"}


def last_states(op_type, both, hidden=10):
    """A layer with twins, followed by a linear layer that reads its last states; the others are no output."""
    more = {"linear_before_reset": 0} if op_type == "GRU" else {}
    model = classifier(op_type, (hidden,), both=both, twins=True, **more)
    graph = model.graph
    recurrent = next(node for node in graph if node.op_type == op_type)
    mean, fc = (next(node for node in graph if node.name == name) for name in ("mean", "fc"))
    turned = ir.node("Transpose", [recurrent.outputs[1]], {"perm": [1, 0, 2]}, name="last_first")
    shape = ir.Value(name="flat", const_value=ir.tensor(np.array([0, -1]), name="flat"))
    graph.register_initializer(shape)
    flat = ir.node("Reshape", [turned.outputs[0], shape], name="flatten")
    graph.insert_before(fc, [turned, flat])
    mean.outputs[0].replace_all_uses_with(flat.outputs[0])
    old = [next(node for node in graph if node.name == f"layer0/{name}") for name in ("reshape", "transpose")]
    graph.remove([mean, *old], safe=True)
    recurrent.outputs[0].name = ""
    return model


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("op_type", GATES)
def test_layers_that_put_out_their_last_states_alone(tmp_path, op_type, both):
    path = saved(last_states(op_type, both), tmp_path / "net.onnx")
    mended, report = pruned(path, tmp_path, "mended")
    plain, _ = pruned(path, tmp_path, "plain", compensate="none")
    fresh = sequences(seed=1)
    assert error(path, mended, fresh) < 1e-5 < 1e-3 < error(path, plain, fresh)
    assert {layer.name for layer in report.repairs if layer.kind == "affine"} == {"layer0 (R)", "fc"}
    for file in (path, mended):
        (node,) = (one for one in onnx.load(file).graph.node if one.op_type == op_type)
        assert node.output[0] == "" != node.output[1]


@pytest.mark.parametrize(
    "attributes", [{"clip": 3.0}, {"activations": ["HardSigmoid", "Tanh"]}], ids=["clip", "activations"]
)
def test_gates_that_are_no_sigmoids_are_left(tmp_path, attributes):
    path = saved(classifier("GRU", twins=True, linear_before_reset=0, **attributes), tmp_path / "net.onnx")
    mended, report = pruned(path, tmp_path, "mended")
    left = {layer.name: layer.why for layer in report.repairs if layer.why}
    why = "its states are reset before they are multiplied, by a gate that is no plain sigmoid"
    assert left == dict.fromkeys(["layer0", "layer1"], why)
    plain, _ = pruned(path, tmp_path, "plain", compensate="none")
    assert error(path, mended, sequences(seed=1)) < error(path, plain, sequences(seed=1))


def test_samples_of_different_lengths_are_left():
    n = ModelBuilder()
    x, w, r, b = n.input("x", (5, 3, 4)), *(n.weight(shape) for shape in ((1, 18, 4), (1, 18, 6), (1, 36)))
    lengths = n.constant(np.array([5, 4, 3], np.int32), "lengths")
    alike, not_alike = (
        n.ops("GRU", x, w, r, b, *more, outputs=2, hidden_size=6)[0].producer() for more in ([], [lengths])
    )
    assert why_not(alike) == "" and "length" in why_not(not_alike)


def test_layers_without_biases_are_left(tmp_path):
    model = classifier("LSTM", twins=True)
    for node in model.graph:
        if node.op_type == "LSTM":
            node.replace_input_with(3, None)
    path = saved(model, tmp_path / "net.onnx")
    _, report = pruned(path, tmp_path, "mended")
    assert {layer.why for layer in report.repairs if layer.name.startswith("layer")} == {
        "it has no biases of its own"
    }


def test_the_same_twice(tmp_path):
    path = saved(classifier("GRU", both=True), tmp_path / "net.onnx")
    files = [pruned(path, tmp_path, name)[0] for name in ("first", "second")]
    assert files[0].read_bytes() == files[1].read_bytes()
