from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from small_models import FLOAT, INT64, check, info, model_of, perceptron, run, same_outputs, weights, write

from onnxprune.errors import ModelError, UnsupportedError
from onnxprune.model import io
from onnxprune.model.finalize import finalize
from onnxprune.model.normalize import normalize


def read(tmp_path, proto):
    return io.load(write(tmp_path / "in.onnx", proto)).ir


def normal(tmp_path, proto):
    return normalize(read(tmp_path, proto))


def round_trip(tmp_path, model):
    """The normalised model as a file again; checked by onnx."""
    path = tmp_path / "out.onnx"
    io.save(finalize(model), path, force=True)
    check(path)
    return path


def array_of(model, name):
    return model.graph.initializers[name].const_value.numpy()


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


# ----------------------------------------------------------------------------------------------------- constants


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


# -------------------------------------------------------------------------------------------------------- sparse


def sparse(name, array, *, rows):
    """A sparse tensor with linear indices or with one row of indices per value."""
    places = np.flatnonzero(array).astype(np.int64)
    if rows:
        places = np.stack(np.unravel_index(places, array.shape), -1).astype(np.int64)
    values = numpy_helper.from_array(array.ravel()[np.flatnonzero(array)], name)
    return helper.make_sparse_tensor(values, numpy_helper.from_array(places, f"{name}_places"), array.shape)


@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64, np.int64])
@pytest.mark.parametrize("place", ["initializer", "constant", "body"])
def test_sparse_tensors_become_dense(tmp_path, rows, dtype, place):
    dense = np.zeros((3, 4), dtype)
    dense[0, 1], dense[2, 3], dense[1, 0] = 1, -2, 3
    tensor = sparse("w", dense, rows=rows)
    kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    if place == "initializer":
        proto = model_of(
            [helper.make_node("Add", ["w", "x"], ["y"])], [info("x", [1], kind)], [info("y", None, kind)]
        )
        proto.graph.sparse_initializer.append(tensor)
    else:
        nodes = [
            helper.make_node("Constant", [], ["w"], sparse_value=tensor),
            helper.make_node("Add", ["w", "x"], ["y"]),
        ]
        if place == "body":
            inner = helper.make_graph(nodes, "b", [], [info("y", None, kind)])
            flag = helper.make_tensor("v", onnx.TensorProto.BOOL, [], [1])
            nodes = [
                helper.make_node("Constant", [], ["flag"], value=flag),
                helper.make_node("If", ["flag"], ["y"], then_branch=inner, else_branch=inner),
            ]
        proto = model_of(nodes, [info("x", [1], kind)], [info("y", None, kind)])
    model = normal(tmp_path, proto)
    if place != "body":
        np.testing.assert_array_equal(array_of(model, "w"), dense)
    x = np.array([5], dtype)
    np.testing.assert_array_equal(run(round_trip(tmp_path, model), {"x": x})["y"], dense + x)


def test_sparse_bfloat16(tmp_path):
    dense = np.array([0, 1.5, 0, -2], ml_dtypes.bfloat16)
    proto = model_of(
        [helper.make_node("Identity", ["w"], ["y"])], [], [info("y", None, onnx.TensorProto.BFLOAT16)]
    )
    proto.graph.sparse_initializer.append(sparse("w", dense, rows=False))
    np.testing.assert_array_equal(array_of(normal(tmp_path, proto), "w"), dense)


@pytest.mark.parametrize(
    ("indices", "dims"),
    [
        ([0, 6], [2, 3]),
        ([-1, 0], [2, 3]),
        ([0], [2, 3]),
        ([[0, 0], [2, 0]], [2, 3]),
        ([[0, 0], [0, -1]], [2, 3]),
        ([[0], [1]], [2, 3]),
        ([[[0]], [[1]]], [2]),
        ([0, 1], [2, -3]),
    ],
)
def test_bad_sparse_tensors(tmp_path, indices, dims):
    values = numpy_helper.from_array(weights(2), "w")
    tensor = helper.make_sparse_tensor(values, numpy_helper.from_array(np.array(indices, np.int64)), dims)
    proto = model_of([helper.make_node("Identity", ["w"], ["y"])], [], [info("y")])
    proto.graph.sparse_initializer.append(tensor)
    with pytest.raises(ModelError, match="sparse tensor 'w'"):
        read(tmp_path, proto)


