"""Pruning a trained model from its weights and generated samples alone."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from small_nets import MODELS, Net, convnet, feeds, save

import onnxprune
from onnxprune.errors import UsageError
from onnxprune.inputs import choose_inputs

MODEL, CALIBRATION = MODELS / "digits_resnet.onnx", MODELS / "digits_calib.npz"


def test_a_trained_model_keeps_its_accuracy(tmp_path):
    """Half of the MACs, no sample seen: real ones only measure. Without any samples next to nothing is left."""
    report = onnxprune.prune(MODEL, macs=0.5, round_to=1, data="synthetic", test=CALIBRATION).report
    assert (report.soundness.checked, report.soundness.rejected_groups) == (True, ())
    assert report.calibration == {
        "tier": "synthetic",
        "samples": 256,
        "source": "synthetic",
        "measured": "real",
    }
    assert len([layer for layer in report.repairs if layer.kind != "none"]) > 8
    assert report.after.macs <= 0.5 * report.before.macs
    assert report.metric.before.value > 0.99
    assert report.metric.after.value > 0.9
    onnxprune.prune(MODEL, tmp_path / "none.onnx", macs=0.5, round_to=1)
    assert onnxprune.validate(tmp_path / "none.onnx", CALIBRATION).score.value < 0.5


def loaded(model: ir.Model, tmp_path):
    return onnxprune.load(save(model, tmp_path / "net.onnx"))


def test_the_proof_runs_on_random_inputs_and_the_calibration_on_pictures(tmp_path):
    source = loaded(convnet(), tmp_path)
    found = choose_inputs(source, data="synthetic:40", calibrate=True)
    assert (len(found.fit), len(found.data), len(found.proof)) == (32, 8, 2)
    plain = choose_inputs(source)
    for index in range(2):
        np.testing.assert_array_equal(found.proof.feeds[index]["image"], plain.proof.feeds[index]["image"])
    shown = np.concatenate([found.fit.feeds[index]["image"] for index in range(32)])
    assert shown.shape == (32, 3, 8, 8)
    assert np.mean(shown[..., 1:] * shown[..., :-1]) > 0.3
    assert dict(found.bindings) == {"n": 1}


def test_few_samples_are_all_used_twice(tmp_path):
    found = choose_inputs(loaded(convnet(), tmp_path), data="synthetic:4", calibrate=True)
    assert (len(found.fit), len(found.data)) == (4, 4)
    assert "too few to hold some back" in found.division


def test_real_samples_to_measure_on_decide_the_sizes(tmp_path):
    net = Net()
    x = net.data("signal", ("n", "length"))
    hidden = net.op(
        "Identity", x, name="hidden"
    )  # of a weight that reads the input itself, the size is known
    source = loaded(net.model(net.linear(hidden, "fc", 3, 4)), tmp_path)
    with pytest.raises(UsageError, match="no generated input runs"):
        choose_inputs(source, data="synthetic")
    found = choose_inputs(source, data="synthetic", test={"signal": np.zeros((5, 3), np.float32)})
    assert dict(found.bindings) == {"n": 1, "length": 3}
    assert (len(found.data), found.data.tier, len(found.fit)) == (5, "real", 256)
    assert found.notes == ("synthetic samples were drawn as signal: noise of mean 0 and deviation 1",)


def test_masks_are_ones_where_samples_are_calibrated_on_and_random_in_the_proof(tmp_path):
    net = Net()
    ids = net.input("input_ids", ("n", 8), ir.DataType.INT64)
    mask = net.input("attention_mask", ("n", 8), ir.DataType.INT64)
    embedded = net.op("Gather", net.normal((50, 16), "table"), ids, name="embed")
    kept = net.op("Unsqueeze", net.op("Cast", mask, to=ir.DataType.FLOAT, name="cast"), net.constant([2]))
    out = net.op("MatMul", net.op("Mul", embedded, kept, name="hide"), net.normal((16, 4), "out"))
    found = choose_inputs(loaded(net.model(out), tmp_path), data="synthetic:8")
    assert all(found.fit.feeds[index]["attention_mask"].all() for index in range(8))
    assert not all(found.proof.feeds[index]["attention_mask"].all() for index in range(2))
    assert len(np.unique([found.fit.feeds[index]["input_ids"] for index in range(8)])) > 20


def test_a_data_set_of_that_name_in_python(tmp_path, monkeypatch):
    """A path is a path, whatever it is called."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "synthetic"
    path.mkdir()
    for number, image in enumerate(feeds()["image"]):
        np.save(path / f"{number}.npy", image[None])
    model = save(convnet(), tmp_path / "net.onnx")
    report = onnxprune.prune(model, macs=0.6, data=path.relative_to(tmp_path)).report
    assert report.calibration["tier"] == "real"
