from __future__ import annotations

import os

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from small_models import FLOAT, info, model_of, perceptron, run, same_outputs, unprivileged, weights, write

from onnxprune.errors import ModelError, OnnxPruneError, UnsupportedError, UsageError
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


# ---------------------------------------------------------------------------------------------------- the file


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
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", "looks like text"),
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


# ------------------------------------------------------------------------------- valid protobuf that is no model


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


# --------------------------------------------------------------------------------------------------- the wiring


def relu(source, target, **options):
    return helper.make_node("Relu", [source], [target], **options)


def chain(*nodes, outputs=("y",), initializers=(), inputs=("x",)):
    return model_of(list(nodes), [info(n, [2]) for n in inputs], [info(n) for n in outputs], initializers)


def body(*nodes, outputs, inputs=(), initializers=()):
    return helper.make_graph(
        list(nodes), "body", [info(n) for n in inputs], [info(n) for n in outputs], list(initializers)
    )


def branches(then, other=None):
    flag = helper.make_tensor("v", onnx.TensorProto.BOOL, [], [1])
    return [
        helper.make_node("Constant", [], ["flag"], value=flag),
        helper.make_node("If", ["flag"], ["y"], name="choice", then_branch=then, else_branch=other or then),
    ]


TWO = numpy_helper.from_array(np.ones(2, np.float32), "two")
BAD_WIRING = {
    "undefined input": (chain(relu("nowhere", "y", name="lost")), ["'lost'", "'nowhere'", "nothing defines"]),
    "undefined output": (chain(relu("x", "h"), outputs=["y"]), ["output 'y'", "no node"]),
    "no nodes": (chain(outputs=["y"]), ["output 'y'", "no node"]),
    "unnamed output": (chain(relu("x", "y"), outputs=["y", ""]), ["output ''"]),
    "unnamed input": (chain(relu("x", "y"), inputs=["x", ""]), ["graph input without a name"]),
    "two producers": (
        chain(relu("x", "y"), relu("y", "y", name="again")),
        ["'y'", "'again'", "another node"],
    ),
    "same node twice": (chain(helper.make_node("Split", ["x"], ["y", "y"])), ["'y'", "another node"]),
    "input produced": (chain(relu("x", "x"), relu("x", "y")), ["'x'", "graph input or initializer"]),
    "weight produced": (chain(relu("x", "two"), relu("two", "y"), initializers=[TWO]), ["'two'"]),
    "weight twice": (chain(relu("x", "y"), initializers=[TWO, TWO]), ["initializer 'two' is there 2 times"]),
    "input twice": (chain(relu("x", "y"), inputs=["x", "x"]), ["graph input 'x' is there 2 times"]),
    "no operator": (chain(helper.make_node("", ["x"], ["y"], name="blank")), ["'blank'", "operator type"]),
    "cycle of one": (chain(helper.make_node("Add", ["x", "y"], ["y"])), ["cycle"]),
    "cycle of three": (
        chain(helper.make_node("Add", ["x", "c"], ["a"]), relu("a", "b"), relu("b", "c"), relu("c", "y")),
        ["cycle"],
    ),
    "cycle through a body": (
        chain(*branches(body(relu("later", "in"), outputs=["in"])), relu("y", "later")),
        ["cycle"],
    ),
    "undefined in a body": (
        chain(*branches(body(relu("nowhere", "in", name="inner"), outputs=["in"]))),
        ["'inner'", "'nowhere'"],
    ),
    "body output undefined": (chain(*branches(body(relu("x", "in"), outputs=["out"]))), ["'out'", "no node"]),
    "body returns outer value": (chain(*branches(body(outputs=["x"]))), ["'body'", "'x'", "Identity"]),
    "sibling's value": (
        chain(*branches(body(relu("x", "a"), outputs=["a"]), body(relu("a", "b"), outputs=["b"]))),
        ["'a'", "nothing defines"],
    ),
}


@pytest.mark.parametrize("name", BAD_WIRING)
def test_bad_wiring(tmp_path, name):
    proto, words = BAD_WIRING[name]
    refused_proto(tmp_path, proto, *words)


def test_nodes_in_any_order_are_sorted(tmp_path):
    proto = perceptron()
    x = weights(5, 3, seed=9)
    expected = run(proto, {"x": x})
    nodes = list(proto.graph.node)
    del proto.graph.node[:]
    proto.graph.node.extend(reversed(nodes))
    loaded = io.load(write(tmp_path / "unsorted.onnx", proto))
    assert [node.name for node in loaded.ir.graph] == ["first", "bias", "act", "second"]
    io.save(loaded.ir, tmp_path / "sorted.onnx")
    same_outputs(expected, run(tmp_path / "sorted.onnx", {"x": x}))


