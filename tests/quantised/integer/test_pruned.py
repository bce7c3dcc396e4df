"""Whole ways: a quantised file in, a smaller one of the same operators out."""

from __future__ import annotations

import numpy as np
import pytest
from integer_models import early_bias, lstm_of
from integer_net import CONTRIB, Integers, declared, operators, run, written
from onnx import TensorProto, helper, numpy_helper

from onnxprune.report.quantised import quantised_line

# --- models -----------------------------------------------------------------------------------------------


def convolutions(channels):
    """Quantised convolutions with pooling of integers, a sum and a classifier, as quantize_static writes them."""
    m = Integers("u", opset=18)
    x = m.floats(1, 3, 12, 12)
    m.node("QuantizeLinear", [x, *m.range("q", 0.03, 128)], ["q"], name="into")
    last, scale, width = "q", ["q_scale", "q_zero_point"], 3
    for number, wide in enumerate((16, 16, 16)):
        w = m.weight(wide, width, 3, 3, channels=wide if channels else None, name=f"w{number}_quantized")
        # the scale of activations as a quantiser would choose it: wide enough for most
        out = m.range(f"h{number}", (0.25, 0.6, 1.2)[number], 0)
        parts = [last, *scale, *w, *out, m.bias(wide, name=f"b{number}_quantized")]
        m.node("QLinearConv", parts, [f"h{number}"], name=f"conv{number}", pads=[1, 1, 1, 1])
        last, scale, width = f"h{number}", out, wide
        if number == 0:
            m.node("MaxPool", [last], ["pooled"], name="pool", kernel_shape=[2, 2], strides=[2, 2])
            last = "pooled"
    parts = ["h1", "h1_scale", "h1_zero_point", "h2", "h2_scale", "h2_zero_point", *m.range("s", 1.5, 0)]
    m.node("QLinearAdd", parts, ["s"], CONTRIB, name="sum")
    m.node(
        *(
            "QLinearGlobalAveragePool",
            ["s", "s_scale", "s_zero_point", *m.range("g", 0.5, 0)],
            ["g"],
            CONTRIB,
        ),
        name="mean",
        channels_last=0,
    )
    m.node("Flatten", ["g"], ["f"], name="flat")
    w = m.weight(5, 16, channels=5 if channels else None, name="classifier_quantized")
    parts = ["f", "g_scale", "g_zero_point", *w, m.bias(5, name="last_quantized"), *m.range("y", 0.4)]
    m.node("QGemm", parts, ["yq"], CONTRIB, name="classifier", transB=1)
    m.node("DequantizeLinear", ["yq", "y_scale", "y_zero_point"], ["y"], name="out")
    return declared(m.model("y", types=[TensorProto.FLOAT]), m.feed)


def attention(channels):
    """Projections, heads on integers, products of activations, softmax: QLinearMatMul throughout."""
    m = Integers("u", opset=18)
    m.node("QuantizeLinear", [m.floats(2, 6, 8), *m.range("q", 0.02, 128)], ["q"], name="into")

    def product(a, b, out, scale, name):
        m.node("QLinearMatMul", [a, *ranges[a], b, *ranges[b], *m.range(out, scale)], [out], name=name)
        ranges[out] = [f"{out}_scale", f"{out}_zero_point"]

    ranges = {"q": ["q_scale", "q_zero_point"]}
    shape, order = m.add("heads", np.array([2, 6, 4, 4])), {"perm": [0, 2, 1, 3]}
    for part, scale in (("query", 0.03), ("key", 0.03), ("value", 0.03)):
        w = m.weight(8, 16, channels=16 if channels else None, name=f"{part}_quantized")
        ranges[w[0]] = w[1:]
        product("q", w[0], f"{part}_flat", scale, part)
        m.node("Reshape", [f"{part}_flat", shape], [f"{part}_heads"], name=f"{part}_reshape")
        m.node("Transpose", [f"{part}_heads"], [part], name=f"{part}_turn", **order)
        ranges[part] = ranges[f"{part}_flat"]
    m.node("Transpose", ["key"], ["key_turned"], name="turn", perm=[0, 1, 3, 2])
    ranges["key_turned"] = ranges["key"]
    product("query", "key_turned", "logits", 0.15, "scores")
    m.node(
        *("QLinearSoftmax", ["logits", *ranges["logits"], *m.range("p", 1 / 256, 0)], ["p"], CONTRIB),
        name="softmax",
        axis=-1,
        opset=18,
    )
    ranges["p"] = ["p_scale", "p_zero_point"]
    product("p", "value", "mixed", 0.03, "mix")
    m.node("Transpose", ["mixed"], ["back"], name="back", **order)
    m.node("Reshape", ["back", m.add("flat", np.array([2, 6, 16]))], ["joined"], name="join")
    ranges["joined"] = ranges["mixed"]
    w = m.weight(16, 5, name="output_quantized")
    ranges[w[0]] = w[1:]
    product("joined", w[0], "yq", 0.05, "output")
    m.node("DequantizeLinear", ["yq", *ranges["yq"]], ["y"], name="out")
    return declared(m.model("y", types=[TensorProto.FLOAT]), m.feed)


