"""Weights in several files, in folders below the model's, at offsets; and what protobuf cannot hold."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

import onnxprune
from onnxprune.errors import ModelError

ALIGNMENT = 4096


def spread_out(folder, dtype: type = np.float16):
    """Two products whose weights lie in two files, one in a folder below, with other bytes around them."""
    (folder / "weights").mkdir(parents=True)
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "up"], ["h"], name="first"),
            helper.make_node("Relu", ["h"], ["r"], name="relu"),
            helper.make_node("MatMul", ["r", "down"], ["y"], name="last"),
        ],
        "net",
        [helper.make_tensor_value_info("x", kind, ["n", 16])],
        [helper.make_tensor_value_info("y", kind, ["n", 16])],
    )
    rng, arrays = np.random.default_rng(0), {}
    for name, shape, file in (("up", (16, 128), "weights/one.bin"), ("down", (128, 16), "two.data")):
        arrays[name] = (rng.standard_normal(shape) / 4).astype(dtype)
        tensor = TensorProto(name=name, data_type=kind, dims=shape, data_location=TensorProto.EXTERNAL)
        entries = {"location": file, "offset": 3 * ALIGNMENT, "length": arrays[name].nbytes}
        for key, value in entries.items():
            tensor.external_data.add(key=key, value=str(value))
        graph.initializer.append(tensor)
        around = b"\xff" * 3 * ALIGNMENT
        (folder / file).write_bytes(around + arrays[name].tobytes() + b"\xee" * 100)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    path = folder / "net.onnx"
    path.write_bytes(model.SerializeToString())
    return path, arrays


@pytest.mark.parametrize("dtype", [np.float16, np.float32], ids=["float16", "float32"])
@pytest.mark.parametrize("data", [None, "synthetic:64"], ids=["", "data"])
def test_weights_in_several_files(tmp_path, dtype, data):
    path, arrays = spread_out(tmp_path / "in", dtype)
    before = {file: file.read_bytes() for file in (tmp_path / "in").rglob("*") if file.is_file()}
    out = tmp_path / "out.onnx"
    options = {"criterion": "l2"} if data is None else {"criterion": "obs", "data": data}
    made = onnxprune.prune(path, out, ratio=0.5, **options)
    assert made.report.before.bytes == sum(map(len, before.values()))
    assert {file: file.read_bytes() for file in before} == before  # the input is never touched
    tensors = {t.name: t for t in onnx.load(out, load_external_data=False).graph.initializer}
    for tensor in (tensors["up"], tensors["down"]):
        entries = {entry.key: entry.value for entry in tensor.external_data}
        assert entries["location"] == "out.onnx.data" and int(entries["offset"]) % ALIGNMENT == 0
    written = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(out).graph.initializer}
    assert all(array.dtype == dtype for array in written.values())
    (flags,) = made.plan.keep.values()
    assert np.array_equal(written["up"], arrays["up"][:, flags])
    if data is None:
        assert np.array_equal(written["down"], arrays["down"][flags])
    session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
    assert session.run(None, {"x": np.ones((3, 16), dtype)})[0].shape == (3, 16)


def test_a_file_beyond_what_protobuf_reads(tmp_path):
    path = tmp_path / "large.onnx"
    with path.open("wb") as file:
        file.truncate(2**31 + 5)  # holes: it takes no room
    with pytest.raises(ModelError, match="2 GiB") as error:
        onnxprune.load(path)
    assert "external data" in error.value.hint


@pytest.mark.parametrize("key, value", [("offset", "999999"), ("length", "17"), ("location", "../two.data")])
def test_external_data_that_cannot_be_right(tmp_path, key, value):
    path, _ = spread_out(tmp_path / "in")
    model = onnx.load(path, load_external_data=False)
    entries = {entry.key: entry for entry in model.graph.initializer[1].external_data}
    entries[key].value = value
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match="down"):
        onnxprune.load(path)
