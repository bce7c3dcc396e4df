"""Units that zeros make superfluous: found, worth what is said, cut out without changing outputs."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from small_nets import attention, convnet, grouped, residual, save

import onnxprune
from onnxprune.calibrate.sessions import open_session
from onnxprune.plans import Plan
from onnxprune.report.stats import worth


def change(model, name, function):
    """Replace an initializer by what the function makes of it."""
    value = model.graph.initializers[name]
    array = function(value.const_value.numpy().copy())
    value.const_value = ir.Tensor(array, name=name)
    return model


@pytest.mark.parametrize("build", [convnet, residual, grouped, attention], ids=lambda build: build.__name__)
def test_what_is_superfluous_can_be_cut_out_without_changing_outputs(tmp_path, build):
    """Mask some units by hand-written plans; what `stats` finds is those, and its plan removes them exactly."""
    path = save(build(), tmp_path / "net.onnx")
    ratio = 0.5 if build is attention else 0.3
    masked = onnxprune.prune(path, tmp_path / "masked.onnx", ratio=ratio, mode="mask", best_effort=True)
    assert masked.plan.dropped
    analysis = onnxprune.analyze(tmp_path / "masked.onnx")
    found = onnxprune.stats(analysis)
    assert found.removable.units == masked.plan.dropped
    assert {g: f.tolist() for g, f in found.removable.keep.items()} == {
        g: f.tolist() for g, f in masked.plan.keep.items()
    }
    plan = Plan.of(analysis, found.removable.keep)
    small = onnxprune.apply(analysis.source, plan, tmp_path / "small.onnx")
    assert (found.removable.macs, found.removable.params) == (
        small.report.after.macs,
        small.report.after.params,
    )
    shape = {value.name: value.shape for value in analysis.source.ir.graph.inputs}
    rng = np.random.default_rng(0)
    feed = {
        name: rng.normal(size=[d if isinstance(d, int) else 2 for d in dims]).astype(np.float32)
        for name, dims in shape.items()
    }
    outputs = [
        open_session(onnxprune.load(file).ir, "cpu").run(None, feed)[0]
        for file in (tmp_path / "masked.onnx", tmp_path / "small.onnx")
    ]
    np.testing.assert_allclose(outputs[1], outputs[0], atol=1e-5 * np.abs(outputs[0]).max())
    assert onnxprune.stats(tmp_path / "small.onnx").removable.units == 0


def test_balanced_groups_lose_equal_numbers_and_nothing_is_emptied(tmp_path):
    def zero_inputs(*columns):
        def zero(array):
            array[:, list(columns)] = 0
            return array

        return zero

    model = change(grouped(), "after.weight", zero_inputs(0, 1, 8, 16, 24, 25))  # blocks of 8 channels
    found = onnxprune.stats(save(model, tmp_path / "net.onnx"))
    by_name = {name: (dead, unmade) for name, dead, unmade, _ in found.removable.layers}
    assert by_name == {"grouped": (4, 0)}
    model = change(convnet(), "conv1.weight", lambda array: array * 0)
    found = onnxprune.stats(save(model, tmp_path / "empty.onnx"))
    by_name = {name: (dead, unmade) for name, dead, unmade, _ in found.removable.layers}
    assert by_name == {"conv0": (15, 0), "conv1": (0, 32)}


def test_filters_of_zeros_are_not_called_superfluous_because_their_bias_lives(tmp_path):
    def zero_filters(array):
        array[4:10] = 0
        return array

    path = save(change(convnet(), "conv1.weight", zero_filters), tmp_path / "net.onnx")
    found = onnxprune.stats(path)
    layer = found.layers[1]
    assert (layer.zero_filters, layer.zero_channels, layer.pattern) == (6, 0, "output channels")
    assert (found.removable.units, found.removable.unmade) == (0, 6)
    assert "6 further units are made by zero weights alone" in str(found)


def test_what_zeros_are_worth_adds_up(tmp_path):
    def two_of_four(array):
        array[:, 0::4] = 0
        array[:, 1::4] = 0
        array[:, 1, 0, 0] = 1  # not a whole channel
        array[:, 2, 0, 0] = 0
        array[:, 0, 0, 0] = 0
        return array

    def blocks(array):
        array[:8, :, 0] = 0
        return array

    def channels(array):
        array[:, :3] = 0
        array.reshape(-1)[-1] = 0
        return array

    model = change(convnet([16, 32, 24]), "conv1.weight", two_of_four)
    model = change(model, "conv2.weight", blocks)
    model = change(model, "head.weight", channels)
    found = onnxprune.stats(save(model, tmp_path / "net.onnx"))
    patterns = {layer.name: layer.pattern for layer in found.layers}
    assert patterns == {"conv0": "", "conv1": "2:4", "conv2": "8x1", "head": "element"}
    kinds = worth(found)
    zeros = {layer.name: layer.found.zeros for layer in found.layers}
    assert kinds == {
        "input and output channels": 3 * 4,
        "2:4": zeros["conv1"],
        "8x1": zeros["conv2"],
        "element": 1,
    }
    page = str(found)
    for part in (
        "are scattered: zeros anywhere make the model neither faster",
        "TensorRT",
        "onnxprune prune",
    ):
        assert part in page
    assert "follow 8x1: zero blocks of 8x1 make the model neither faster" in page