def dynamic(channels):
    """Two products behind one DynamicQuantizeLinear, and one that reads both."""
    m = Integers("u", opset=18)

    def quantized(x):
        parts = [f"{x}_quantized", f"{x}_scale", f"{x}_zero"]
        m.node("DynamicQuantizeLinear", [x], parts, name=f"{x}_dynamic")
        return parts

    def product(source, name, wide, k):
        w = m.weight(k, wide, channels=wide if channels else None, zeros=True, name=f"{name}_weight")
        integers, scale, zero = source
        m.node("MatMulInteger", [integers, w[0], zero, w[2]], [f"{name}_sums"], name=name)
        m.node("Cast", [f"{name}_sums"], [f"{name}_floats"], name=f"{name}_cast", to=TensorProto.FLOAT)
        m.node("Mul", [scale, w[1]], [f"{name}_factor"], name=f"{name}_factor")
        m.node("Mul", [f"{name}_floats", f"{name}_factor"], [f"{name}_out"], name=f"{name}_scale")
        bias = m.add(f"{name}_bias", m.rng.normal(size=wide).astype(np.float32))
        m.node("Add", [f"{name}_out", bias], [f"{name}_y"], name=f"{name}_add")
        return f"{name}_y"

    source = quantized(m.floats(3, 8))
    gate = product(source, "gate", 24, 8)
    value = product(source, "value", 24, 8)
    m.node("Sigmoid", [gate], ["open"], name="sigmoid")
    m.node("Mul", ["open", value], ["hidden"], name="product")
    y = product(quantized("hidden"), "down", 5, 24)
    return declared(m.model(y, types=[TensorProto.FLOAT]), m.feed)


def early(channels):
    """Three convolutions as onnxruntime 1.2 to 1.5 wrote them, with biases of integers."""
    m = Integers("u", opset=12)
    last, width = m.floats(1, 3, 8, 8), 3
    for number, wide in enumerate((16, 12, 4)):
        parts = [f"{last}_quantized", f"{last}_scale", f"{last}_zero"]
        m.node("DynamicQuantizeLinear", [last], parts, name=f"dynamic{number}")
        w = m.weight(wide, width, 3, 3, kind="u", zeros=True, name=f"w{number}")
        vector = m.add(f"bias{number}", m.rng.normal(size=wide).astype(np.float32))
        early_bias(m, parts, w, f"h{number}", f"conv{number}", vector, number == 1)
        m.node("Sigmoid", [f"h{number}"], [f"s{number}"], name=f"sigmoid{number}")
        m.node("Mul", [f"h{number}", f"s{number}"], [f"a{number}"], name=f"silu{number}")
        last, width = f"a{number}", wide
    return declared(m.model(last, types=[TensorProto.FLOAT]), m.feed)


def recurrent(columns):
    """Two layers of both directions, one of one direction, and a product of all states."""
    m = Integers("u", opset=14)
    last, width = m.floats(7, 2, 6), 6
    for number, (hidden, both) in enumerate(((12, True), (10, True), (8, False))):
        lstm_of(m, last, width, hidden, [f"y{number}"], f"lstm{number}", columns, both)
        order = m.add(f"order{number}", np.array([0, 0, -1]))
        m.node("Transpose", [f"y{number}"], [f"t{number}"], name=f"turn{number}", perm=[0, 2, 1, 3])
        m.node("Reshape", [f"t{number}", order], [f"r{number}"], name=f"join{number}")
        last, width = f"r{number}", hidden * (2 if both else 1)
    w = m.weight(8, 5, zeros=True, name="down_quantized")
    m.node("DynamicQuantizeMatMul", [last, *w], ["y"], CONTRIB, name="down")
    return declared(m.model("y", types=[TensorProto.FLOAT]), m.feed)


QUANTISED = {
    "convolutions": (convolutions, False),
    "convolutions per channel": (convolutions, True),
    "attention": (attention, False),
    "attention per column": (attention, True),
    "dynamic": (dynamic, False),
    "dynamic per column": (dynamic, True),
    "early": (early, False),
    "recurrent": (recurrent, False),
    "recurrent per column": (recurrent, True),
}