def test_sparse_tensors_that_are_too_large_or_strange(tmp_path):
    values = numpy_helper.from_array(weights(1), "w")
    proto = model_of([helper.make_node("Identity", ["w"], ["y"])], [], [info("y")])
    tensor = helper.make_sparse_tensor(values, numpy_helper.from_array(np.array([0])), [2**20, 2**20])
    proto.graph.sparse_initializer.append(tensor)
    with pytest.raises(UnsupportedError, match="too large"):
        read(tmp_path, proto)
    del proto.graph.sparse_initializer[0].dims[:]
    proto.graph.sparse_initializer[0].dims.extend([1])
    proto.graph.sparse_initializer[0].indices.data_type = FLOAT
    with pytest.raises(ModelError):
        read(tmp_path, proto)
    proto.graph.sparse_initializer[0].values.data_location = onnx.TensorProto.EXTERNAL
    with pytest.raises(UnsupportedError, match="external"):
        read(tmp_path, proto)


# ----------------------------------------------------------------------------------------------------- functions


def function(name, inputs, outputs, nodes, **options):
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("m", 1)]
    return helper.make_function("m", name, inputs, outputs, nodes, imports, **options)


def call(name, inputs, outputs, **attributes):
    return helper.make_node(name, inputs, outputs, domain="m", **attributes)


def reference(node, attribute, name, kind):
    node.attribute.append(onnx.AttributeProto(name=attribute, ref_attr_name=name, type=kind))
    return node


def calling(nodes, functions, inputs=("x",), outputs=("y",), **options):
    return model_of(
        nodes,
        [info(n, [2, 3]) for n in inputs],
        [info(n) for n in outputs],
        functions=functions,
        domains=["m"],
        **options,
    )


def inlined(tmp_path, proto, *, evaluate=run):
    """Normalise, check that nothing of a function is left and that the outputs are those of the original."""
    model = normal(tmp_path, proto)
    assert not model.functions and not any(node.domain for node in model.graph.all_nodes())
    feed = {value.name: weights(2, 3, seed=5) for value in proto.graph.input}
    same_outputs(evaluate(proto, feed), run(round_trip(tmp_path, model), feed))
    names = [out.name for node in model.graph for out in node.outputs]
    assert len(names) == len(set(names)) and all(names)
    return model


def evaluate(proto, feed):
    """With onnx's evaluator: onnxruntime refuses functions that return an input."""
    names = [value.name for value in proto.graph.output]
    return dict(zip(names, ReferenceEvaluator(proto).run(None, feed), strict=True))


def test_nested_functions(tmp_path):
    inner = function(
        "Inner", ["a"], ["b"], [helper.make_node("Relu", ["a"], ["t"]), helper.make_node("Neg", ["t"], ["b"])]
    )
    outer = function("Outer", ["a"], ["b"], [call("Inner", ["a"], ["t"]), call("Inner", ["t"], ["b"])])
    nodes = [call("Outer", ["x"], ["h"]), call("Outer", ["h"], ["y"])]
    model = inlined(tmp_path, calling(nodes, [outer, inner]))
    assert operators(model) == ["Relu", "Neg"] * 4


