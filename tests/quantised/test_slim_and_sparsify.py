"""What contributes nothing to a quantised model, and zeros in quantised weights."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from forms import FORMS
from quantised_nets import arrays, kernels, quantised, samples, saved
from small_nets import convnet

import onnxprune
from onnxprune.calibrate.sessions import open_session, run
from onnxprune.model import io


def changed(**changes) -> ir.Model:
    """A float network with other weights: by initializer (dots as __), (index, number)."""
    model = convnet((16, 32, 24))
    for name, (index, number) in changes.items():
        value = model.graph.initializers[name.replace("__", ".")]
        array = np.array(value.const_value.numpy())
        array[index] = number
        value.const_value = ir.tensor(array, name=value.name)
    return model


@pytest.mark.parametrize("variant", ["u8s8 channel", "asymmetric", "u8u8 tensor"])
def test_units_that_nothing_reads_go_and_numbers_stay(tmp_path, variant):
    path = quantised(tmp_path, changed(conv1__weight=((slice(None), [2, 5]), 0)), variant)
    result = onnxprune.slim(path, tmp_path / "slim.onnx")
    assert [(g.name, g.zero, g.constant) for g in result.report.groups] == [("conv0", 2, 0)]
    assert result.report.difference == 0 and result.report.largest > 0
    assert kernels(path, tmp_path) == kernels(tmp_path / "slim.onnx", tmp_path)
    before, after = arrays(path), arrays(tmp_path / "slim.onnx")
    np.testing.assert_array_equal(
        after["conv1.weight_quantized"], np.delete(before["conv1.weight_quantized"], [2, 5], axis=1)
    )
    feed = samples(io.load(path).ir, 1)[0]
    expected, got = (run(open_session(io.load(p).ir), feed) for p in (path, tmp_path / "slim.onnx"))
    np.testing.assert_array_equal(expected["logits"], got["logits"])


def test_a_constant_goes_into_an_integer_bias(tmp_path):
    """A unit that is its bias whatever the input; behind the pooling the last layer reads it."""
    path = quantised(tmp_path, changed(conv2__weight=(3, 0), conv2__bias=(3, 0.4)))
    result = onnxprune.slim(path, tmp_path / "slim.onnx")
    assert [(g.name, g.zero, g.constant) for g in result.report.groups] == [("conv2", 0, 1)]
    before, after = arrays(path), arrays(tmp_path / "slim.onnx")
    assert after["head.bias_quantized"].dtype == np.int32
    assert (after["head.bias_quantized"] != before["head.bias_quantized"]).any()
    np.testing.assert_array_equal(after["head.bias_quantized_scale"], before["head.bias_quantized_scale"])
    np.testing.assert_array_equal(
        after["head.weight_quantized"], np.delete(before["head.weight_quantized"], 3, axis=1)
    )
    assert result.report.difference <= 1e-4 * result.report.largest
    assert kernels(path, tmp_path) == kernels(tmp_path / "slim.onnx", tmp_path)


def test_a_unit_that_may_set_the_range_stays(tmp_path):
    """Nothing reads it, but DynamicQuantizeLinear looks at it."""
    model = FORMS["ranges at run time"]()
    stored = model.graph.initializers["w1_stored"]
    array = np.array(stored.const_value.numpy())
    array[4] = 0
    stored.const_value = ir.tensor(array, name=stored.name)
    result = onnxprune.slim(saved(tmp_path, model))
    assert not result.report.groups


@pytest.mark.parametrize("variant", ["u8s8 channel", "asymmetric", "u8u8 tensor", "pairs on weights"])
@pytest.mark.parametrize("data", [None, "synthetic:64"])
def test_zeros_are_zero_points(tmp_path, variant, data):
    path = quantised(tmp_path, convnet((16, 32, 24)), variant)
    result = onnxprune.sparsify(path, tmp_path / "sparse.onnx", pattern="2:4", data=data)
    onnx.checker.check_model(tmp_path / "sparse.onnx", full_check=True)
    assert kernels(path, tmp_path) == kernels(tmp_path / "sparse.onnx", tmp_path)
    assert any("quantised" in line for line in result.report.warnings)
    found = onnxprune.stats(tmp_path / "sparse.onnx")
    layers = {layer.weight: layer for layer in found.layers}
    for name, flags in result.zeros.items():
        assert layers[name].found.zeros >= flags.sum() == flags.size / 2
        assert "2:4" in layers[name].found.patterns
    assert len(result.zeros) >= 3 and found.quantised is not None and found.quantised.count == 4


def test_without_a_solver_the_other_weights_keep_their_numbers(tmp_path):
    path = quantised(tmp_path, convnet((16, 32, 24)), "asymmetric")
    result = onnxprune.sparsify(path, sparsity=0.5)
    before, after = arrays(path), arrays(result.model)
    for name, array in before.items():
        if not name.endswith("_quantized") or ".bias" in name:
            np.testing.assert_array_equal(array, after[name])
            continue
        zero = before[name.replace("_quantized", "_zero_point")].reshape([-1, *[1] * (array.ndim - 1)])
        assert ((after[name] == array) | (after[name] == zero)).all()
        assert (after[name] != array).any()


def test_names_of_the_file_are_known(tmp_path):
    path = quantised(tmp_path, convnet((16, 32, 24)))
    analysis = onnxprune.analyze(path)
    by_file = onnxprune.explain(analysis, "conv1.weight_quantized[0]")
    assert "prunable" in str(by_file)
    kept = onnxprune.prune(path, ratio=0.5, round_to=4, ignore=["conv1.weight_quantized"], best_effort=True)
    widths = {group.name: (group.kept, group.units) for group in kept.report.groups}
    assert widths["conv1"] == (32, 32) and widths["conv0"][0] < 16


def test_the_report_says_how_the_model_is_quantised(tmp_path):
    from onnxprune.report import analysis as pages
    from onnxprune.report import json, markdown, terminal

    path = quantised(tmp_path, convnet((16, 32, 24)))
    report = onnxprune.prune(path, macs=0.6, round_to=4, data="synthetic:64").report
    how = "4 weights int8 per channel, 4 biases int32 per channel"
    assert how in terminal.render(report) and how in markdown.render(report)
    assert how in pages.render(onnxprune.analyze(path))
    assert "equal bit for bit" in terminal.render(report)
    assert "of 4 quantised weights were rounded again after a repair" in terminal.render(report)
    body = json.to_dict(report)
    assert body["quantised"]["weights"] == {"int8 per channel": 4}
    assert body["soundness"]["form"] == "integer" and body["soundness"]["equal"] is True