@pytest.mark.parametrize("name", QUANTISED)
def test_the_same_operators_fewer_bytes_and_equal_integers(name, tmp_path):
    make, channels = QUANTISED[name]
    before = make(channels)
    after, report = written(tmp_path, before, ratio=0.5, criterion="l2", compensate="none", round_to=1)
    assert operators(after) == operators(before)
    assert {i.domain: i.version for i in after.opset_import} == {
        i.domain: i.version for i in before.opset_import
    }
    assert report.soundness.checked and report.soundness.equal and report.soundness.form == "integer"
    assert report.after.params < 0.8 * report.before.params
    feed = {
        "x0": np.random.default_rng(3).normal(size=[d.dim_value for d in _dims(before)]).astype(np.float32)
    }
    assert run(after, feed)[0].shape == run(before, feed)[0].shape


def _dims(proto):
    return proto.graph.input[0].type.tensor_type.shape.dim


@pytest.mark.parametrize("name", QUANTISED)
def test_what_stays_keeps_its_integers(name, tmp_path):
    """Without a repair, every stored number of the result is one of the file's, at its scale."""
    make, channels = QUANTISED[name]
    before = make(channels)
    after, _ = written(tmp_path, before, ratio=0.5, criterion="l2", compensate="none", round_to=1)
    old = {t.name: numpy_helper.to_array(t) for t in before.graph.initializer}
    new = {t.name: numpy_helper.to_array(t) for t in after.graph.initializer}
    assert set(new) == set(old)
    smaller = [key for key in new if new[key].shape != old[key].shape]
    assert len(smaller) > 2
    for key in new:
        assert new[key].dtype == old[key].dtype
        if new[key].dtype != np.int64:  # extents
            assert np.isin(new[key], old[key]).all()
            assert new[key].shape != old[key].shape or np.array_equal(new[key], old[key])


@pytest.mark.parametrize("name", QUANTISED)
def test_a_masked_file_computes_what_the_smaller_one_does(name, tmp_path):
    make, channels = QUANTISED[name]
    before = make(channels)
    options = {"ratio": 0.5, "criterion": "l2", "compensate": "none", "round_to": 1, "slim": False}
    folders = [tmp_path / mode for mode in ("remove", "mask")]
    results = []
    shape = [d.dim_value for d in _dims(before)]
    feed = {"x0": np.random.default_rng(3).normal(size=shape).astype(np.float32)}
    for folder in folders:
        folder.mkdir()
        after, _ = written(folder, before, mode=folder.name, **options)
        results.append(run(after, feed)[0])
    assert np.array_equal(*results) and not np.array_equal(results[0], run(before, feed)[0])


