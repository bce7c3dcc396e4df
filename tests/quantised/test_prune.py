"""Models as onnxruntime's quantiser writes them: pruned, proven in integers, as fusable as before."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from quantised_nets import VARIANTS, arrays, kernels, quantised, samples
from small_nets import attention, convnet, grouped, residual

import onnxprune
from onnxprune.calibrate.sessions import open_session, run
from onnxprune.model import io
from onnxprune.model.normalize import normalize

NETS = {"residual": residual, "grouped": grouped, "attention": attention}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Quantised models by net and variant, each made once."""
    known = {}

    def get(net: str, variant: str):
        if (net, variant) not in known:
            folder = tmp_path_factory.mktemp("quantised")
            made = convnet((16, 32, 24)) if net == "convnet" else NETS[net]()
            known[net, variant] = quantised(folder, made, variant)
        return known[net, variant]

    return get


CASES = [("convnet", variant) for variant in VARIANTS] + [
    (net, variant) for net in NETS for variant in ("u8s8 tensor", "u8s8 channel")
]


@pytest.mark.parametrize(("net", "variant"), CASES)
def test_without_data_every_number_stays(files, tmp_path, net, variant):
    path = files(net, variant)
    result = onnxprune.prune(path, tmp_path / "cut.onnx", macs=0.6, round_to=4)
    onnx.checker.check_model(tmp_path / "cut.onnx", full_check=True)
    soundness, how = result.report.soundness, result.report.quantised
    assert soundness.form == "integer" and soundness.equal and soundness.max_abs_diff == 0
    assert soundness.max_abs_output > 0
    assert how is not None and how.requantised == () and how.torn == ()
    assert kernels(path, tmp_path) == kernels(tmp_path / "cut.onnx", tmp_path)
    before, after = arrays(path), arrays(result.model)
    for name, array in after.items():  # every scale that is left is one of the file's
        if name.endswith("_scale") and array.size:
            assert np.isin(array, before[name]).all()


@pytest.mark.parametrize(("net", "variant"), CASES)
def test_with_data_layers_stay_layers_of_integers(files, tmp_path, net, variant):
    path = files(net, variant)
    given = samples(io.load(path).ir, 64)
    data = {name: np.concatenate([feed[name] for feed in given]) for name in given[0]}
    np.savez(tmp_path / "data.npz", **data)
    result = onnxprune.prune(path, tmp_path / "r.onnx", macs=0.6, round_to=4, data=str(tmp_path / "data.npz"))
    onnx.checker.check_model(tmp_path / "r.onnx", full_check=True)
    how = result.report.quantised
    assert how is not None
    repaired = [layer for layer in result.report.repairs if layer.kind == "affine"]
    assert bool(how.requantised) == bool(repaired)
    was, now = kernels(path, tmp_path), kernels(tmp_path / "r.onnx", tmp_path)
    added = now["QLinearAdd"] - was["QLinearAdd"]  # biases of MatMuls that had none
    assert added >= 0 and now - was in ({}, {"QLinearAdd": added}) and not was - now


def test_biases_have_the_scale_of_the_sums(files, tmp_path):
    """int32 biases are at the product of the scales of input and weight, also when these are new."""
    path = files("convnet", "u8s8 channel")
    result = onnxprune.prune(path, macs=0.5, round_to=4, data="synthetic:64")
    assert result.report.quantised.requantised
    graph = result.model.graph
    checked = 0
    for node in graph:
        if node.op_type not in ("Conv", "Gemm"):
            continue
        x, w, b = (value.producer() for value in node.inputs)
        assert b.inputs[0].const_value.dtype == ir.DataType.INT32
        product = x.inputs[1].const_value.numpy() * w.inputs[1].const_value.numpy()
        np.testing.assert_allclose(b.inputs[1].const_value.numpy(), product, rtol=1e-6)
        checked += 1
    assert checked == 4


def test_a_layer_without_a_bias_gets_one_of_integers(tmp_path):
    net = convnet((16, 32, 24))
    for node in net.graph:
        if node.op_type == "Conv":
            node.replace_input_with(2, None)
            node.resize_inputs(2)
    for name in [name for name in net.graph.initializers if name.endswith(".bias") and "conv" in name]:
        del net.graph.initializers[name]
    path = quantised(tmp_path, net)
    result = onnxprune.prune(path, tmp_path / "r.onnx", macs=0.5, round_to=4, data="synthetic:64")
    graph = result.model.graph
    biases = [node.inputs[2].producer() for node in graph if node.op_type == "Conv" and len(node.inputs) > 2]
    assert biases and all(node.op_type == "DequantizeLinear" for node in biases)
    assert all(node.inputs[0].const_value.dtype == ir.DataType.INT32 for node in biases)
    assert (
        kernels(path, tmp_path)["QLinearConv"] == kernels(tmp_path / "r.onnx", tmp_path)["QLinearConv"] == 3
    )


def test_masks_are_zero_points(files, tmp_path):
    path = files("convnet", "asymmetric")
    cut = onnxprune.prune(path, macs=0.6, round_to=4)
    masked = onnxprune.prune(path, macs=0.6, round_to=4, mode="mask")
    before, after = arrays(path), arrays(masked.model)
    assert {name: array.shape for name, array in before.items()} == {
        name: array.shape for name, array in after.items()
    }
    changed = [name for name, array in before.items() if (array != after[name]).any()]
    assert changed
    for name in changed:
        zero = after[name.replace("_quantized", "_zero_point")]
        line = zero.reshape([-1, *[1] * (after[name].ndim - 1)])
        assert ((after[name] == before[name]) | (after[name] == line)).all()
    feed = samples(masked.model, 1)[0]
    expected, got = (run(open_session(m, saturating=False), feed) for m in (masked.model, cut.model))
    np.testing.assert_array_equal(expected["logits"], got["logits"])


def test_a_plan_gives_the_same_model_again(files, tmp_path):
    path = files("residual", "u8s8 channel")
    first = onnxprune.prune(path, macs=0.6, round_to=4)
    first.plan.save(tmp_path / "plan.json")
    again = onnxprune.apply(path, tmp_path / "plan.json")
    assert ir.to_proto(first.model).SerializeToString(deterministic=True) == ir.to_proto(
        again.model
    ).SerializeToString(deterministic=True)


@pytest.mark.parametrize("criterion", ["l1", "fisher", "gradient", "obs"])
def test_criteria(files, criterion):
    """Gradients pass the rounding."""
    result = onnxprune.prune(
        files("residual", "u8s8 tensor"), macs=0.7, round_to=4, criterion=criterion, data="synthetic:32"
    )
    assert result.report.criterion == criterion and result.report.dropped > 0


def test_costs_and_groups_are_those_of_the_float_model(files, tmp_path):
    ir.save(convnet((16, 32, 24)), tmp_path / "float.onnx")
    plain = onnxprune.analyze(tmp_path / "float.onnx")
    for variant in VARIANTS:
        found = onnxprune.analyze(files("convnet", variant))
        assert found.cost == plain.cost and found.coverage == plain.coverage
        assert [g.units for g in found.partition.groups] == [g.units for g in plain.partition.groups]


def test_float_initializers_of_the_normal_form(files):
    normal = normalize(io.load(files("convnet", "u8s8 channel")).ir)
    weights = [
        v for v in normal.graph.initializers.values() if v.dtype == ir.DataType.FLOAT and len(v.shape) > 1
    ]
    assert len(weights) == 4 and all(w.const_value.numpy().dtype == np.float32 for w in weights)
