"""The repair of recurrent layers: units that others can replace cost nothing, and nothing gets worse."""

from __future__ import annotations

import numpy as np
import pytest
from recurrent_nets import GATES, classifier, saved, sequences

import onnxprune
from onnxprune.calibrate.sessions import open_session, run
from onnxprune.model.io import load


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


def test_states_that_are_reset_first_are_left(tmp_path):
    """Where the reset gate comes before R, what R sees cannot be looked at: the report says so."""
    path = saved(classifier("GRU", twins=True, linear_before_reset=0), tmp_path / "net.onnx")
    mended, report = pruned(path, tmp_path, "mended")
    left = {layer.name: layer.why for layer in report.repairs if layer.why}
    assert left == dict.fromkeys(["layer0", "layer1"], "its states are reset before they are multiplied")
    plain, _ = pruned(path, tmp_path, "plain", compensate="none")
    assert error(path, mended, sequences(seed=1)) < error(path, plain, sequences(seed=1))


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