@pytest.mark.parametrize("name", QUANTISED)
def test_a_repair_is_rounded_and_leaves_the_operators(name, tmp_path):
    make, channels = QUANTISED[name]
    before = make(channels)
    shape = [64 // _dims(before)[0].dim_value, *(d.dim_value for d in _dims(before))]
    data = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    np.savez(tmp_path / "data.npz", x0=data.reshape(-1, *shape[2:]))
    options = {"ratio": 0.5, "criterion": "l2", "round_to": 1, "data": str(tmp_path / "data.npz")}
    after, report = written(tmp_path, before, **options)
    assert report.soundness.equal
    kinds = {kind for kind in operators(after) if kind[1] not in ("Add", "QLinearAdd")}
    assert kinds == {kind for kind in operators(before) if kind[1] not in ("Add", "QLinearAdd")}
    assert {node.op_type for node in after.graph.node if node.op_type in ("MatMul", "Conv", "Gemm")} == set()
    repaired = [layer for layer in report.repairs if layer.kind != "none"]
    assert repaired and all(layer.after < layer.before for layer in repaired)


def fused_attention():
    """QAttention of four heads between DynamicQuantizeLinear and onnxruntime's two products with a bias."""
    m = Integers("u", opset=18)
    m.node("DynamicQuantizeLinear", [m.floats(2, 6, 8)], ["xq", "x_scale", "x_zero"], name="round")
    w, w_scale, w_zero = m.weight(8, 48, channels=48, name="packed_quantized")
    bias = m.add("packed_bias", m.rng.normal(size=48).astype(np.float32))
    parts = ["xq", w, bias, "x_scale", w_scale, "", "x_zero", w_zero]
    m.node("QAttention", parts, ["heads"], CONTRIB, name="attend", num_heads=4)
    bias = m.add("up_bias", m.rng.normal(size=24).astype(np.float32))
    parts = ["heads", *m.weight(16, 24, name="up_quantized"), bias]
    m.node("DynamicQuantizeMatMul", parts, ["wide"], CONTRIB, name="up")
    m.node("Relu", ["wide"], ["hidden"], name="relu")
    m.node("DynamicQuantizeLinear", ["hidden"], ["hq", "h_scale", "h_zero"], name="round_again")
    w, w_scale, w_zero = m.weight(24, 5, name="down_quantized")
    bias = m.add("down_bias", m.rng.normal(size=5).astype(np.float32))
    parts = ["hq", w, "h_scale", w_scale, "h_zero", w_zero, bias]
    m.node("MatMulIntegerToFloat", parts, ["y"], CONTRIB, name="down")
    return declared(m.model("y", types=[TensorProto.FLOAT]), m.feed)


def test_operators_of_onnxruntime_that_do_several_steps(tmp_path):
    before = fused_attention()
    after, report = written(tmp_path, before, ratio=0.5, criterion="l2", compensate="none", round_to=1)
    assert operators(after) == operators(before)
    assert report.soundness.equal and report.after.params < 0.6 * report.before.params
    attend = next(node for node in after.graph.node if node.op_type == "QAttention")
    assert next(a.i for a in attend.attribute if a.name == "num_heads") == 2
    assert list(before.graph.node[1].input) == list(attend.input)


def test_an_old_opset(tmp_path):
    """Version 12 knows no axis of DequantizeLinear; the file needs none, and gets none."""
    before = convolutions(True)
    before.opset_import[0].version = 12
    after, report = written(tmp_path, before, ratio=0.5, criterion="l2", compensate="none", round_to=1)
    assert operators(after) == operators(before) and after.opset_import[0].version == 12
    assert report.soundness.equal and report.after.params < 0.8 * report.before.params


def test_convolutions_of_integers(tmp_path):
    """As quantize_dynamic writes them, each with its bias behind."""
    before = _three_convolutions()
    after, report = written(tmp_path, before, ratio=0.5, criterion="l2", compensate="none")
    assert operators(after) == operators(before)
    assert report.soundness.equal and report.after.params < 0.6 * report.before.params


def _three_convolutions():
    m = Integers("u", opset=18)
    last, width = m.floats(1, 3, 8, 8), 3
    for number, wide in enumerate((16, 16, 4)):
        parts = [f"q{number}", f"q{number}_scale", f"q{number}_zero"]
        m.node("DynamicQuantizeLinear", [last], parts, name=f"dynamic{number}")
        w = m.weight(wide, width, 3, 3, kind="u", zeros=True, name=f"w{number}")
        m.node("ConvInteger", [parts[0], w[0], parts[2], w[2]], [f"s{number}"], name=f"conv{number}")
        m.node("Cast", [f"s{number}"], [f"c{number}"], name=f"cast{number}", to=TensorProto.FLOAT)
        m.node("Mul", [parts[1], w[1]], [f"m{number}"], name=f"scales{number}")
        m.node("Mul", [f"c{number}", f"m{number}"], [f"h{number}"], name=f"scale{number}")
        bias = m.add(f"bias{number}", m.rng.normal(size=wide).astype(np.float32))
        shape = m.add(f"shape{number}", np.array([1, -1, 1, 1]))
        m.node("Reshape", [bias, shape], [f"r{number}"], name=f"reshape{number}")
        m.node("Add", [f"h{number}", f"r{number}"], [f"a{number}"], name=f"add{number}")
        m.node("Relu", [f"a{number}"], [f"x{number + 9}"], name=f"relu{number}")
        last, width = f"x{number + 9}", wide
    return declared(m.model(last, types=[TensorProto.FLOAT]), m.feed)


def test_the_report_names_the_operators_and_what_stays(tmp_path):
    """A convolution with channels last is left alone; the products behind it are pruned."""
    m = Integers("u", opset=18)
    x = m.activation(1, 9, 9, 8)
    parts = [*x, *m.weight(16, 8, 3, 3), *m.range("h", 0.3)]
    m.node("QLinearConv", parts, ["h"], CONTRIB, name="strange", channels_last=1)
    m.node("DequantizeLinear", ["h", "h_scale", "h_zero_point"], ["f"], name="floats")
    m.node("QuantizeLinear", ["f", *m.range("g", 0.3)], ["g"], name="again")
    w = m.weight(16, 12, name="v_quantized")
    m.node("QLinearMatMul", ["g", "g_scale", "g_zero_point", *w, *m.range("k", 0.9)], ["k"], name="first")
    w = m.weight(12, 5, name="u_quantized")
    m.node("QLinearMatMul", ["k", "k_scale", "k_zero_point", *w, *m.range("yq", 0.9)], ["yq"], name="last")
    m.node("DequantizeLinear", ["yq", "yq_scale", "yq_zero_point"], ["y"], name="out")
    before = declared(m.model("y", types=[TensorProto.FLOAT]), m.feed)
    before.graph.value_info.append(helper.make_tensor_value_info("h", TensorProto.UINT8, [1, 7, 7, 16]))
    after, report = written(tmp_path, before, ratio=0.5, criterion="l2", compensate="none", round_to=1)
    assert operators(after) == operators(before)
    assert report.quantised.operators == {"QLinearMatMul": 2}
    assert report.quantised.whole == {"QLinearConv 'strange'": "channels_last is 1"}
    assert "left as they are: QLinearConv 'strange' (channels_last is 1)" in quantised_line(report.quantised)