def test_attribute_references_and_defaults(tmp_path):
    def leaky():
        return reference(
            helper.make_node("LeakyRelu", ["a"], ["b"]), "alpha", "slope", onnx.AttributeProto.FLOAT
        )

    given = function("Given", ["a"], ["b"], [leaky()], attributes=["slope"])
    default = function(
        "Default", ["a"], ["b"], [leaky()], attribute_protos=[helper.make_attribute("slope", 0.25)]
    )
    passed = reference(call("Given", ["a"], ["b"]), "slope", "outer", onnx.AttributeProto.FLOAT)
    through = function(
        "Through", ["a"], ["b"], [passed], attribute_protos=[helper.make_attribute("outer", 0.75)]
    )
    nodes = [
        call("Given", ["x"], ["a"], slope=0.5),
        call("Given", ["a"], ["b"]),
        call("Default", ["b"], ["c"]),
        call("Default", ["c"], ["d"], slope=2.0),
        call("Through", ["d"], ["e"]),
        call("Through", ["e"], ["y"], outer=3.0),
    ]
    model = inlined(tmp_path, calling(nodes, [given, default, through]))
    slopes = [node.attributes.get_float("alpha", -1.0) for node in model.graph]
    assert slopes == [0.5, -1.0, 0.25, 2.0, 0.75, 3.0]


def test_constants_from_attributes(tmp_path):
    constant = reference(
        helper.make_node("Constant", [], ["c"]), "value_ints", "sizes", onnx.AttributeProto.INTS
    )
    body = [constant, helper.make_node("Reshape", ["a", "c"], ["b"])]
    shaped = function("Shaped", ["a"], ["b"], body, attributes=["sizes"])
    nodes = [call("Shaped", ["x"], ["h"], sizes=[3, 2]), call("Shaped", ["h"], ["y"], sizes=[6])]
    model = inlined(tmp_path, calling(nodes, [shaped]))
    assert operators(model) == ["Reshape", "Reshape"]
    assert sorted(array_of(model, name).tolist() for name in model.graph.initializers) == [[3, 2], [6]]


def test_outputs_that_are_inputs_or_come_twice(tmp_path):
    """onnx-ir gives what a function returns the names of the call's outputs, even if it is the model's input."""
    odd = function("Odd", ["a"], ["a", "b", "b"], [helper.make_node("Relu", ["a"], ["b"])])
    nodes = [call("Odd", ["x"], ["p", "q", "r"]), helper.make_node("Add", ["q", "r"], ["s"])]
    model = inlined(tmp_path, calling(nodes, [odd], outputs=["p", "q", "r", "s"]), evaluate=evaluate)
    assert [v.name for v in model.graph.inputs] == ["x"]
    assert [v.name for v in model.graph.outputs] == ["p", "q", "r", "s"]


def test_outputs_that_are_weights(tmp_path):
    passing = function("Pass", ["a"], ["a"], [])
    nodes = [
        call("Pass", ["w"], ["v"]),
        helper.make_node("Add", ["x", "v"], ["h"]),
        helper.make_node("Add", ["h", "w"], ["y"]),
    ]
    proto = calling(nodes, [passing], initializers={"w": weights(2, 3)})
    assert list(inlined(tmp_path, proto, evaluate=evaluate).graph.initializers) == ["w"]


def test_outputs_that_are_left_out(tmp_path):
    body = [helper.make_node("Relu", ["a"], ["b"]), helper.make_node("Neg", ["b"], ["c"])]
    two = function("Two", ["a"], ["b", "c"], body)
    proto = calling([call("Two", ["x"], ["", "h"]), call("Two", ["h"], ["y"])], [two])
    x = weights(2, 3, seed=5)

    def by_hand(*_):
        return {"y": np.maximum(-np.maximum(x, 0), 0)}

    assert operators(inlined(tmp_path, proto, evaluate=by_hand)) == ["Relu", "Neg", "Relu"]


def test_inputs_that_are_left_out(tmp_path):
    body = [helper.make_node("Clip", ["a", "low", "high"], ["b"])]
    clip = function("MyClip", ["a", "low", "high"], ["b"], body)
    nodes = [call("MyClip", ["x", "", "one"], ["h"]), call("MyClip", ["h"], ["y"])]
    inlined(tmp_path, calling(nodes, [clip], initializers={"one": np.float32(1)}))


