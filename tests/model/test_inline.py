from __future__ import annotations

import numpy as np
import onnx
from onnx import helper
from onnx.reference import ReferenceEvaluator
from small_models import (
    INT64,
    array_of,
    info,
    model_of,
    normal,
    round_trip,
    run,
    same_outputs,
    weights,
)

from onnxprune.model import io
from onnxprune.model.finalize import finalize


def operators(model):
    return [node.op_type for node in model.graph]


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
    """onnx-ir gives what a function returns the names of the call's outputs, even the model's input."""
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
