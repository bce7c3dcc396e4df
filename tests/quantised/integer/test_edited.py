"""What pruning does to the floats between lowering and raising, and what the integers make of it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from integer_models import CASES, conv, early_bias, lstm_of, matmul, matmul_of_activations
from integer_net import CONTRIB, Integers, described, run
from onnx import TensorProto, helper

from onnxprune.model import edit
from onnxprune.model.integer import left_whole, lower_integer, raise_integer


def floats_of(made):
    m, proto = made
    model = ir.from_proto(proto)
    lower_integer(model)
    return m, proto, model


def node_of(model, op_type):
    (node,) = [node for node in model.graph if node.op_type == op_type]
    return node


def operators(model):
    return [node.op_type for node in model.graph]


def test_a_mask_before_a_product_is_exact():
    """Masked is removed, in the integers: masked positions are at the zero point."""
    m, proto, model = floats_of(matmul_of_activations("u"))
    flags = np.array([1, 0, 1, 1, 0, 1, 1, 1, 0, 1, 1, 1], np.float32)
    mask = edit.add_initializer(model.graph, "mask", flags, ir.DataType.FLOAT)
    edit.insert_before(node_of(model, "MatMul"), 0, "Mul", [mask])
    raise_integer(model)
    assert operators(model) == ["DequantizeLinear", "Mul", "QuantizeLinear", "QLinearMatMul"]
    (masked,) = run(model, m.feed)
    smaller, kept = matmul_of_activations("u")[1], flags.astype(bool)
    for value, axis in zip(smaller.graph.input, (2, 1), strict=True):
        value.type.tensor_type.shape.dim[axis].dim_value = int(kept.sum())
    feed = {"x0": m.feed["x0"][..., kept], "x1": m.feed["x1"][:, kept]}
    (removed,) = run(smaller, feed)
    assert np.array_equal(masked, removed) and not np.array_equal(masked, run(proto, m.feed)[0])


def test_positions_that_are_taken_stay_integers():
    m, proto, model = floats_of(matmul()("s"))
    order = edit.add_initializer(model.graph, "order", np.arange(12)[::-1].copy(), ir.DataType.INT64)
    edit.insert_before(node_of(model, "MatMul"), 0, "Gather", [order], axis=2)
    raise_integer(model)
    (found,) = run(model, m.feed)
    (expected,) = run(proto, {"x0": m.feed["x0"][..., ::-1].copy()})
    assert np.array_equal(found, expected)


def test_other_factors_leave_the_operator_in_floats():
    """Half of a value is on no grid: what is in between is not rounded."""
    m, _, model = floats_of(matmul()("u"))
    half = edit.add_initializer(model.graph, "half", np.array([0.5], np.float32), ir.DataType.FLOAT)
    edit.insert_before(node_of(model, "MatMul"), 0, "Mul", [half])
    before = run(model, m.feed)
    raise_integer(model)
    assert "QLinearMatMul" not in operators(model)
    assert np.array_equal(run(model, m.feed)[0], before[0])


def test_a_result_that_is_read_before_it_is_rounded():
    _, _, model = floats_of(conv()("u"))
    out = node_of(model, "Conv").outputs[0]
    model.graph.outputs.append(out)
    raise_integer(model)
    assert "QLinearConv" not in operators(model)


@pytest.mark.parametrize("channels", [None, 6])
def test_a_new_bias_of_a_convolution_is_rounded_to_its_scale(channels):
    m, _, model = floats_of(conv(bias=False, channels=channels)("u"))
    core = node_of(model, "Conv")
    bias = m.rng.normal(size=6).astype(np.float32)
    core.resize_inputs(3)
    core.replace_input_with(2, edit.add_initializer(model.graph, "bias", bias, ir.DataType.FLOAT))
    expected = run(model, m.feed)[0].astype(int)
    raise_integer(model)
    (node,) = model.graph
    product = m.arrays["x0_scale"] * m.arrays["w_quantized_scale"]
    stored = node.inputs[8].const_value.numpy()
    assert stored.dtype == np.int32 and np.array_equal(stored, np.rint(bias / product))
    assert np.abs(run(model, m.feed)[0].astype(int) - expected).max() <= 1


def test_a_bias_follows_the_scale_of_its_weight():
    m, proto, model = floats_of(conv(channels=6)("s"))
    scale = model.graph.initializers["w_quantized_scale"]
    edit.set_array(scale, scale.const_value.numpy() * np.float32(1.5))
    raise_integer(model)
    stored = model.graph.initializers["b_quantized"].const_value.numpy()
    assert np.array_equal(stored, np.rint(m.arrays["b_quantized"] / 1.5))
    assert node_of(model, "QLinearConv").inputs[8].name == "b_quantized"
    assert run(model, m.feed)[0].shape == run(proto, m.feed)[0].shape


@pytest.mark.parametrize("contrib", [True, False])
def test_a_product_that_got_a_bias_stays_a_product_of_integers(contrib):
    """QLinearMatMul has no bias: a sum of integers follows, or one of floats where the file has no QLinearAdd."""
    m, proto, model = floats_of(matmul(channels=7)("u"))
    if not contrib:
        del model.graph.opset_imports[CONTRIB]
    bias = edit.add_initializer(
        model.graph, "bias", m.rng.normal(size=7).astype(np.float32), ir.DataType.FLOAT
    )
    (product,) = run(model, m.feed)
    inside = (product > 0) & (
        product < 255
    )  # what the file's range cuts off of the product, no bias brings back
    edit.insert_after(node_of(model, "MatMul").outputs[0], "Add", [bias])
    expected = run(model, m.feed)[0].astype(int)
    node_of(model, "QuantizeLinear").outputs[0].type = None  # as files without declared types have it
    raise_integer(model)
    sums = ["QLinearAdd"] if contrib else ["DequantizeLinear", "Add", "QuantizeLinear"]
    assert operators(model) == ["QLinearMatMul", *sums]
    found = run(model, m.feed)[0].astype(int)
    assert inside.sum() > 50
    assert np.abs(found - expected)[inside].max() <= 1 < np.abs(found - run(proto, m.feed)[0]).max()


def test_a_sum_that_a_repair_added_is_one_of_integers():
    """MatMul, rounded, plus a bias that is stored in 8 bits, rounded with the scale of the file."""
    m, _, model = floats_of(matmul()("u"))
    graph = model.graph
    product = node_of(model, "MatMul").outputs[0]
    quantize = node_of(model, "QuantizeLinear")
    scale, zero = quantize.inputs[1:]

    def step(op_type, name, *inputs):
        out = ir.Value(
            name=name, type=ir.TensorType(ir.DataType.UINT8 if "Qu" in op_type else ir.DataType.FLOAT)
        )
        graph.insert_before(quantize, ir.Node("", op_type, inputs, outputs=[out], name=f"{name}_node"))
        return out

    stored = edit.add_initializer(
        graph, "bias", m.rng.integers(0, 255, 7).astype(np.uint8), ir.DataType.UINT8
    )
    bias_scale = edit.add_initializer(graph, "bias_scale", np.float32(0.07), ir.DataType.FLOAT)
    bias_zero = edit.add_initializer(graph, "bias_zero", np.uint8(128), ir.DataType.UINT8)
    rounded = step("QuantizeLinear", "rounded", product, scale, zero)
    left = step("DequantizeLinear", "left", rounded, scale, zero)
    right = step("DequantizeLinear", "right", stored, bias_scale, bias_zero)
    quantize.replace_input_with(0, step("Add", "sum", left, right))
    expected = run(model, m.feed)[0].astype(int)
    raise_integer(model)
    assert operators(model) == ["QLinearMatMul", "QLinearAdd"]
    found = run(model, m.feed)[0].astype(int)
    assert np.abs(found - expected).max() <= 1 and len(np.unique(found)) > 9


def test_a_new_bias_behind_an_integer_convolution():
    make, _ = CASES["integer conv, no bias"]
    m, _, model = floats_of(make("u"))
    core = node_of(model, "Conv")
    bias = edit.add_initializer(
        model.graph, "bias", m.rng.normal(size=6).astype(np.float32), ir.DataType.FLOAT
    )
    core.resize_inputs(3)
    core.replace_input_with(2, bias)
    (expected,) = run(model, m.feed)
    raise_integer(model)
    assert operators(model)[1:] == ["ConvInteger", "Cast", "Mul", "Mul", "Add"]
    (found,) = run(model, m.feed)
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


def test_a_bias_of_integers_may_share_the_product_of_the_scales_and_be_taken_away():
    m, proto = CASES["integer conv, early bias"][0]("u")
    divide = next(node for node in proto.graph.node if node.op_type == "Div")
    divide.input[1] = "conv_quant_scales_mul:0"
    scales = [node for node in proto.graph.node if node.name in ("bias_scale_node", "conv_quant_scales_mul")]
    proto.graph.node.remove(scales[0])
    proto.graph.node.remove(scales[1])
    proto.graph.node.insert(1, scales[1])
    model = ir.from_proto(proto)
    before = described(model)
    lower_integer(model)
    bare = model.clone()
    raise_integer(model)
    assert described(model) == before
    node_of(bare, "Conv").resize_inputs(2)
    raise_integer(bare)
    assert operators(bare) == ["DynamicQuantizeLinear", "Mul", "ConvInteger", "Cast", "Mul"]
    spread = m.arrays["bias"].reshape(1, -1, 1, 1)
    (whole,), (found,) = run(proto, m.feed), run(bare, m.feed)
    assert np.abs(found + spread - whole).max() <= 1e-4 * np.abs(whole).max()


def test_what_was_refitted_is_written():
    m, _, model = floats_of(conv(group=8, channels=8)("u"))
    core = node_of(model, "Conv")
    for name, dim in (
        ("w_quantized", 0),
        ("w_quantized_scale", 0),
        ("w_quantized_zero", 0),
        ("b_quantized", 0),
    ):
        value = model.graph.initializers[name]
        edit.set_array(value, np.take(value.const_value.numpy(), [0, 3, 5], dim))
    product = core.inputs[2].producer().inputs[1]
    edit.set_array(product, product.const_value.numpy()[[0, 3, 5]])
    core.attributes["group"] = ir.AttrInt64("group", 3)
    model.graph.inputs[0].shape = ir.Shape([2, 3, 9, 9])
    raise_integer(model)
    whole = node_of(model, "QLinearConv")
    assert whole.attributes["group"].as_int() == 3
    assert np.array_equal(whole.inputs[8].const_value.numpy(), m.arrays["b_quantized"][[0, 3, 5]])
    (found,) = run(model, {"x0": m.feed["x0"][:, [0, 3, 5]]})
    (whole_output,) = run(conv(group=8, channels=8)("u")[1], m.feed)
    assert np.array_equal(found, whole_output[:, [0, 3, 5]])


# --- what stays ------------------------------------------------------------------------------------------


def channels_last(m):
    parts = [*m.activation(2, 9, 9, 8), *m.weight(6, 8, 3, 3), *m.range("y", 0.15)]
    m.node("QLinearConv", parts, ["y"], CONTRIB, channels_last=1)


def scales_of_an_activation(m):
    x, scale, zero = m.activation(3, 12)
    m.arrays[scale], m.arrays[zero] = np.full(3, 0.02, np.float32), np.full(3, 120, np.uint8)
    m.node("QLinearMatMul", [x, scale, zero, *m.weight(12, 7), *m.range("y", 0.1)], ["y"])


def a_bias_that_is_computed(m):
    m.inputs.append(helper.make_tensor_value_info("b", TensorProto.INT32, [6]))
    m.feed["b"] = np.arange(6, dtype=np.int32)
    parts = [*m.activation(2, 8, 9, 9), *m.weight(6, 8, 3, 3), *m.range("y", 0.15), "b"]
    m.node("QLinearConv", parts, ["y"])


def sums_that_are_read(m):
    m.node("DynamicQuantizeLinear", [m.floats(5, 12)], ["xq", "x_scale", "x_zero"])
    w, _, zero = m.weight(12, 7)
    m.node("MatMulInteger", ["xq", w, "x_zero", zero], ["sums"])
    m.node("Cast", ["sums"], ["y"], to=TensorProto.FLOAT)


def a_bias_rounded_to_another_scale(m):
    quantized = ["xq", "x_scale", "x_zero"]
    m.node("DynamicQuantizeLinear", [m.floats(2, 8, 9, 9)], quantized)
    vector = m.add("bias", np.arange(6, dtype=np.float32))
    early_bias(m, quantized, m.weight(6, 8, 3, 3, kind="u"), "y", "conv", vector)
    m.nodes[1].input[1] = m.add("another_scale", np.float32(0.3))


def an_lstm_whose_units_are_not_zero(m):
    lstm_of(m, m.floats(9, 2, 5), 5, 6, ["y"], "lstm", activations=["Sigmoid", "Sigmoid", "Tanh"])


def scales_of_a_layer(m):
    lstm_of(m, m.floats(9, 2, 5), 5, 6, ["y"], "lstm")
    m.arrays["lstm_R_quantized_scale"] = np.float32(0.01)


def softmax_of_another_version(m):
    parts = [*m.activation(2, 3, 4), *m.range("y", 1 / 256, 0)]
    m.node("QLinearSoftmax", parts, ["y"], CONTRIB, opset=11, axis=1)


def scales_in_half_precision(m):
    w = m.weight(12, 7)
    x = m.activation(3, 12)
    for name in (x[1], w[1]):
        m.arrays[name] = m.arrays[name].astype(np.float16)
    m.node("QLinearMatMul", [*x, *w, *m.range("y", 0.1)], ["y"])
    m.arrays["y_scale"] = m.arrays["y_scale"].astype(np.float16)


STAYS = {
    channels_last: "channels_last is 1",
    scales_of_an_activation: "scales of an activation are not one number",
    a_bias_that_is_computed: "the bias is computed",
    scales_in_half_precision: "a scale is FLOAT16",
    a_bias_rounded_to_another_scale: "its bias is rounded to another scale than its own",
    an_lstm_whose_units_are_not_zero: "units without weights are not 0",
    scales_of_a_layer: "scales are not one for each direction, or for each column of each",
    sums_that_are_read: "its result is not scaled",
    softmax_of_another_version: "it means Softmax as of version 11",
}


@pytest.mark.parametrize("make", STAYS, ids=lambda make: make.__name__)
def test_what_fits_no_form_stays_and_says_why(make):
    m = Integers("u")
    make(m)
    model = ir.from_proto(m.model("y"))
    before = described(model)
    lower_integer(model)
    assert described(model) == before
    assert list(left_whole(model.graph).values()) == [STAYS[make]]
    raise_integer(model)
    assert described(model) == before


def test_the_other_name_of_the_standard_domain():
    m, proto = matmul()("u")
    proto.graph.node[0].domain = "ai.onnx"
    model = ir.from_proto(proto)
    before = described(model)
    lower_integer(model)
    assert "MatMul" in operators(model)
    raise_integer(model)
    assert described(model) == before


def test_models_without_integers_are_left_alone():
    m = Integers("u", opset=9)
    m.node("Relu", [m.floats(2, 3)], ["y"])
    model = ir.from_proto(m.model("y", types=[TensorProto.FLOAT]))
    before = described(model)
    lower_integer(model)
    raise_integer(model)
    assert described(model) == before


def test_a_mean_is_that_of_the_documented_formula():
    """onnxruntime has no kernel for QLinearReduceMean on the CPU: numpy says what it means."""
    for opset in (13, 18):
        m = Integers("u", opset=opset)
        x = m.activation(3, 8, 5)
        m.node("QLinearReduceMean", [*x, *m.range("y", 0.013)], ["y"], CONTRIB, axes=[1], keepdims=1)
        model = ir.from_proto(m.model("y"))
        before = described(model)
        lower_integer(model)
        mean = ((m.feed["x0"].astype(np.float64) - 120) * 0.02).mean(axis=1, keepdims=True)
        expected = np.clip(np.rint(mean / 0.013) + 120, 0, 255)
        assert np.abs(run(model, m.feed)[0] - expected).max() <= 1
        raise_integer(model)
        assert described(model) == before


def test_old_softmax():
    """Up to version 12, Softmax works on all axes from `axis` on."""
    m = Integers("u", opset=12)
    parts = [*m.activation(2, 3, 4), *m.range("y", 1 / 256, 0)]
    m.node("QLinearSoftmax", parts, ["y"], CONTRIB, opset=12, axis=1)
    model = ir.from_proto(m.model("y"))
    before, (was,) = described(model), run(model, m.feed)
    lower_integer(model)
    assert np.abs(run(model, m.feed)[0].astype(int) - was).max() <= 1
    raise_integer(model)
    assert described(model) == before
