"""Layers of quantised models are timed as the kernels of integers that they become."""

from __future__ import annotations

import numpy as np
import pytest
from onnxruntime.quantization import QuantFormat, quantize_dynamic, quantize_static
from quantised_nets import VARIANTS, Samples, kernels, quantised, samples
from small_nets import attention, convnet, save

import onnxprune
from onnxprune.calibrate.timing import Stopwatch
from onnxprune.choosing import timed
from onnxprune.choosing.choices import Choices
from onnxprune.choosing.layers import cut_layers, elements, find_layers
from onnxprune.errors import OnnxPruneError

INTEGER = {"QLinearConv", "QGemm", "DynamicQuantizeMatMul", "MatMulIntegerToFloat"}
"""Kernels; the last two differ in who rounds the operand."""


def qdq(folder):
    return quantised(folder, convnet((16, 32, 24)))


def qoperator(folder):
    model = convnet((16, 32, 24))
    plain, path = save(model, folder / "float.onnx"), folder / "quantised.onnx"
    options = VARIANTS["u8s8 channel"]
    quantize_static(plain, path, Samples(samples(model)), quant_format=QuantFormat.QOperator, **options)
    return path


def dynamic(folder):
    plain, path = save(attention(), folder / "float.onnx"), folder / "quantised.onnx"
    quantize_dynamic(plain, path)
    return path


@pytest.fixture(params=[qdq, qoperator, dynamic])
def analysis(request, tmp_path):
    return onnxprune.analyze(request.param(tmp_path))


def test_layers_become_the_kernels_of_the_model(analysis, tmp_path):
    """What onnxruntime makes of single layers, whole and cut, is what it makes of the model."""
    whole = kernels(analysis.source.ir, tmp_path)
    layers = find_layers(analysis, timed._ladders(analysis, Choices(round_to=1)))
    rounded = [layer for layer in layers if len(layer.nodes) > 1]
    assert len(rounded) == sum(whole[name] for name in INTEGER) >= 4
    for layer in rounded:
        for model, feed in (list(cut_layers(analysis, layer))[i] for i in (0, -1)):
            made = kernels(model, tmp_path)
            assert made.keys() & INTEGER and not made.keys() & {"Conv", "Gemm", "MatMul"}
            assert {name: array.dtype for name, array in feed.items()} == {
                value.name: np.dtype(value.dtype.numpy()) for value in model.graph.inputs
            }


def test_what_rounds_is_part_of_a_layer(analysis):
    """No element is counted for it."""
    layers = find_layers(analysis, timed._ladders(analysis, Choices(round_to=1)))
    inside = {node for layer in layers for node in layer.nodes}
    amount = elements(analysis)
    others = [op for op in analysis.axis_graph.ops if op.node not in inside]
    assert inside >= {
        op.node for op in analysis.axis_graph.ops if op.node.op_type in ("Conv", "Gemm", "MatMul")
    }
    assert any("Quantize" in node.op_type for node in inside)
    assert amount.total(analysis.costs.extents({})) <= sum(
        np.prod(op.dims(value)) for op in others for value in op.outputs
    )


def test_a_plan_for_a_run_time(analysis, tmp_path, monkeypatch):
    """With an invented clock: the time of a model is that of its weights' bytes."""

    def times(self, ran, *, rounds, slice_s, together=False):
        found = []
        for model, _ in ran:
            stored = [v.const_value for v in model.graph.initializers.values()]
            found.append([1.0 + sum(tensor.nbytes for tensor in stored)] * rounds)
        return np.array(found)

    monkeypatch.setattr(Stopwatch, "times", times)
    path = analysis.source.path
    pruned = onnxprune.prune(path, tmp_path / "o.onnx", latency=0.6, criterion="l2", round_to=1)
    found = pruned.report.latency
    assert 0.45 < found.measured <= 0.6 and pruned.report.target.met
    assert abs(found.trials[0][0] - found.trials[0][1]) < 0.02
    with pytest.raises(OnnxPruneError, match="out of reach"):
        onnxprune.prune(path, tmp_path / "p.onnx", latency=0.01, criterion="l2")
