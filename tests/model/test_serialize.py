from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxprune.errors import UnsupportedError
from onnxprune.model import serialize
from onnxprune.model.serialize import to_bytes


def model_with(tensors, body="y = Neg(x)"):
    model = ir.from_onnx_text(
        f'<ir_version: 10, opset_import: ["" : 21]> g (float[n,3] x) => (float[n,3] y) {{ {body} }}'
    )
    for name, tensor in tensors.items():
        value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(tensor.shape.numpy()))
        value.const_value = tensor
        model.graph.initializers[name] = value
    return model


def initializers(message):
    proto = onnx.ModelProto.FromString(message)
    return {tensor.name: tensor for tensor in proto.graph.initializer}


def is_external(tensor):
    return tensor.data_location == onnx.TensorProto.EXTERNAL


def test_big_tensors_are_left_out_with_dtype_and_shape():
    big, small = np.arange(12, dtype=np.float32).reshape(3, 4), np.arange(3, dtype=np.int64)
    message, left = to_bytes(
        model_with({"big": ir.Tensor(big, name="big"), "small": ir.Tensor(small, name="small")}),
        external_above=47,
    )
    found = initializers(message)
    assert list(left) == ["big"]
    assert np.array_equal(left["big"].numpy(), big)
    assert is_external(found["big"]) and not found["big"].raw_data
    assert (list(found["big"].dims), found["big"].data_type) == ([3, 4], onnx.TensorProto.FLOAT)
    assert np.array_equal(onnx.numpy_helper.to_array(found["small"]), small)
    message, left = to_bytes(model_with({"big": ir.Tensor(big, name="big")}), external_above=48)
    assert not left and not is_external(initializers(message)["big"])


def test_the_model_is_not_mutated():
    shared = ir.Tensor(np.ones(4, np.float32), name="its own name")
    model = model_with({"a": shared, "b": shared, "c": ir.Tensor(np.zeros(400, np.float32), name="c")})
    before = {name: value.const_value for name, value in model.graph.initializers.items()}
    text = str(model)
    message, left = to_bytes(model, external_above=100)
    assert sorted(initializers(message)) == ["a", "b", "c"] and list(left) == ["c"]
    assert shared.name == "its own name"
    assert all(value.const_value is before[name] for name, value in model.graph.initializers.items())
    assert str(model) == text
    assert to_bytes(model, external_above=100)[0] == message


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16, np.float64, np.bool_, np.uint16])
def test_plain_types_are_left_out(dtype):
    tensor = ir.Tensor(np.ones(64, dtype), dtype=ir.DataType.from_numpy(np.dtype(dtype)), name="w")
    message, left = to_bytes(model_with({"w": tensor}), external_above=10)
    assert list(left) == ["w"] and is_external(initializers(message)["w"])


@pytest.mark.parametrize(
    "tensor",
    [
        ir.Tensor(np.ones(64, ml_dtypes.int4), dtype=ir.DataType.INT4, name="w"),
        ir.Tensor(np.ones(64, ml_dtypes.float8_e4m3fn), dtype=ir.DataType.FLOAT8E4M3FN, name="w"),
        ir.StringTensor([b"some", b"words"], shape=ir.Shape([2]), name="not w"),
    ],
)
def test_other_types_stay_in_the_message(tensor):
    message, left = to_bytes(model_with({"w": tensor}), external_above=0)
    found = initializers(message)["w"]
    assert not left and not is_external(found)
    assert found.data_type == tensor.dtype.value


def test_small_external_tensors_and_those_inside_subgraphs_come_in(tmp_path):
    (tmp_path / "w.bin").write_bytes(np.arange(6, dtype=np.float32).tobytes())

    def external(name):
        shape = ir.Shape([2, 3])
        return ir.ExternalTensor("w.bin", 0, 24, ir.DataType.FLOAT, shape=shape, name=name, base_dir=tmp_path)

    body = """c = Constant<value = bool {1}>()
        y = If (c) <then_branch = t () => (float[n,3] a) { a = Neg(x) },
                    else_branch = e () => (float[n,3] b)
                                  { k = Constant<value = float {1}>()  b = Add(x, k) }>"""
    model = model_with({"w": external("w")}, body)
    branch = model.graph[1].attributes["then_branch"].as_graph()
    inner = ir.Value(name="inner", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([2, 3]))
    inner.const_value = external("inner")
    branch.initializers["inner"] = inner
    constant = model.graph[1].attributes["else_branch"].as_graph()[0]
    constant.attributes["value"] = ir.AttrTensor("value", external("v"))
    message, left = to_bytes(model, external_above=100)
    assert not left
    assert b"w.bin" not in message
    assert message.count(np.arange(6, dtype=np.float32).tobytes()) == 3
    assert isinstance(constant.attributes["value"].as_tensor(), ir.ExternalTensor)
    assert isinstance(inner.const_value, ir.ExternalTensor)


def test_many_small_tensors_go_out_where_they_would_not_fit(monkeypatch):
    monkeypatch.setattr(serialize, "INLINE_LIMIT", 10_000)
    tensors = {f"w{index}": ir.Tensor(np.zeros(500, np.float32), name=f"w{index}") for index in range(10)}
    message, left = to_bytes(model_with(tensors), external_above=1 << 20)
    assert len(left) == 10
    assert len(message) < 2000


def test_what_cannot_go_out_is_an_error(monkeypatch):
    monkeypatch.setattr(serialize, "INLINE_LIMIT", 1000)
    model = model_with({}, "k = Constant<value = float {1}>()  y = Add(x, k)")
    model.graph[0].attributes["value"] = ir.AttrTensor("value", ir.Tensor(np.zeros(500, np.float32)))
    with pytest.raises(UnsupportedError, match="larger than one protobuf message"):
        to_bytes(model, external_above=1 << 20)
