from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper
from small_models import (
    INT64,
    array_of,
    info,
    model_of,
    normal,
    perceptron,
    read,
    round_trip,
    run,
    same_outputs,
    weights,
)

from onnxprune.model.normalize import normalize


def operators(model):
    return [node.op_type for node in model.graph]


def test_the_original_is_not_mutated(tmp_path):
    proto = perceptron()
    proto.graph.node.append(helper.make_node("Add", ["y", "b2"], ["z"]))
    proto.graph.node.append(helper.make_node("Constant", [], ["b2"], value_float=2.0))
    proto.graph.output[0].name = "z"
    model = read(tmp_path, proto)
    before = ir.to_proto(model)
    normalize(model)
    assert ir.to_proto(model) == before


# ------------------------------------------------------------------------------------------- constants


CONSTANTS = {
    "value": (numpy_helper.from_array(weights(2, 2)), weights(2, 2)),
    "value_int": (7, np.array(7, np.int64)),
    "value_ints": ([1, -2, 3], np.array([1, -2, 3], np.int64)),
    "value_float": (0.1, np.array(0.1, np.float32)),
    "value_floats": ([0.1, 2.0], np.array([0.1, 2.0], np.float32)),
}


@pytest.mark.parametrize("attribute", CONSTANTS)
@pytest.mark.parametrize("domain", ["", "ai.onnx"])
def test_constants_become_initializers(tmp_path, attribute, domain):
    given, expected = CONSTANTS[attribute]
    nodes = [
        helper.make_node("Constant", [], ["c"], name="k", domain=domain, **{attribute: given}),
        helper.make_node("Add", ["c", "c"], ["y"]),
    ]
    kind = onnx.helper.np_dtype_to_tensor_dtype(expected.dtype)
    proto = model_of(nodes, [], [info("y", None, kind)])
    proto.opset_import[0].domain = domain
    model = normal(tmp_path, proto)
    assert operators(model) == ["Add"]
    found = array_of(model, "c")
    assert found.dtype == expected.dtype and found.shape == expected.shape
    np.testing.assert_array_equal(found, expected)
    path = round_trip(tmp_path, model)
    assert [entry.domain for entry in onnx.load(path).opset_import] == [domain]
    np.testing.assert_array_equal(run(path, {})["y"], expected + expected)


def test_constants_that_stay(tmp_path):
    """Strings, which nothing reads, and what is a graph output itself."""
    nodes = [
        helper.make_node("Constant", [], ["s"], value_string="grün"),
        helper.make_node("Constant", [], ["t"], value_strings=["a", "ß"]),
        helper.make_node("Identity", ["s"], ["s2"]),
        helper.make_node("Identity", ["t"], ["t2"]),
        helper.make_node("Constant", [], ["out"], value_ints=[1, 2]),
    ]
    text = onnx.TensorProto.STRING
    proto = model_of(nodes, [], [info("s2", [], text), info("t2", [2], text), info("out", [2], INT64)])
    model = normal(tmp_path, proto)
    assert operators(model) == ["Constant", "Constant", "Identity", "Identity", "Constant"]
    got = run(round_trip(tmp_path, model), {})
    assert got["s2"] == "grün" and got["t2"].tolist() == ["a", "ß"] and got["out"].tolist() == [1, 2]


def test_a_string_tensor_is_lifted(tmp_path):
    tensor = helper.make_tensor("v", onnx.TensorProto.STRING, [2], [b"a", "ß".encode()])
    nodes = [
        helper.make_node("Constant", [], ["s"], value=tensor),
        helper.make_node("Identity", ["s"], ["t"]),
    ]
    nodes.append(helper.make_node("Concat", ["s", "t"], ["y"], axis=0))
    model = normal(tmp_path, model_of(nodes, [], [info("y", [4], onnx.TensorProto.STRING)]))
    assert run(round_trip(tmp_path, model), {})["y"].tolist() == ["a", "ß", "a", "ß"]


def test_odd_constants_do_no_harm(tmp_path):
    odd = helper.make_node("Constant", [], ["c"], value_int=1, value_float=2.0)
    wrong = helper.make_node("Constant", [], ["d"])
    wrong.attribute.append(helper.make_attribute("value_int", 1.5))
    node = helper.make_node("Add", ["c", "d"], ["y"])
    assert operators(normal(tmp_path, model_of([odd, wrong, node], [], [info("y")]))) == [
        "Constant",
        "Constant",
        "Add",
    ]


# ------------------------------------------------------------------------------- aliases and dead code


def test_identities_of_weights_are_read_through(tmp_path):
    nodes = [
        helper.make_node("Identity", ["w"], ["v"]),
        helper.make_node("Identity", ["v"], ["u"]),
        helper.make_node("MatMul", ["x", "u"], ["h"]),
        helper.make_node("MatMul", ["h", "w"], ["y"]),
        helper.make_node("Identity", ["w"], ["z"]),
        helper.make_node("Identity", ["y"], ["kept"]),
    ]
    proto = model_of(nodes, [info("x", [2, 3])], [info("y"), info("z"), info("kept")], {"w": weights(3, 3)})
    model = normal(tmp_path, proto)
    assert operators(model) == ["MatMul", "MatMul", "Identity", "Identity"]
    assert len(model.graph.initializers["w"].uses()) == 3
    x = {"x": weights(2, 3)}
    same_outputs(run(proto, x), run(round_trip(tmp_path, model), x))


