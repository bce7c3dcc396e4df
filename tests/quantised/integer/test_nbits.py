"""Weights of 2, 4 and 8 bits in blocks: unpacked, computed with, packed again."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from integer_net import CONTRIB, described, run
from onnx import TensorProto, helper, numpy_helper

from onnxprune.model.integer import left_whole, lower_integer, raise_integer

RNG = np.random.default_rng


def model_of(nodes, arrays, inputs, opset=21, dtype=TensorProto.FLOAT):
    initializers = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    graph = helper.make_graph(
        nodes,
        "nbits",
        [helper.make_tensor_value_info("a", dtype, inputs)],
        [helper.make_tensor_value_info("y", dtype, None)],
        initializers,
    )
    imports = [helper.make_opsetid("", opset), helper.make_opsetid(CONTRIB, 1)]
    return ir.from_proto(helper.make_model(graph, ir_version=10, opset_imports=imports))


def packed(bits, k, n, block, zeros=None, bias=False, flat=True, dtype=np.float32, seed=0, **attributes):
    """A model of one product, and its weight as float64, read off the bytes one by one."""
    rng = RNG(seed)
    blocks, blob = -(-k // block), -(-block * bits // 8)
    b = rng.integers(0, 256, (n, blocks, blob)).astype(np.uint8)
    scales = rng.uniform(0.01, 0.05, (n, blocks)).astype(dtype)
    arrays = {"B": b, "scales": scales.ravel() if flat else scales}
    points = np.full((n, blocks), float(1 << (bits - 1)))
    if zeros == "packed":
        bytes_of_row = -(-blocks * bits // 8)
        raw = rng.integers(0, 256, (n, bytes_of_row)).astype(np.uint8)
        points = np.array([[_nth(row, j, bits) for j in range(blocks)] for row in raw], float)
        arrays["zeros"] = raw.ravel() if flat else raw
    elif zeros == "float":
        points = rng.integers(0, 1 << bits, (n, blocks)).astype(float)
        arrays["zeros"] = points.astype(dtype).ravel()
    if bias:
        arrays["bias"] = rng.normal(size=n).astype(dtype)
    weight = np.array(
        [
            [
                (_nth(b[j].ravel(), i // block * block + i % block, bits) - points[j, i // block])
                * float(scales[j, i // block])
                for j in range(n)
            ]
            for i in range(k)
        ]
    )
    names = ["a", "B", "scales", "zeros" if zeros else "", "", "bias" if bias else ""]
    while not names[-1]:
        names.pop()
    node = helper.make_node(
        "MatMulNBits", names, ["y"], "p", domain=CONTRIB, K=k, N=n, bits=bits, block_size=block, **attributes
    )
    kind = {np.float32: TensorProto.FLOAT, np.float16: TensorProto.FLOAT16}[dtype]
    return model_of([node], arrays, [2, 3, k], dtype=kind), weight


def _nth(raw, number, bits):
    each = 8 // bits
    return int(raw[number // each]) >> (number % each * bits) & ((1 << bits) - 1)


CASES = {
    "4 bits": {"bits": 4, "k": 64, "n": 6, "block": 32},
    "4 bits, zero points": {"bits": 4, "k": 96, "n": 6, "block": 32, "zeros": "packed"},
    "4 bits, zero points, last block not full": {"bits": 4, "k": 72, "n": 5, "block": 32, "zeros": "packed"},
    "4 bits, zero points as floats": {"bits": 4, "k": 64, "n": 6, "block": 32, "zeros": "float"},
    "4 bits, shaped": {"bits": 4, "k": 64, "n": 6, "block": 16, "zeros": "packed", "flat": False},
    "4 bits, bias": {"bits": 4, "k": 64, "n": 6, "block": 32, "zeros": "packed", "bias": True},
    "8 bits": {"bits": 8, "k": 64, "n": 6, "block": 32},
    "8 bits, zero points": {"bits": 8, "k": 72, "n": 6, "block": 32, "zeros": "packed"},
    "2 bits": {"bits": 2, "k": 64, "n": 6, "block": 32},
    "2 bits, zero points": {"bits": 2, "k": 72, "n": 6, "block": 16, "zeros": "packed"},
    "half precision": {"bits": 4, "k": 64, "n": 6, "block": 32, "dtype": np.float16, "flat": False},
}


@pytest.mark.parametrize("name", CASES)
def test_raised_is_what_it_was(name):
    model, _ = packed(**CASES[name])
    floats = model.clone()
    lower_integer(floats)
    assert {node.op_type for node in floats.graph} <= {"DequantizeLinear", "MatMul", "Add"}
    raise_integer(floats)
    assert described(floats) == described(model)


@pytest.mark.parametrize("name", CASES)
def test_the_floats_are_those_of_the_bytes(name):
    model, weight = packed(**CASES[name])
    lower_integer(model)
    (node,) = [node for node in model.graph if node.op_type == "DequantizeLinear"]
    stored, scale, *zero = (value.const_value.numpy() for value in node.inputs)
    block = node.attributes["block_size"].as_int()
    rows = np.arange(len(stored)) // block
    points = zero[0].astype(float)[rows] if zero else 0.0
    found = (stored.astype(float) - points) * scale.astype(float)[rows]
    assert stored.shape == weight.shape and np.array_equal(found, weight)


@pytest.mark.parametrize("name", [name for name in CASES if "half" not in name])
def test_onnxruntime_means_the_same(name):
    model, weight = packed(**CASES[name])
    feed = {"a": RNG(1).normal(size=(2, 3, len(weight))).astype(np.float32)}
    bias = model.graph.initializers.get("bias")
    expected = feed["a"].astype(float) @ weight + (0 if bias is None else bias.const_value.numpy())
    (was,) = run(model, feed)
    assert np.abs(was - expected).max() <= 1e-5 * np.abs(expected).max()
    if "2 bits" not in name:  # onnxruntime computes with DequantizeLinear of 4 and 8 bits
        lower_integer(model)
        (now,) = run(model, feed)
        assert np.abs(now - expected).max() <= 1e-5 * np.abs(expected).max()


def test_a_shared_weight_stays_shared():
    model, _ = packed(4, 64, 64, 32, "packed")
    node = next(iter(model.graph))
    again = ir.Node(
        CONTRIB, "MatMulNBits", [node.outputs[0], *node.inputs[1:]], node.attributes.values(), name="q"
    )
    model.graph.append(again)
    again.outputs[0].name = "z"
    again.outputs[0].type = node.outputs[0].type
    model.graph.outputs[:] = [again.outputs[0]]
    floats = model.clone()
    lower_integer(floats)
    assert [node.op_type for node in floats.graph] == ["DequantizeLinear", "MatMul", "MatMul"]
    raise_integer(floats)
    assert described(floats) == described(model)


def test_columns_that_go_leave_the_bytes_of_the_others():
    """What is done to the unpacked weight is done to the packed one: here, columns and a whole block are cut."""
    model, weight = packed(4, 96, 6, 32, "packed")
    before = {name: value.const_value.numpy() for name, value in model.graph.initializers.items()}
    lower_integer(model)
    (node,) = [node for node in model.graph if node.op_type == "DequantizeLinear"]
    columns, blocks = [0, 2, 5], [0, 2]
    rows = np.concatenate([np.arange(32), np.arange(64, 96)])
    for value, kept in zip(node.inputs, (rows, blocks, blocks), strict=True):
        data = value.const_value.numpy()[kept][:, columns]
        value.const_value = ir.Tensor(np.ascontiguousarray(data), dtype=value.const_value.dtype)
        value.shape = ir.Shape(data.shape)
    model.graph.inputs[0].shape = ir.Shape([2, 3, 64])
    raise_integer(model)
    (node,) = model.graph
    assert (node.op_type, node.attributes["K"].as_int(), node.attributes["N"].as_int()) == (
        "MatMulNBits",
        64,
        3,
    )
    after = {name: value.const_value.numpy() for name, value in model.graph.initializers.items()}
    assert set(after) == {"B", "scales", "zeros"}
    assert np.array_equal(after["B"], before["B"][columns][:, blocks])
    feed = {"a": RNG(1).normal(size=(2, 3, 64)).astype(np.float32)}
    expected = feed["a"].astype(float) @ weight[rows][:, columns]
    assert np.abs(run(model, feed)[0] - expected).max() <= 1e-5 * np.abs(expected).max()


REFUSED = {
    "reordered inputs": ({"g_idx": np.arange(64, dtype=np.int32)}, {}, "g_idx"),
    "zero points between integers": ({"zeros": np.full(12, 7.5, np.float32)}, {}, "no integers"),
    "packed for a device": ({}, {"weight_prepacked": 1}, "one kind of device"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_stays_says_why(name):
    more, attributes, why = REFUSED[name]
    rng = RNG(0)
    arrays = {
        "B": rng.integers(0, 256, (6, 2, 16)).astype(np.uint8),
        "scales": np.ones(12, np.float32),
        **more,
    }
    names = ["a", "B", "scales", "zeros" if "zeros" in more else "", "g_idx" if "g_idx" in more else ""]
    node = helper.make_node(
        "MatMulNBits", names, ["y"], "p", domain=CONTRIB, K=64, N=6, bits=4, block_size=32, **attributes
    )
    model = model_of([node], arrays, [2, 64])
    before = described(model)
    lower_integer(model)
    assert described(model) == before
    (reason,) = left_whole(model.graph).values()
    assert why in reason
    raise_integer(model)
    assert described(model) == before


def test_bfloat16_scales():
    model, _ = packed(4, 64, 6, 32, flat=False)
    scales = model.graph.initializers["scales"]
    scales.const_value = ir.Tensor(scales.const_value.numpy().astype(ml_dtypes.bfloat16), name="scales")
    for value in (scales, model.graph.inputs[0], model.graph.outputs[0]):
        value.type = ir.TensorType(ir.DataType.BFLOAT16)
    floats = model.clone()
    lower_integer(floats)
    assert [node.outputs[0].dtype for node in floats.graph] == [ir.DataType.BFLOAT16] * 2
    raise_integer(floats)
    assert described(floats) == described(model)


def test_what_the_quantizer_of_onnxruntime_writes():
    quantizer = pytest.importorskip("onnxruntime.quantization.matmul_nbits_quantizer")
    weight = RNG(0).normal(size=(80, 24)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["a", "W"], ["y"], "p")],
        "floats",
        [helper.make_tensor_value_info("a", TensorProto.FLOAT, ["n", 80])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 24])],
        [numpy_helper.from_array(weight, "W")],
    )
    proto = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)])
    feed = {"a": RNG(1).normal(size=(5, 80)).astype(np.float32)}
    for bits, symmetric in ((4, True), (4, False), (8, True), (8, False)):
        made = quantizer.MatMulNBitsQuantizer(
            onnx.ModelProto.FromString(proto.SerializeToString()),
            bits=bits,
            block_size=32,
            is_symmetric=symmetric,
        )
        made.process()
        model = ir.from_proto(made.model.model)
        before = described(model)
        (was,) = run(model, feed)
        lower_integer(model)
        (node,) = [node for node in model.graph if node.op_type == "DequantizeLinear"]
        assert (len(node.inputs) == 2) == symmetric  # zero points of a symmetric weight stay the middle
        (now,) = run(model, feed)
        assert np.abs(was - now).max() <= 1e-5 * np.abs(was).max()
        raise_integer(model)
        assert described(model) == before
