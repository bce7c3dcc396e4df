from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from small_models import FLOAT, info, model_of, perceptron, run, same_outputs, weights, write

from onnxprune.errors import ModelError, UnsupportedError
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


# ----------------------------------------------------------------------------------------- the tensors


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


def test_map_types_are_put_aside_and_given_back(tmp_path):
    key = onnx.TypeProto.Map(
        key_type=onnx.TensorProto.INT64, value_type=helper.make_tensor_type_proto(FLOAT, None)
    )
    proto = chain(relu("x", "y"), helper.make_node("ZipMap", ["y"], ["maps"], domain="ai.onnx.ml"))
    proto.opset_import.add(domain="ai.onnx.ml", version=3)
    kind = onnx.TypeProto(sequence_type=onnx.TypeProto.Sequence(elem_type=onnx.TypeProto(map_type=key)))
    proto.graph.output.append(onnx.ValueInfoProto(name="maps", type=kind))
    model = io.load(write(tmp_path / "m.onnx", proto)).ir
    io.save(model.clone(), tmp_path / "out.onnx")
    assert list(onnx.load(tmp_path / "out.onnx").graph.output) == list(proto.graph.output)


def test_valid_models_that_cannot_be_read(tmp_path):
    sparse = onnx.SparseTensorProto(values=numpy_helper.from_array(weights(1), "s"))
    node = relu("x", "y", name="odd")
    node.attribute.append(helper.make_attribute("extra", sparse))
    refused_proto(tmp_path, chain(node), "'extra'", "'odd'", error=UnsupportedError)


def test_training_info_is_left_out_with_a_warning(tmp_path, caplog):
    proto = perceptron()
    proto.training_info.add()
    io.load(write(tmp_path / "m.onnx", proto))
    assert "training_info" in caplog.text
