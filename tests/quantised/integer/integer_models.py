"""One small model for each operator of integer arithmetic."""

from __future__ import annotations

import numpy as np
from integer_net import CONTRIB, NUMPY, Integers
from onnx import TensorProto, helper


def unary(op_type, shape, domain=CONTRIB, out=(1 / 64, None), **attributes):
    def make(kind, **options):
        m = Integers(kind, **options)
        x = m.activation(*shape)
        m.node(op_type, [*x, *m.range("y", *out)], ["y"], domain, **attributes)
        return m, m.model("y")

    return make


def binary(op_type, a, b, scale):
    def make(kind, **options):
        m = Integers(kind, **options)
        parts = [*m.activation(*a), *m.activation(*b, scale=0.03), *m.range("y", scale)]
        m.node(op_type, parts, ["y"], CONTRIB)
        return m, m.model("y")

    return make


def conv(group=1, bias=True, channels=None, weights="s", zeros=False, domain="", **attributes):
    def make(kind, **options):
        m = Integers(kind, **options)
        x = m.activation(2, 8, 9, 9)
        signed = weights if kind == "u" else "s"  # onnxruntime has no kernel for int8 with uint8
        w = m.weight(6 if group == 1 else 8, 8 // group, 3, 3, kind=signed, channels=channels, zeros=zeros)
        parts = [*x, *w, *m.range("y", 0.15)]
        if bias:
            parts.append(m.bias(6 if group == 1 else 8))
        m.node("QLinearConv", parts, ["y"], domain, group=group, pads=[1, 1, 1, 1], **attributes)
        return m, m.model("y")

    return make


def matmul(channels=None):
    def make(kind, **options):
        m = Integers(kind, **options)
        x = m.activation(2, 5, 12)
        w = m.weight(12, 7, channels=channels)
        m.node("QLinearMatMul", [*x, *w, *m.range("y", 0.1)], ["y"])
        return m, m.model("y")

    return make


def matmul_of_activations(kind, **options):
    m = Integers(kind, **options)
    parts = [*m.activation(2, 5, 12), *m.activation(2, 12, 4), *m.range("y", 0.1)]
    m.node("QLinearMatMul", parts, ["y"])
    return m, m.model("y")


def gemm(channels=None, transposed=0, bias=True, quantised=True, alpha=None):
    def make(kind, **options):
        m = Integers(kind, **options)
        x = m.activation(5, 12)
        w = m.weight(*((7, 12) if transposed else (12, 7)), channels=channels)
        parts = [*x, *w, m.bias(7) if bias else ""]
        if quantised:
            parts += m.range("y", 0.1)
        attributes = {} if alpha is None else {"alpha": alpha}
        m.node("QGemm", parts, ["y"], CONTRIB, transB=transposed, **attributes)
        return m, m.model("y", types=None if quantised else [TensorProto.FLOAT])

    return make


def where(kind, **options):
    m = Integers(kind, **options)
    m.inputs.append(helper.make_tensor_value_info("choose", TensorProto.BOOL, [3, 4]))
    m.feed["choose"] = m.rng.random((3, 4)) < 0.5
    parts = [*m.activation(3, 4), *m.activation(3, 4, scale=0.01), *m.range("z", 0.02)]
    m.node("QLinearWhere", ["choose", *parts], ["z"], CONTRIB)
    return m, m.model("z")


def concat(kind, **options):
    m = Integers(kind, **options)
    parts = [*m.activation(2, 3), *m.activation(2, 5, scale=0.01), *m.activation(2, 1)]
    m.node("QLinearConcat", [*m.range("y", 0.02), *parts], ["y"], CONTRIB, axis=1)
    return m, m.model("y")


def fused(bias=True, channels=None):
    def make(kind, **options):
        m = Integers(kind, **options)
        a, a_scale, a_zero = m.activation(2, 5, 12)
        b, b_scale, b_zero = m.weight(12, 7, channels=channels)
        parts = [a, b, a_scale, b_scale, a_zero, b_zero]
        if bias:
            parts.append(m.add("bias", m.rng.normal(size=7).astype(np.float32)))
        m.node("MatMulIntegerToFloat", parts, ["y"], CONTRIB)
        return m, m.model("y", types=[TensorProto.FLOAT])

    return make


def dynamic_matmul(bias=True):
    def make(kind, **options):
        m = Integers("u", **options)
        parts = [m.floats(2, 5, 12), *m.weight(12, 7, kind=kind, zeros=True)]
        if bias:
            parts.append(m.add("bias", m.rng.normal(size=7).astype(np.float32)))
        m.node("DynamicQuantizeMatMul", parts, ["y"], CONTRIB)
        return m, m.model("y", types=[TensorProto.FLOAT])

    return make


def scaled(m, op_type, quantized, weight, out, name, swapped=False, **attributes):
    """The nodes of quantize_dynamic around a product."""
    x, scale, zero = quantized
    w, w_scale, w_zero = weight
    m.node(op_type, [x, w, zero, w_zero], [f"{out}_integers"], name=name, **attributes)
    m.node("Cast", [f"{out}_integers"], [f"{out}_floats"], name=f"{name}_cast", to=TensorProto.FLOAT)
    m.node("Mul", [scale, w_scale], [f"{name}_scales_mul:0"], name=f"{name}_scales_mul")
    pair = [f"{out}_floats", f"{name}_scales_mul:0"]
    m.node("Mul", pair[::-1] if swapped else pair, [out], name=f"{name}_output_scale_mul")


def integer_matmuls(channels=None, swapped=False):
    """Two products and a sum behind one DynamicQuantizeLinear."""

    def make(kind, **options):
        m = Integers("u", **options)
        x = m.floats(2, 5, 12)
        quantized = ["xq", "x_scale", "x_zero"]
        m.node("DynamicQuantizeLinear", [x], ["xq", "x_scale", "x_zero"])
        for number, width in enumerate((7, 4)):
            per = None if channels is None else width
            w = m.weight(12, width, kind=kind, channels=per, zeros=True, name=f"w{number}_quantized")
            scaled(m, "MatMulInteger", quantized, w, f"h{number}", f"product{number}", swapped)
        bias = m.add("bias", m.rng.normal(size=7).astype(np.float32))
        m.node("Add", ["h0", bias], ["y"])
        return m, m.model("y", "h1", types=[TensorProto.FLOAT] * 2)

    return make


def integer_conv(bias=True):
    def make(kind, **options):
        m = Integers("u", **options)
        x = m.floats(2, 8, 9, 9)
        quantized = ["xq", "x_scale", "x_zero"]
        m.node("DynamicQuantizeLinear", [x], quantized)
        # onnxruntime's ConvInteger knows unsigned weights alone on some machines
        w = m.weight(6, 8, 3, 3, kind="u", zeros=kind == "s")
        out = "yquant_scaled_output" if bias else "y"
        scaled(m, "ConvInteger", quantized, w, out, "conv_quant", pads=[1, 1, 1, 1])
        if bias:
            vector = m.add("bias", m.rng.normal(size=6).astype(np.float32))
            shape = m.add("y_bias_reshape_shape", np.array([1, -1, 1, 1]))
            m.node("Reshape", [vector, shape], ["y_bias_reshape_output"], name="")
            m.node("Add", [out, "y_bias_reshape_output"], ["y"])
        return m, m.model("y", types=[TensorProto.FLOAT])

    return make


def early_bias(m, quantized, weight, out, name, vector, swapped=False, **attributes):
    """ConvInteger with a bias of integers, as onnxruntime 1.2 to 1.5 wrote it."""
    x, scale, zero = quantized
    w, w_scale, w_zero = weight
    pair = [scale, w_scale]
    m.node("Mul", pair[::-1] if swapped else pair, [f"{vector}_scale"], name=f"{vector}_scale_node")
    m.node("Div", [vector, f"{vector}_scale"], [f"{vector}_tmp_quant:0"], name=f"{vector}_tmp_qaunt")
    m.node("Floor", [f"{vector}_tmp_quant:0"], [f"{vector}_rounded:0"], name=f"{vector}_quant_rounded")
    cast = {"name": f"{vector}_quantized_node", "to": TensorProto.INT32}
    m.node("Cast", [f"{vector}_rounded:0"], [f"{vector}_quantized"], **cast)
    m.node("ConvInteger", [x, w, zero, w_zero], [f"{out}_quantized"], name=name, **attributes)
    shape = m.add(f"{vector}_quantized_reshape_shape", np.array([1, -1, 1, 1]))
    m.node("Reshape", [f"{vector}_quantized", shape], [f"{out}_reshape"], name=f"{vector}_quantizedreshape")
    pair = [f"{out}_quantized", f"{out}_reshape"]
    m.node("Add", pair[::-1] if swapped else pair, [f"{out}_bias_add"], name=f"{vector}_quantizedbias_add")
    cast = {"name": f"{out}_bias_add_cast", "to": TensorProto.FLOAT}
    m.node("Cast", [f"{out}_bias_add"], [f"{out}_bias_add_cast_output"], **cast)
    m.node("Mul", [scale, w_scale], [f"{name}_scales_mul:0"], name=f"{name}_scales_mul")
    pair = [f"{out}_bias_add_cast_output", f"{name}_scales_mul:0"]
    m.node("Mul", pair[::-1] if swapped else pair, [out], name=f"{name}_output_scale_mul")


def early_conv(swapped=False):
    def make(kind, **options):
        m = Integers("u", **options)
        quantized = ["xq", "x_scale", "x_zero"]
        m.node("DynamicQuantizeLinear", [m.floats(2, 8, 9, 9)], quantized)
        w = m.weight(6, 8, 3, 3, kind="u", zeros=kind == "s")
        vector = m.add("bias", m.rng.normal(size=6).astype(np.float32))
        early_bias(m, quantized, w, "y", "conv_quant", vector, swapped, pads=[1, 1, 1, 1])
        return m, m.model("y", types=[TensorProto.FLOAT])

    return make


def lstm_of(m, x, features, hidden, out, name, columns=False, both=False, kind="s", given=(), **attributes):
    """DynamicQuantizeLSTM; `given` are its inputs from `sequence_lens` on."""
    d = 2 if both else 1
    weights, scales = [], []
    for part, rows in (("W", features), ("R", hidden)):
        label = f"{name}_{part}_quantized"
        limit = 60 if part == "R" else 127
        w, scale, zero = m.weight(d, rows, 4 * hidden, kind=kind, name=label, limit=limit)
        extents = (d, 4 * hidden) if columns else (d,)
        m.arrays[scale] = m.rng.uniform(0.004, 0.012, extents).astype(np.float32)
        m.arrays[zero] = np.full(extents, 130 if kind == "u" else 0, NUMPY[kind])
        weights.append(w)
        scales += [scale, zero]
    bias = m.add(f"{name}_B", m.rng.normal(size=(d, 8 * hidden)).astype(np.float32) * 0.5)
    parts = [x, *weights, bias, *given, *[""] * (4 - len(given)), *scales]
    attributes = {"direction": "bidirectional" if both else "forward", **attributes}
    m.node("DynamicQuantizeLSTM", parts, out, CONTRIB, name=name, hidden_size=hidden, **attributes)


def lstm(columns=False, both=False, whole=False):
    def make(kind, **options):
        m = Integers("u", **options)
        x, d, given, attributes = m.floats(9, 2, 5), 2 if both else 1, (), {}
        out = ["y", "y_h", "y_c"]
        if whole:
            lengths = m.add("lengths", np.array([9, 6], np.int32))
            states = [m.add(f"first{n}", m.rng.normal(size=(d, 2, 6)).astype(np.float32)) for n in (0, 1)]
            peepholes = m.add("peepholes", m.rng.normal(size=(d, 18)).astype(np.float32))
            given = (lengths, *states, peepholes)
            attributes = {"clip": 4.0, "activations": ["HardSigmoid", "Tanh", "Relu"] * d}
            attributes |= {"activation_alpha": [0.25] * d, "activation_beta": [0.4] * d}
        else:
            out = ["y", "", "y_c"]
        lstm_of(m, x, 5, 6, out, "lstm", columns, both, kind, given, **attributes)
        out = [name for name in out if name]
        return m, m.model(*out, types=[TensorProto.FLOAT] * len(out))

    return make


def attention(channels=None, masked=False):
    def make(kind, **options):
        m = Integers("u", **options)
        x, x_scale, x_zero = m.activation(2, 5, 8)
        w, w_scale, w_zero = m.weight(8, 24, kind=kind, channels=channels)
        bias = m.add("bias", m.rng.normal(size=24).astype(np.float32))
        mask = m.add("mask", np.array([5, 3], np.int32)) if masked else ""
        m.node(
            *("QAttention", [x, w, bias, x_scale, w_scale, mask, x_zero, w_zero], ["y"], CONTRIB),
            num_heads=2,
            unidirectional=0 if masked else 1,
        )
        return m, m.model("y", types=[TensorProto.FLOAT])

    return make


CASES = {
    "conv": (conv(), 1),
    "conv without bias": (conv(bias=False), 1),
    "conv per channel": (conv(channels=6), 1),
    "conv, depthwise, per channel": (conv(group=8, channels=8), 1),
    "conv in groups, unsigned weights": (conv(group=2, weights="u", zeros=True), 1),
    "conv of onnxruntime": (conv(domain=CONTRIB, channels_last=0), 1),
    "conv strided": (conv(strides=[2, 2], dilations=[1, 1], kernel_shape=[3, 3]), 1),
    "matmul": (matmul(), 1),
    "matmul per column": (matmul(channels=7), 1),
    "matmul of activations": (matmul_of_activations, 1),
    "gemm": (gemm(), 1),
    "gemm transposed per channel": (gemm(channels=7, transposed=1), 1),
    "gemm per channel, alpha": (gemm(channels=7, alpha=0.5), 1),
    "gemm without bias": (gemm(bias=False), 1),
    "gemm to float": (gemm(quantised=False), 1e-4),
    "add": (binary("QLinearAdd", (2, 5, 12), (2, 5, 12), 0.0417), 1),
    "add broadcast": (binary("QLinearAdd", (2, 5, 12), (12,), 0.0417), 1),
    "mul": (binary("QLinearMul", (2, 5, 12), (2, 5, 12), 0.0417), 1),
    "sigmoid": (unary("QLinearSigmoid", (4, 50), out=(1 / 256, 0)), 0),
    "leaky relu": (unary("QLinearLeakyRelu", (4, 50), alpha=0.3), 0),
    "leaky relu, default": (unary("QLinearLeakyRelu", (4, 50)), 0),
    "average pool": (unary("QLinearAveragePool", (2, 3, 8, 8), kernel_shape=[3, 3], strides=[2, 2]), 1),
    "average pool, padded": (
        unary(
            "QLinearAveragePool",
            (2, 3, 8, 8),
            kernel_shape=[3, 3],
            pads=[1, 1, 1, 1],
            count_include_pad=1,
            channels_last=0,
        ),
        1,
    ),
    "global average pool": (unary("QLinearGlobalAveragePool", (2, 9, 7, 7), channels_last=0), 1),
    "softmax": (unary("QLinearSoftmax", (3, 20), out=(1 / 256, 0), opset=21, axis=-1), 1),
    "softmax, no axis": (unary("QLinearSoftmax", (3, 20), out=(1 / 256, 0), opset=12), 1),
    "where": (where, 1),
    "concat": (concat, 1),
    "to float": (fused(), 1e-4),
    "to float, no bias": (fused(bias=False), 1e-4),
    "dynamic": (dynamic_matmul(), 1e-4),
    "dynamic, no bias": (dynamic_matmul(bias=False), 1e-4),
    "integer matmuls": (integer_matmuls(), 1e-4),
    "integer matmuls per column": (integer_matmuls(channels=True, swapped=True), 1e-4),
    "attention": (attention(), 1e-4),
    "attention per column, masked": (attention(24, masked=True), 1e-4),
    "lstm": (lstm(), 0.02),
    "lstm per column": (lstm(columns=True), 0.02),
    "lstm, both directions": (lstm(both=True), 0.02),
    "lstm, both directions per column, with states": (lstm(True, True, whole=True), 0.02),
    "integer conv": (integer_conv(), 1e-4),
    "integer conv, early bias": (early_conv(), 1e-4),
    "integer conv, early bias, swapped": (early_conv(swapped=True), 1e-4),
    "integer conv, no bias": (integer_conv(bias=False), 1e-4),
}
"""Name -> (what makes the model, by how many quanta the floats may differ; a fraction: relatively, of floats)."""
