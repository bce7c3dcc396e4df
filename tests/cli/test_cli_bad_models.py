"""Files that are no usable model: exit code 3 (2 where there is no such file), nothing written."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper
from small_nets import Net, convnet, save

FLOAT = TensorProto.FLOAT
X = helper.make_tensor_value_info("x", FLOAT, [1, 4])
Y = helper.make_tensor_value_info("y", FLOAT, [1, 4])
W = numpy_helper.from_array(np.eye(4, dtype=np.float32), "w")


def model(nodes, *, initializers=(W,), opset=17, outputs=(Y,), domain="") -> bytes:
    graph = helper.make_graph(nodes, "g", [X], outputs, list(initializers))
    opsets = [helper.make_opsetid("", opset), *([helper.make_opsetid(domain, 1)] if domain else [])]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()


def node(op_type, inputs, outputs, **attributes):
    return helper.make_node(op_type, inputs, outputs, name=f"{op_type}_0", **attributes)


BAD = {
    "empty": (b"", ["is empty"]),
    "text": (b"not a model\n" * 40, ["text"]),
    "truncated": (lambda whole: whole[: len(whole) // 2], ["truncated"]),
    "garbage": (bytes(range(256)) * 8, ["not an ONNX model"]),
    "a-tensor": (W.SerializeToString(), ["not an ONNX model"]),
    "valid-protobuf-but-no-model": (
        onnx.ModelProto(producer_name="somebody", ir_version=8).SerializeToString(),
        ["no ONNX model"],
    ),
    "cycle": (
        model([node("Add", ["x", "b"], ["a"]), node("Add", ["a", "w"], ["b"]), node("Relu", ["a"], ["y"])]),
        ["cycle"],
    ),
    "undefined-input": (model([node("Add", ["x", "nowhere"], ["y"])]), ["'nowhere'"]),
    "undefined-output": (model([node("Add", ["x", "w"], ["z"])]), ["'y'"]),
    "unknown-opset": (model([node("MatMul", ["x", "w"], ["y"])], opset=999), ["opset 999"]),
    "opset-0": (model([node("MatMul", ["x", "w"], ["y"])], opset=0), ["opset 0"]),
    "attribute-of-another-type": (
        model([node("Gemm", ["x", "w"], ["y"], transB="yes")]),
        ["Gemm"],
    ),
    "no-float-weights": (model([node("Relu", ["x"], ["y"])], initializers=()), ["no float weights"]),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("verb", ["prune", "analyze"])
def test_damaged_files(command, tmp_path, case, verb):
    content, says = BAD[case]
    path = save(convnet(), tmp_path / "bad.onnx")
    path.write_bytes(content(path.read_bytes()) if callable(content) else content)
    command.refused(3, verb, path, folder=tmp_path, says=["bad.onnx", *says])


@pytest.mark.parametrize("verb", [("prune",), ("analyze",), ("explain", "conv0"), ("validate",), ("apply",)])
def test_missing_file(command, tmp_path, data, verb):
    extra = {"explain": ["conv0"], "validate": ["--data", data], "apply": [tmp_path / "plan.json"]}
    arguments = [verb[0], tmp_path / "none.onnx", *extra.get(verb[0], [])]
    command.refused(2, *arguments, folder=tmp_path, says=["none.onnx does not exist"])


def test_a_folder_instead_of_a_file(command, tmp_path):
    command.refused(2, "prune", tmp_path, "-o", tmp_path / "out.onnx", folder=tmp_path, says=["is a folder"])


def external(tmp_path, *, location="weights.bin") -> None:
    proto = onnx.load(save(convnet(), tmp_path / "net.onnx"))
    onnx.save(proto, tmp_path / "net.onnx", save_as_external_data=True, location=location, size_threshold=0)


def test_external_data_missing(command, tmp_path):
    external(tmp_path)
    (tmp_path / "weights.bin").unlink()
    command.refused(3, "prune", tmp_path / "net.onnx", folder=tmp_path, says=["'weights.bin'", "missing"])


def test_external_data_too_short(command, tmp_path):
    external(tmp_path)
    whole = (tmp_path / "weights.bin").read_bytes()
    (tmp_path / "weights.bin").write_bytes(whole[:-100])
    command.refused(3, "prune", tmp_path / "net.onnx", folder=tmp_path, says=["weights.bin", "truncated"])


def test_external_data_outside_the_folder(command, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    external(folder)
    (folder / "weights.bin").rename(tmp_path / "weights.bin")
    proto = onnx.load(folder / "net.onnx", load_external_data=False)
    for tensor in proto.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../weights.bin"
    (folder / "net.onnx").write_bytes(proto.SerializeToString())
    command.refused(3, "prune", folder / "net.onnx", folder=tmp_path, says=["outside the model's folder"])


def test_external_data_is_read_and_written(command, tmp_path):
    external(tmp_path)
    command.accepted("prune", tmp_path / "net.onnx", "-q")
    assert (tmp_path / "net.pruned.onnx.data").stat().st_size > 1024
    onnx.checker.check_model(str(tmp_path / "net.pruned.onnx"), full_check=True)


def test_custom_operators_are_barriers(command, tmp_path):
    """An operator that nobody knows blocks its surroundings; the rest is cut and proven around it."""
    net = Net(domains={"acme": 1})
    x = net.op("Relu", net.conv(net.data("image", ("n", 3, 8, 8)), "conv0", (16, 3, 3, 3)), name="relu0")
    x = net.conv(x, "conv1", (24, 16, 3, 3))
    y = net.op("Bend", x, domain="acme", name="bend")
    y.type, y.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(["n", 24, 8, 8])
    y = net.op("Relu", net.conv(y, "conv2", (32, 24, 3, 3)), name="relu2")
    path = save(net.model(net.head(y, 32)), tmp_path / "net.onnx")
    result = command.accepted("prune", path, "--macs", 0.4)
    assert "the operator has no rule" in result.out
    assert "Bend 'bend'" in result.out
    assert "onnxruntime cannot run bend: the proof covers everything around it" in result.out
    pruned = {t.name: list(t.dims) for t in onnx.load(tmp_path / "net.pruned.onnx").graph.initializer}
    assert pruned["conv0.weight"][0] < 16
    assert pruned["conv1.weight"][0] == 24
    assert pruned["conv2.weight"][0] < 32
    assert pruned["conv2.weight"][1] == 24
