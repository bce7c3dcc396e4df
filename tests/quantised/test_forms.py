"""Every form in which a model can be quantised: cut, masked, proven, and written in the same form."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from forms import FORMS
from quantised_nets import arrays, saved

import onnxprune
from onnxprune.calibrate.sessions import open_session, run
from onnxprune.graph.axes import Axis
from onnxprune.model import io
from onnxprune.model.finalize import finalize
from onnxprune.model.normalize import normalize
from onnxprune.model.quantized import QuantizedTensor
from onnxprune.report.quantised import requantised_line
from onnxprune.surgery.keep import kept_positions, slice_array
from onnxprune.surgery.remove import remove
from onnxprune.testing import draw_keep
from onnxprune.testing.feeds import make_feeds

TORN = ("int4", "int4 without zero points", "uint4", "int8 in blocks")
"""Whose blocks lie along what is cut."""


@pytest.fixture(params=FORMS)
def form(request):
    return request.param


def made(form, tmp_path):
    return saved(tmp_path, FORMS[form]())


def types(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


def test_nothing_is_lost_on_the_way(form, tmp_path):
    model = io.load(made(form, tmp_path)).ir
    normal = normalize(model)
    assert not any(
        node.op_type == "DequantizeLinear" and node.inputs[0].is_initializer() for node in normal.graph
    )
    back = finalize(normal)
    assert {n.name: (n.op_type, [v.name for v in n.inputs]) for n in back.graph} == {
        n.name: (n.op_type, [v.name for v in n.inputs]) for n in model.graph
    }
    before, after = arrays(model), arrays(back)
    assert before.keys() == after.keys()
    for name, array in before.items():
        assert array.dtype == after[name].dtype
        np.testing.assert_array_equal(array, after[name])


def test_cut_and_proven(form, tmp_path):
    path = made(form, tmp_path)
    result = onnxprune.prune(path, tmp_path / "cut.onnx", ratio=0.4, round_to=1, slim=False)
    report = result.report
    assert report.dropped > 0 and report.soundness.checked and not report.soundness.rejected_groups
    onnx.checker.check_model(tmp_path / "cut.onnx", full_check=True)
    before, after = arrays(path), arrays(tmp_path / "cut.onnx")
    assert types(io.load(path).ir) == types(result.model)
    assert report.after.params < report.before.params and report.after.bytes < report.before.bytes
    assert {name: array.dtype for name, array in before.items()} == {
        name: array.dtype for name, array in after.items()
    }
    if form in TORN:
        assert report.soundness.torn == ("w1",)
        assert requantised_line(report.quantised).startswith(
            "1 of 2 quantised weights were rounded again, 1 of"
        )
    else:
        assert report.soundness.max_abs_diff == 0 and not report.soundness.torn


def test_numbers_stay_bit_for_bit(form, tmp_path):
    """What is left of the stored numbers, scales and zero points is what the file had there."""
    path = made(form, tmp_path)
    analysis = onnxprune.analyze(path)
    keep = {group.id: draw_keep(group, np.random.default_rng(0)) for group in analysis.partition.groups}
    kept = kept_positions(analysis.groups, keep)
    graph = analysis.axis_graph
    before, after = arrays(path), arrays(finalize(remove(graph, kept)))
    torn = []
    cut = {axis.value for axis in kept if axis.value.const_value is not None}
    for value in graph.model.graph.initializers.values():
        tensor = value.const_value
        if not isinstance(tensor, QuantizedTensor):
            continue
        dims = {dim: kept[Axis(value, dim)] for dim in range(len(tensor.shape)) if Axis(value, dim) in kept}
        blocked = {d: graph.blocked[Axis(value, d)] for d in dims if Axis(value, d) in graph.blocked}
        stored, scale, *_ = tensor.scheme.node.inputs
        layout, perm = tensor.layout, tensor.scheme.perm or tuple(range(len(tensor.shape)))
        if layout.axis in blocked or (layout.block and layout.axis in dims):
            torn.append(value.name)
            continue
        expected = slice_array(np.transpose(before[stored], perm), dims, blocked)
        np.testing.assert_array_equal(np.transpose(after[stored], perm), expected)
        scales = before[scale]
        if layout.axis is not None:
            for dim, flags in dims.items():
                if layout.block or dim == layout.axis:
                    scales = np.compress(flags, scales, axis=dim if layout.block else 0)
        np.testing.assert_array_equal(after[scale], scales)
    assert cut and bool(torn) == (form in (*TORN, "transposed convolutions in groups"))


def test_masked_models_compute_what_cut_ones_do(form, tmp_path):
    if form in TORN:
        pytest.skip("its blocks are rounded again where they are cut")
    path = made(form, tmp_path)
    masked, cut = (
        onnxprune.prune(path, ratio=0.4, round_to=1, slim=False, mode=mode).model
        for mode in ("mask", "remove")
    )
    feed = make_feeds(masked, {})
    rewrites = "QuantizeLinear" in types(masked) or "DynamicQuantizeLinear" in types(masked)
    expected, got = (  # where weights alone are quantised, onnxruntime rounds activations in blocks, unasked
        run(open_session(model, saturating=False, optimize=rewrites), feed) for model in (masked, cut)
    )
    for name, array in expected.items():
        tolerance = 1e-5 * np.abs(array.astype(np.float64)).max()
        np.testing.assert_allclose(got[name].astype(np.float64), array.astype(np.float64), atol=tolerance)


def test_repaired(form, tmp_path):
    path = made(form, tmp_path)
    result = onnxprune.prune(path, tmp_path / "r.onnx", ratio=0.4, round_to=1, data="synthetic:64")
    onnx.checker.check_model(tmp_path / "r.onnx", full_check=True)
    before, after = arrays(path), arrays(tmp_path / "r.onnx")
    for name, array in before.items():
        assert after[name].dtype == array.dtype
    quantised = result.report.quantised
    assert quantised is not None and quantised.count >= 2
    run(open_session(result.model), make_feeds(result.model, {}))
