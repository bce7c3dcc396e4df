"""Operators of integer arithmetic that stay as they are keep all positions, and say that as their reason."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, ValueInfoProto, helper, numpy_helper

from onnxprune.errors import Reason
from onnxprune.graph.build import build_axis_graph
from onnxprune.graph.explain import nearest_barriers
from onnxprune.model.shapes import infer_shapes
from onnxprune.rules import default_rules
from onnxprune.rules.integer import RULES

CONTRIB = "com.microsoft"


@dataclass(frozen=True)
class Whole:
    domain: str
    op_type: str


CASES = [Whole(domain, op_type) for domain, op_type in sorted(RULES)]
WITHOUT_KERNEL = CASES  # no templates for random graphs: nothing of them can go


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.op_type)
def test_all_axes_are_pinned(case):
    """Between a product and a product: neither side of the operator loses anything."""
    names = {"x": [2, 6], "W": [6, 8], "V": [8, 3]}
    nodes = [
        helper.make_node("MatMul", ["x", "W"], ["h"]),
        helper.make_node(case.op_type, ["h", "V"], ["k"], domain=case.domain),
        helper.make_node("MatMul", ["k", "V"], ["y"]),
    ]
    arrays = {name: np.ones(shape, np.float32) for name, shape in names.items() if name != "x"}
    graph = helper.make_graph(
        nodes,
        "whole",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 3])],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
        value_info=[helper.make_tensor_value_info("k", TensorProto.FLOAT, [2, 8])],
    )
    imports = [helper.make_opsetid("", 21), helper.make_opsetid(CONTRIB, 1)]
    model = ir.from_proto(helper.make_model(graph, opset_imports=imports))
    built = build_axis_graph(model, infer_shapes(model), default_rules())
    reasons = {axis.name: barrier.reason for axis, barrier in nearest_barriers(built.graph).items()}
    assert reasons["h[1]"] is reasons["k[1]"] is reasons["W[1]"] is Reason.QUANTIZED


# --- extents ---------------------------------------------------------------------------------------------


def u8(*shape):
    return np.random.default_rng(0).integers(0, 255, shape).astype(np.uint8)


def f32(*shape):
    return np.random.default_rng(0).uniform(0.01, 0.1, shape).astype(np.float32)


SHAPES = {
    "MatMulNBits": (
        [f32(2, 3, 64), u8(6, 2, 16), f32(12)],
        {"K": 64, "N": 6, "bits": 4, "block_size": 32},
        1,
    ),
    "MatMulBnb4": (
        [f32(2, 3, 64), u8(64 * 6 // 2), f32(64 * 6 // 32)],
        {"K": 64, "N": 6, "block_size": 32, "quant_type": 1},
        1,
    ),
    "DynamicQuantizeMatMul": ([f32(2, 3, 8), u8(8, 6), f32(), u8()], {}, 1),
    "MatMulIntegerToFloat": ([u8(2, 3, 8), u8(8, 6), f32(), f32(), u8(), u8()], {}, 1),
    "QLinearSigmoid": ([u8(2, 5), f32(), u8(), f32(), u8()], {}, 1),
    "QAttention": (
        [u8(2, 5, 8), u8(8, 24), f32(24), f32(), f32(), None, u8(), u8()],
        {"num_heads": 2},
        1,
    ),
    "GatherBlockQuantized": (
        [u8(9, 32), np.array([[1, 2, 3]]), f32(9, 2), u8(9, 1)],
        {"bits": 4, "block_size": 32, "quantize_axis": 1},
        1,
    ),
    "DynamicQuantizeLSTM": (
        [f32(7, 2, 5), u8(1, 5, 16), u8(1, 4, 16), *[None] * 5, f32(1), u8(1), f32(1), u8(1)],
        {"hidden_size": 4},
        3,
    ),
    "QEmbedLayerNormalization": (
        [
            *(np.array([[1, 2]], np.int32), np.zeros((1, 2), np.int32)),
            *(u8(9, 8), u8(5, 8), u8(2, 8), u8(8), u8(8), None),
            *(f32() for _ in range(5)),
            *(u8() for _ in range(5)),
        ],
        {},
        2,
    ),
}


@pytest.mark.parametrize("op_type", SHAPES)
def test_extents_are_those_of_onnxruntime(op_type):
    """Without them, nothing behind the operator would have a shape."""
    inputs, attributes, count = SHAPES[op_type]
    names = ["" if array is None else f"i{number}" for number, array in enumerate(inputs)]
    outs = [f"o{number}" for number in range(count)]
    node = helper.make_node(op_type, names, outs, domain=CONTRIB, **attributes)
    given = [(name, array) for name, array in zip(names, inputs, strict=True) if name]
    ends = [
        helper.make_tensor_value_info("i0", helper.np_dtype_to_tensor_dtype(inputs[0].dtype), inputs[0].shape)
    ]
    made = [ValueInfoProto(name=name) for name in outs]  # whatever type onnxruntime says
    arrays = [numpy_helper.from_array(array, name) for name, array in given if name != "i0"]
    graph = helper.make_graph([node], "shapes", ends, made, arrays)
    imports = [helper.make_opsetid("", 21), helper.make_opsetid(CONTRIB, 1)]
    proto = helper.make_model(graph, ir_version=10, opset_imports=imports)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, ["CPUExecutionProvider"])
    results = session.run(None, {"i0": inputs[0]})
    model = ir.from_proto(proto)
    shapes = infer_shapes(model, None, default_rules().infer)
    for value, result in zip(model.graph.outputs, results, strict=True):
        assert shapes.dims[value] == result.shape
        assert value.dtype == ir.DataType.from_numpy(result.dtype)
