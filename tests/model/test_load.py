from __future__ import annotations

import os

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from small_models import FLOAT, info, model_of, perceptron, unprivileged, weights, write

import onnxprune
from onnxprune.errors import ModelError, OnnxPruneError, UsageError
from onnxprune.model import io


def refused(path, *words, error=ModelError):
    """Load a bad file; the message must say where, contain these words, and say what to do."""
    with pytest.raises(error) as caught:
        io.load(path)
    assert type(caught.value) is error
    assert str(path) in caught.value.what
    assert caught.value.hint
    for word in words:
        assert word in str(caught.value), str(caught.value)
    return caught.value


def refused_proto(tmp_path, proto, *words, error=ModelError):
    return refused(write(tmp_path / "bad.onnx", proto), *words, error=error)


# -------------------------------------------------------------------------------------------- the file


def test_a_good_model_is_read_as_it_is(tmp_path):
    proto = perceptron(producer_name="somebody")
    path = write(tmp_path / "good.onnx", proto)
    loaded = io.load(path)
    assert (loaded.path, loaded.bytes, loaded.data_files) == (path, path.stat().st_size, ())
    assert [node.name for node in loaded.ir.graph] == ["first", "bias", "act", "second"]
    assert loaded.ir.producer_name == "somebody"
    assert loaded.sha256 == io.load(str(path)).sha256 and len(loaded.sha256) == 64
    assert repr(loaded) == f"LoadedModel({str(path)!r}, 4 nodes, {path.stat().st_size:,} bytes)"


def test_paths_that_are_no_files(tmp_path):
    refused(tmp_path / "none.onnx", "does not exist", error=UsageError)
    refused(tmp_path / "no" / "such" / "folder.onnx", "does not exist", error=UsageError)
    refused(tmp_path, "folder", error=UsageError)
    write(tmp_path / "file", b"x")
    refused(tmp_path / "file" / "inside.onnx", "does not exist", error=UsageError)
    refused(tmp_path / ("long" * 200), "cannot be read", error=UsageError)
    (tmp_path / "loop").symlink_to("loop")
    refused(tmp_path / "loop", "cannot be read", error=UsageError)
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "pipe", "regular file", error=UsageError)
    with pytest.raises(UsageError, match="is no path"):
        io.load("a\0b")


def test_a_file_that_may_not_be_read():
    with unprivileged() as folder:
        path = write(folder / "secret.onnx", perceptron())
        path.chmod(0)
        refused(path, "cannot be read", "Permission denied", error=UsageError)


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "is empty"),
        (b"<html>\n<body>404 Not Found</body></html>", "looks like text"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", "git lfs pull"),
        ("größer\n".encode(), "looks like text"),
        (b"\x80\x02}q\x00(X\x05\x00\x00\x00modelq\x01", "not an ONNX model"),
        (b"PK\x03\x04\x14\x00\x00\x00\x08\x00", "not an ONNX model"),
        (b"\x00" * 64, "not an ONNX model"),
    ],
)
def test_other_files(tmp_path, content, word):
    refused_proto(tmp_path, content, word)


def test_random_bytes_never_raise_anything_else(tmp_path):
    rng = np.random.default_rng(0)
    for size in (1, 2, 3, 7, 20, 100, 1000, 5000):
        for _ in range(40):
            refused_proto(tmp_path, rng.bytes(size))


def test_a_file_larger_than_a_message_is_not_read(tmp_path):
    path = tmp_path / "huge.onnx"
    with path.open("wb") as file:
        file.truncate(2**31)
    refused(path, "2,147,483,648 bytes", "2 GiB")


def rich_model():
    """A model with subgraphs, functions, metadata, strings and all kinds of attributes."""
    branch = [
        helper.make_graph([helper.make_node(op, ["s"], [f"{op}_out"])], op, [], [info(f"{op}_out")])
        for op in ("Relu", "Neg")
    ]
    twice = helper.make_function(
        "mine",
        "Twice",
        ["a"],
        ["b"],
        [helper.make_node("Add", ["a", "a"], ["b"])],
        [helper.make_opsetid("", 17)],
    )
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv", kernel_shape=[1, 1], group=1),
        helper.make_node("Twice", ["c"], ["s"], domain="mine"),
        helper.make_node(
            "Constant", [], ["flag"], value=helper.make_tensor("v", onnx.TensorProto.BOOL, [], [1])
        ),
        helper.make_node("If", ["flag"], ["y"], then_branch=branch[0], else_branch=branch[1]),
    ]
    proto = model_of(
        nodes,
        [info("x", ["n", 3, "h", 4])],
        [info("y")],
        {"w": weights(2, 3, 1, 1)},
        functions=[twice],
        domains=["mine"],
        doc_string="a model",
    )
    helper.set_model_props(proto, {"author": "me"})
    proto.graph.value_info.append(info("c", ["n", 2, "h", 4]))
    return proto