def test_nodes_of_bodies_and_functions_are_sorted(tmp_path):
    nodes = [relu("a", "in"), relu("x", "a")]
    function = helper.make_function(
        "mine", "F", ["u"], ["v"], [relu("t", "v"), relu("u", "t")], [helper.make_opsetid("", 17)]
    )
    proto = chain(*branches(body(*nodes, outputs=["in"])), helper.make_node("F", ["y"], ["z"], domain="mine"))
    proto.graph.output[0].name = "z"
    proto.functions.append(function)
    proto.opset_import.append(helper.make_opsetid("mine", 1))
    loaded = io.load(write(tmp_path / "m.onnx", proto)).ir
    choice = next(node for node in loaded.graph if node.op_type == "If")
    assert [n.outputs[0].name for n in choice.attributes["then_branch"].as_graph()] == ["a", "in"]
    assert [n.outputs[0].name for n in loaded.functions["mine", "F", ""]] == ["t", "v"]


def test_bad_functions(tmp_path):
    def with_functions(*functions):
        proto = chain(helper.make_node("F", ["x"], ["y"], domain="m"))
        proto.opset_import.append(helper.make_opsetid("m", 1))
        proto.functions.extend(functions)
        return proto

    def function(name, *nodes, outputs=("v",), inputs=("u",)):
        return helper.make_function(
            "m", name, list(inputs), list(outputs), list(nodes), [helper.make_opsetid("", 17)]
        )

    def call(name, source="u", target="v"):
        return helper.make_node(name, [source], [target], domain="m")

    refused_proto(
        tmp_path, with_functions(function("F", relu("u", "v")), function("F", relu("u", "v"))), "'F'", "twice"
    )
    refused_proto(tmp_path, with_functions(function("F", relu("w", "v"))), "function 'F'", "'w'")
    refused_proto(tmp_path, with_functions(function("F", relu("u", "w"))), "function 'F'", "'v'")
    refused_proto(tmp_path, with_functions(function("F", call("F"))), "'F' calls itself")
    refused_proto(
        tmp_path, with_functions(function("F", call("G")), function("G", call("F"))), "calls itself"
    )
    refused_proto(tmp_path, with_functions(function("F", relu("u", "v"), inputs=["u", "u"])), "input 'u'")
    io.load(
        write(tmp_path / "ok.onnx", with_functions(function("F", call("G")), function("G", relu("u", "v"))))
    )


def test_a_long_chain_of_functions_is_no_problem(tmp_path):
    proto = chain(helper.make_node("F0", ["x"], ["y"], domain="m"))
    proto.opset_import.append(helper.make_opsetid("m", 1))
    for number in range(2000):
        node = (
            helper.make_node(f"F{number + 1}", ["u"], ["v"], domain="m") if number < 1999 else relu("u", "v")
        )
        proto.functions.append(
            helper.make_function("m", f"F{number}", ["u"], ["v"], [node], [helper.make_opsetid("", 17)])
        )
    assert len(io.load(write(tmp_path / "m.onnx", proto)).ir.functions) == 2000


# -------------------------------------------------------------------------------------------------- the tensors


def raw_tensor(dtype, dims, raw, name="w"):
    return onnx.TensorProto(name=name, data_type=dtype, dims=dims, raw_data=raw)


BAD_TENSORS = {
    "raw too short": (raw_tensor(FLOAT, [4], b"\0" * 12), ["needs 16 bytes", "has 12"]),
    "raw too long": (raw_tensor(FLOAT, [4], b"\0" * 20), ["needs 16 bytes", "has 20"]),
    "no data": (onnx.TensorProto(name="w", data_type=FLOAT, dims=[4]), ["needs 4 elements", "has 0"]),
    "no data for a scalar": (onnx.TensorProto(name="w", data_type=FLOAT), ["needs 1 elements", "has 0"]),
    "wrong field": (onnx.TensorProto(name="w", data_type=FLOAT, dims=[1], int32_data=[1]), ["has 0"]),
    "too few": (onnx.TensorProto(name="w", data_type=FLOAT, dims=[3], float_data=[1, 2]), ["has 2"]),
    "too few halves": (onnx.TensorProto(name="w", data_type=10, dims=[3], int32_data=[1, 2]), ["has 2"]),
    "too many int64": (onnx.TensorProto(name="w", data_type=7, dims=[1], int64_data=[1, 2]), ["has 2"]),
    "complex": (onnx.TensorProto(name="w", data_type=14, dims=[2], float_data=[1, 2]), ["needs 4 numbers"]),
    "packed": (onnx.TensorProto(name="w", data_type=22, dims=[5], int32_data=[1, 2]), ["needs 3", "has 2"]),
    "packed raw": (raw_tensor(22, [5], b"\0\0"), ["INT4", "needs 3 bytes", "has 2"]),
    "strings": (onnx.TensorProto(name="w", data_type=8, dims=[2], string_data=[b"a"]), ["has 1"]),
    "raw strings": (raw_tensor(8, [1], b"a"), ["STRING", "has 0"]),
    "no type": (raw_tensor(0, [1], b"\0"), ["element type 0"]),
    "unknown type": (raw_tensor(999, [1], b"\0"), ["element type 999", "Upgrade"]),
    "negative": (raw_tensor(FLOAT, [-1, 4], b""), ["[-1, 4]"]),
    "huge": (raw_tensor(FLOAT, [2**40, 2**40], b""), [str(4 * 2**80)]),
}