def test_what_nothing_uses_goes(tmp_path):
    proto = perceptron()
    proto.graph.node.append(helper.make_node("MatMul", ["h", "U"], ["dead"]))
    proto.graph.node.append(helper.make_node("Relu", ["dead"], ["deader"]))
    proto.graph.initializer.append(numpy_helper.from_array(weights(4, 9), "U"))
    model = normal(tmp_path, proto)
    assert operators(model) == ["MatMul", "Add", "Relu", "MatMul"]
    assert list(model.graph.initializers) == ["W", "b", "V"]


# --------------------------------------------------------------------------------------------- sharing


def sharing(array, users=3):
    """Values a0 = x + w, a1 = a0 + w, ..., by nodes called n2, n1, n0."""
    nodes, source = [], "x"
    for number in range(users):
        nodes.append(helper.make_node("Add", [source, "w"], [f"a{number}"], name=f"n{users - number - 1}"))
        source = f"a{number}"
    return model_of(nodes, [info("x", [2, 3])], [info(source)], {"w": array})


@pytest.mark.parametrize("shape", [(3,), (1, 3), (1,), (), (2, 1)])
def test_shared_vectors_are_split(tmp_path, shape):
    model = normal(tmp_path, sharing(weights(*shape)))
    assert list(model.graph.initializers) == ["w", "w/shared_1", "w/shared_2"]
    used = {node.name: node.inputs[1].name for node in model.graph}
    assert used == {"n0": "w", "n1": "w/shared_1", "n2": "w/shared_2"}
    tensors = [value.const_value for value in model.graph.initializers.values()]
    assert tensors[0] is tensors[1] is tensors[2]


def test_shared_matrices_stay_shared(tmp_path):
    model = normal(tmp_path, sharing(weights(2, 3)))
    assert list(model.graph.initializers) == ["w"] and len(model.graph.initializers["w"].uses()) == 3


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_shared_tables_of_positions_are_split_and_put_together_again(tmp_path, dtype):
    nodes = [helper.make_node("Gather", ["x", "t"], [f"y{n}"], name=f"n{n}", axis=n) for n in range(2)]
    table = np.array([[0, 1, 2], [1, 2, 0]], dtype)
    proto = model_of(nodes, [info("x", [3, 3])], [info("y0", [2, 3, 3]), info("y1", [3, 2, 3])], {"t": table})
    model = normal(tmp_path, proto)
    assert [node.inputs[1].name for node in model.graph] == ["t", "t/shared_1"]
    again = round_trip(tmp_path, model)
    assert [tensor.name for tensor in onnx.load(again).graph.initializer] == ["t"]
    feed = {"x": weights(3, 3)}
    same_outputs(run(proto, feed), run(again, feed))


def test_both_inputs_of_one_node(tmp_path):
    proto = model_of([helper.make_node("Mul", ["w", "w"], ["y"])], [], [info("y")], {"w": weights(3)})
    model = normal(tmp_path, proto)
    assert [value.name for value in model.graph[0].inputs] == ["w", "w/shared_1"]
    same_outputs(run(proto, {}), run(round_trip(tmp_path, model), {}))


def test_names_that_are_taken(tmp_path):
    proto = sharing(weights(3))
    proto.graph.node.append(helper.make_node("Add", ["a2", "w/shared_1"], ["w/shared_2"], name="last"))
    proto.graph.initializer.append(numpy_helper.from_array(weights(3), "w/shared_1"))
    proto.graph.output[0].name = "w/shared_2"
    model = normal(tmp_path, proto)
    assert list(model.graph.initializers) == ["w", "w/shared_1", "w/shared_3", "w/shared_4"]


def test_the_split_does_not_depend_on_the_order_of_nodes_or_runs(tmp_path):
    def wires(proto):
        return {n.name: [v.name for v in n.inputs] for n in normal(tmp_path, proto).graph}

    proto = sharing(weights(3), users=12)
    expected = wires(proto)
    assert wires(proto) == expected
    nodes = list(proto.graph.node)
    del proto.graph.node[:]
    proto.graph.node.extend(reversed(nodes))
    assert wires(proto) == expected


def test_uses_in_bodies_are_split_and_outputs_keep_the_original(tmp_path):
    inner = helper.make_graph([helper.make_node("Add", ["x", "w"], ["in"])], "b", [], [info("in")])
    flag = helper.make_tensor("v", onnx.TensorProto.BOOL, [], [1])
    nodes = [
        helper.make_node("Constant", [], ["flag"], value=flag),
        helper.make_node("If", ["flag"], ["p"], then_branch=inner, else_branch=inner),
        helper.make_node("Add", ["p", "w"], ["q"], name="outer"),
        helper.make_node("Add", ["q", "u"], ["y"], name="last"),
    ]
    arrays = {"w": weights(3), "u": weights(3, seed=1)}
    proto = model_of(nodes, [info("x", [2, 3])], [info("y"), info("u", [3])], arrays)
    model = normal(tmp_path, proto)
    used = {node.name: node.inputs[1].name for node in model.graph if node.op_type == "Add"}
    assert used == {"outer": "w/shared_2", "last": "u/shared_1"}
    x = {"x": weights(2, 3)}
    path = round_trip(tmp_path, model)
    same_outputs(run(proto, x), run(path, x))
    assert [t.name for t in onnx.load(path).graph.initializer] == ["w", "u", "flag"]


def test_normalising_twice_changes_nothing_more(tmp_path):
    once = normal(tmp_path, sharing(weights(3)))
    twice = normalize(once)
    assert [v.name for n in twice.graph for v in n.inputs] == [v.name for n in once.graph for v in n.inputs]
    path = round_trip(tmp_path, twice)
    assert [t.name for t in onnx.load(path).graph.initializer] == ["w"]