def test_a_truncated_file_at_every_offset(tmp_path):
    raw = rich_model().SerializeToString()
    whole = io.load(write(tmp_path / "whole.onnx", raw))
    accepted = []
    for end in range(len(raw)):
        path = write(tmp_path / "cut.onnx", raw[:end])
        try:
            loaded = io.load(path)
        except ModelError as error:
            assert str(path) in str(error)
            continue
        accepted.append(end)
        # what can be lost unnoticed comes after the graph: functions and metadata
        assert [node.op_type for node in loaded.ir.graph] == [node.op_type for node in whole.ir.graph]
        assert list(loaded.ir.graph.initializers) == ["w"]
    assert 0 < len(accepted) <= 3


def test_damaged_bytes_never_raise_anything_else(tmp_path):
    raw = bytearray(rich_model().SerializeToString())
    rng = np.random.default_rng(0)
    refused_count = 0
    for _ in range(1500):
        damaged = bytearray(raw)
        for position in rng.integers(0, len(raw), rng.integers(1, 4)):
            damaged[position] = rng.integers(0, 256)
        path = write(tmp_path / "damaged.onnx", bytes(damaged))
        try:
            io.load(path)
        except OnnxPruneError as error:
            refused_count += 1
            assert isinstance(error, ModelError) and str(path) in str(error) and error.hint
    assert refused_count > 300


# --------------------------------------------------------------------- valid protobuf that is no model


def test_other_messages(tmp_path):
    model = rich_model()
    empty = onnx.ModelProto(ir_version=8)
    no_graph = onnx.ModelProto()
    no_graph.CopyFrom(model)
    no_graph.ClearField("graph")
    no_outputs = onnx.ModelProto()
    no_outputs.CopyFrom(model)
    del no_outputs.graph.output[:]
    messages = [
        numpy_helper.from_array(weights(3, 4), "t"),
        numpy_helper.from_array(weights(3, 4)),
        helper.make_tensor("t", FLOAT, [2], [1, 2]),
        model.graph,
        *model.graph.node,
        *model.functions,
        *model.opset_import,
        model.graph.input[0],
        empty,
        no_graph,
        no_outputs,
    ]
    for message in messages:
        refused_proto(tmp_path, message)


def test_ir_versions(tmp_path):
    proto = perceptron()
    proto.ir_version = 0
    refused_proto(tmp_path, proto, "no ONNX model")
    proto.ir_version = onnx.IR_VERSION + 1
    refused_proto(tmp_path, proto, "IR version", str(onnx.IR_VERSION))
    proto.ir_version = -3
    refused_proto(tmp_path, proto, "IR version")


def test_opsets(tmp_path):
    newest = onnx.defs.onnx_opset_version()
    proto = perceptron()
    for version in (newest + 1, 0, -1, 2**40):
        proto.opset_import[0].version = version
        refused_proto(tmp_path, proto, f"opset {version}", str(newest))
    del proto.opset_import[:]
    refused_proto(tmp_path, proto, "imports no operator set")
    proto.opset_import.append(helper.make_opsetid("other", 1))
    refused_proto(tmp_path, proto, "ONNX's own operator set", "'first'")
    proto.opset_import.append(helper.make_opsetid("ai.onnx", 17))
    assert io.load(write(tmp_path / "alias.onnx", proto)).ir.opset_imports == {"other": 1, "ai.onnx": 17}
    proto.opset_import.append(helper.make_opsetid("", 16))
    refused_proto(tmp_path, proto, "two versions", "17", "16")
    proto.opset_import[2].version = 17
    io.load(write(tmp_path / "twice.onnx", proto))


def test_an_unknown_domain_is_no_error(tmp_path):
    node = helper.make_node("Magic", ["x"], ["y"], domain="my.ops", strength=3)
    proto = model_of([node], [info("x", [1])], [info("y")], domains=["my.ops"])
    loaded = io.load(write(tmp_path / "custom.onnx", proto))
    assert loaded.ir.graph[0].domain == "my.ops"
    assert loaded.ir.opset_imports == {"": 17, "my.ops": 1}


@pytest.mark.parametrize("unknown", [{"dim_value": -1}, {"dim_param": "?"}, {"dim_param": "None"}])
def test_extents_by_which_converters_mean_any_are_unknown(tmp_path, unknown):
    proto = perceptron()
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].CopyFrom(onnx.TensorShapeProto.Dimension(**unknown))
    loaded = io.load(write(tmp_path / "any.onnx", proto))
    shapes = [list(value.shape) for value in (*loaded.ir.graph.inputs, *loaded.ir.graph.outputs)]
    assert [(shape[0].value, shape[1]) for shape in shapes] == [(None, 3), (None, 2)]
    assert loaded.path.read_bytes() == proto.SerializeToString()


def test_two_extents_without_a_name_may_differ(tmp_path):
    """Both are called "?"."""
    nodes = [helper.make_node("Add", ["x", "y"], ["z"])]
    proto = model_of(nodes, [info("x", ["?", 3]), info("y", [1, "?"])], [info("z", ["?", 3])])
    loaded = io.load(write(tmp_path / "any.onnx", proto))
    assert onnxprune.validate(
        loaded, [{"x": np.ones((4, 3), np.float32), "y": np.ones((1, 3), np.float32)}] * 2, against=loaded
    ).samples