@pytest.mark.parametrize("name", BAD_TENSORS)
@pytest.mark.parametrize("place", ["initializer", "body", "attribute"])
def test_bad_tensors(tmp_path, name, place):
    tensor, words = BAD_TENSORS[name]
    add = helper.make_node("Add", ["x", "w"], ["y"])
    if place == "initializer":
        proto = chain(add, initializers=[tensor])
    elif place == "body":
        inner = helper.make_node("Add", ["x", "w"], ["in"])
        proto = chain(*branches(body(inner, outputs=["in"], initializers=[tensor])))
    else:
        proto = chain(helper.make_node("Constant", [], ["w"], value=tensor), add)
    refused_proto(tmp_path, proto, "'w'", *words)


def test_unnamed_and_segmented_tensors(tmp_path):
    refused_proto(
        tmp_path, chain(relu("x", "y"), initializers=[raw_tensor(FLOAT, [1], b"1234", "")]), "without a name"
    )
    tensor = raw_tensor(FLOAT, [1], b"1234")
    tensor.segment.begin = 0
    refused_proto(tmp_path, chain(relu("x", "y"), initializers=[tensor]), "segments", error=UnsupportedError)


@pytest.mark.parametrize(
    "tensor",
    [
        raw_tensor(FLOAT, [0, 4], b""),
        onnx.TensorProto(name="w", data_type=FLOAT, dims=[0]),
        onnx.TensorProto(name="w", data_type=22, dims=[5], int32_data=[1, 2, 3]),
        onnx.TensorProto(name="w", data_type=14, dims=[2], float_data=[1, 2, 3, 4]),
        onnx.TensorProto(name="w", data_type=8, dims=[2], string_data=[b"a", b"b"]),
        onnx.TensorProto(name="w", data_type=12, dims=[1], uint64_data=[7]),
    ],
)
def test_good_tensors_of_all_forms(tmp_path, tensor):
    proto = chain(relu("x", "y"), initializers=[tensor])
    value = io.load(write(tmp_path / "m.onnx", proto)).ir.graph.initializers["w"]
    assert value.const_value.dtype.value == tensor.data_type
    assert value.const_value.numpy().shape == tuple(tensor.dims)


def test_an_attribute_without_a_type(tmp_path):
    node = relu("x", "y", name="odd")
    node.attribute.append(onnx.AttributeProto(name="alpha", f=0.5))
    refused_proto(tmp_path, chain(node), "'alpha'", "'odd'", "no type")


def test_valid_models_that_cannot_be_read(tmp_path):
    key = onnx.TypeProto.Map(key_type=INT64_TYPE, value_type=helper.make_tensor_type_proto(FLOAT, None))
    proto = chain(relu("x", "y"))
    proto.graph.output.append(onnx.ValueInfoProto(name="x", type=onnx.TypeProto(map_type=key)))
    refused_proto(tmp_path, proto, "Map types", error=UnsupportedError)
    sparse = onnx.SparseTensorProto(values=numpy_helper.from_array(weights(1), "s"))
    node = relu("x", "y", name="odd")
    node.attribute.append(helper.make_attribute("extra", sparse))
    refused_proto(tmp_path, chain(node), "'extra'", "'odd'", error=UnsupportedError)


INT64_TYPE = onnx.TensorProto.INT64


def test_training_info_is_left_out_with_a_warning(tmp_path, caplog):
    proto = perceptron()
    proto.training_info.add()
    io.load(write(tmp_path / "m.onnx", proto))
    assert "training_info" in caplog.text