def test_bodies_inside_functions(tmp_path):
    """Twice the same loop: names of its inputs must not clash, and it reads values from outside."""
    inner = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["goes_on"]),
            helper.make_node("Add", ["state", "a"], ["next"]),
        ],
        "loop",
        [info("i", [], INT64), info("go", [], onnx.TensorProto.BOOL), info("state")],
        [info("goes_on", [], onnx.TensorProto.BOOL), info("next")],
    )
    body = [
        helper.make_node("Constant", [], ["n"], value_int=3),
        helper.make_node("Loop", ["n", "", "a"], ["b"], body=inner),
    ]
    looped = function("Looped", ["a"], ["b"], body)
    nodes = [
        call("Looped", ["x"], ["h"]),
        call("Looped", ["h"], ["i"]),
        helper.make_node("Neg", ["i"], ["y"]),
    ]
    model = inlined(tmp_path, calling(nodes, [looped]))
    inputs = [value.name for graph in model.graph.subgraphs() for value in graph.inputs]
    assert len(set(inputs)) == 6


def test_calls_inside_bodies(tmp_path):
    neg = function("MyNeg", ["a"], ["b"], [helper.make_node("Neg", ["a"], ["b"])])
    branch = helper.make_graph([call("MyNeg", ["x"], ["in"])], "b", [], [info("in")])
    flag = helper.make_tensor("v", onnx.TensorProto.BOOL, [], [1])
    nodes = [
        helper.make_node("Constant", [], ["flag"], value=flag),
        helper.make_node("If", ["flag"], ["y"], then_branch=branch, else_branch=branch),
    ]
    inlined(tmp_path, calling(nodes, [neg]))


def test_functions_that_cannot_be_inlined_stay_as_calls(tmp_path):
    other = helper.make_function(
        "m", "Old", ["a"], ["b"], [helper.make_node("Relu", ["a"], ["b"])], [helper.make_opsetid("", 13)]
    )
    many = function("Many", ["a"], ["b"], [helper.make_node("Relu", ["a"], ["b"])])
    fine = function("Fine", ["a"], ["b"], [call("Old", ["a"], ["t"]), helper.make_node("Neg", ["t"], ["b"])])
    nodes = [call("Old", ["x"], ["h"]), call("Fine", ["h"], ["i"]), call("Many", ["i", "i"], ["y"])]
    model = normal(tmp_path, calling(nodes, [other, many, fine]))
    assert operators(model) == ["Old", "Old", "Neg", "Many"]
    assert sorted(name for _, name, _ in model.functions) == ["Many", "Old"]
    finalize(model)


def test_imports_of_inlined_functions_are_added(tmp_path):
    body = [helper.make_node("Binarizer", ["a"], ["b"], domain="ai.onnx.ml", threshold=0.5)]
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    binary = helper.make_function("m", "Binary", ["a"], ["b"], body, opsets)
    proto = calling([call("Binary", ["x"], ["y"])], [binary])
    model = finalize(normal(tmp_path, proto))
    assert model.opset_imports == {"": 17, "m": 1, "ai.onnx.ml": 3}
    io.save(model, tmp_path / "out.onnx")
    x = {"x": weights(2, 3)}
    same_outputs(run(proto, x), run(tmp_path / "out.onnx", x))


def test_functions_that_nothing_calls_go(tmp_path):
    unused = function("Unused", ["a"], ["b"], [helper.make_node("Relu", ["a"], ["b"])])
    assert not normal(tmp_path, calling([helper.make_node("Relu", ["x"], ["y"])], [unused])).functions


# -------------------------------------------------------------------------------------------- aliases and dead code


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


# ------------------------------------------------------------------------------------------------------- sharing


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


def test_uses_in_bodies_and_as_output_keep_the_original(tmp_path):
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
    assert used == {"outer": "w/shared_1", "last": "u/shared_1"}
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
