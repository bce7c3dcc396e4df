from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from small_models import INT64, check, info, model_of, perceptron, run, same_outputs, weights, write

from onnxprune.model import edit, io
from onnxprune.model.finalize import finalize
from onnxprune.model.normalize import normalize


def normal(tmp_path, proto):
    return normalize(io.load(write(tmp_path / "in.onnx", proto)).ir)


def written(tmp_path, model):
    path = tmp_path / "out.onnx"
    io.save(finalize(model), path, force=True)
    check(path)
    return onnx.load(path)


def unchanged(tmp_path, proto):
    """Normalising and finalising must give back the very same message."""
    again = written(tmp_path, normal(tmp_path, proto))
    assert again == proto, f"{proto}\n{again}"
    return again


# ------------------------------------------------------------------------------------ removing nothing


def decorated():
    """A model that says something in every field."""
    shared = [helper.make_node("Add", [f"h{n}", "shared"], [f"h{n + 1}"], name=f"add{n}") for n in range(3)]
    nodes = [
        helper.make_node("MatMul", ["x", "W"], ["h0"], name="first", doc_string="a product"),
        *shared,
        helper.make_node("Scale", ["h3"], ["s"], name="custom", domain="my.ops", factor=2.0),
        helper.make_node("Relu", ["s"], ["y"], name=""),
    ]
    nodes[0].metadata_props.add(key="stage", value="1")
    inputs = [info("W", [3, 4]), info("x", ["batch", 3]), info("shared", [4])]
    arrays = {"unlisted": weights(4, seed=3), "W": weights(3, 4), "shared": weights(4, seed=1)}
    nodes.insert(4, helper.make_node("Add", ["h3", "unlisted"], ["z"], name="side"))
    proto = model_of(
        nodes,
        inputs,
        [info("z", ["batch", 4]), info("y", ["batch", "unk__3"])],
        arrays,
        domains=["my.ops", "unused.domain"],
        producer_name="someone",
        producer_version="1.2",
        domain="org.example",
        model_version=42,
        doc_string="what it is",
    )
    proto.opset_import.add(domain="ai.onnx.ml", version=3)
    helper.set_model_props(proto, {"author": "me", "license": "MIT"})
    graph = proto.graph
    graph.name, graph.doc_string = "a graph", "what it computes"
    graph.metadata_props.add(key="k", value="v")
    graph.input[1].doc_string = "pixels"
    graph.input[1].type.denotation = "IMAGE"
    graph.input[1].type.tensor_type.shape.dim[0].denotation = "DATA_BATCH"
    graph.value_info.extend([info("h0", ["batch", 4]), info("h2", ["batch", 4])])
    graph.value_info[0].metadata_props.add(key="seen", value="yes")
    graph.quantization_annotation.add(tensor_name="h0").quant_parameter_tensor_names.add(
        key="SCALE_TENSOR", value="shared"
    )
    return proto


def test_every_field_comes_back(tmp_path):
    model = normal(tmp_path, decorated())
    assert [v.name for v in model.graph.inputs] == ["x"] and "shared/shared_2" in model.graph.initializers
    io.save(finalize(model), tmp_path / "out.onnx")
    assert onnx.load(tmp_path / "out.onnx") == decorated()


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_sharing_comes_back(tmp_path_factory, data):
    """Random chains over a few vectors, some of them equal, some listed as inputs, in any order."""
    names = [f"v{n}" for n in range(data.draw(st.integers(1, 4)))]
    order = data.draw(st.permutations([*names, "x"]))
    listed = [name for name in order if name == "x" or data.draw(st.booleans())]
    nodes, source = [], "x"
    for number in range(data.draw(st.integers(1, 10))):
        inputs = [source, data.draw(st.sampled_from(names))]
        nodes.append(helper.make_node("Add", inputs, [f"h{number}"], name=data.draw(st.sampled_from("abc"))))
        source = f"h{number}"
    used = {name for node in nodes for name in node.input}
    arrays = {
        name: weights(3, seed=data.draw(st.integers(0, 1)))
        for name in names
        if name in used or name in listed
    }
    inputs = [info(name, ["n", 3] if name == "x" else [3]) for name in listed]
    unchanged(tmp_path_factory.mktemp("share"), model_of(nodes, inputs, [info(source, ["n", 3])], arrays))


def test_odd_outputs_come_back(tmp_path):
    """A value twice, an input and a weight among the outputs."""
    node = helper.make_node("Add", ["x", "b"], ["y"])
    outputs = [info(name, [3]) for name in ("y", "b", "x", "y")]
    unchanged(tmp_path, model_of([node], [info("x", [3])], outputs, {"b": weights(3)}))


def test_finalising_does_not_mutate_and_is_idempotent(tmp_path):
    model = normal(tmp_path, decorated())
    before = ir.to_proto(model)
    once = finalize(model)
    assert ir.to_proto(model) == before
    assert ir.to_proto(finalize(once)) == ir.to_proto(once)
    assert ir.to_proto(finalize(normalize(once))) == ir.to_proto(once)


def test_a_model_that_never_was_normalised(tmp_path):
    model = io.load(write(tmp_path / "in.onnx", perceptron())).ir
    assert ir.to_proto(finalize(model)) == ir.to_proto(model)


# --------------------------------------------------------------------------------------- listed inputs


def listing_model(ir_version, opset=8):
    """x + b + c + b with b and c among the inputs, before and after x."""
    nodes = [
        helper.make_node("Add", ["x", "b"], ["h"], name="n0"),
        helper.make_node("Add", ["h", "c"], ["i"], name="n1"),
        helper.make_node("Add", ["i", "b"], ["y"], name="n2"),
    ]
    arrays = {"b": weights(3), "c": weights(3, seed=1)}
    inputs = [info("b", [3]), info("x", [2, 3]), info("c", [3])]
    return model_of(nodes, inputs, [info("y", [2, 3])], arrays, opset=opset, ir=ir_version)


@pytest.mark.parametrize("ir_version", [3, 4, 8])
def test_listed_initializers_are_listed_again(tmp_path, ir_version):
    proto = listing_model(ir_version)
    model = normal(tmp_path, proto)
    assert [v.name for v in model.graph.inputs] == ["x"]
    assert list(model.graph.initializers) == ["b", "c", "b/shared_1"]
    unchanged(tmp_path, proto)


def test_listed_initializers_can_be_overridden_as_before(tmp_path):
    """Overriding reaches all uses of a shared one, which were split in between."""
    proto = listing_model(8, opset=17)
    written(tmp_path, normal(tmp_path, proto))
    feed = {"x": weights(2, 3), "b": np.array([1, 2, 3], np.float32)}
    session = onnxruntime.InferenceSession(str(tmp_path / "out.onnx"))
    assert [value.name for value in session.get_overridable_initializers()] == ["b", "c"]
    same_outputs(run(proto, feed), run(tmp_path / "out.onnx", feed))


def test_ir_3_has_no_unlisted_initializers(tmp_path):
    """Lifted constants, twins that differ and new initializers are Constant nodes in such a model."""
    proto = listing_model(3)
    proto.graph.node.insert(
        0, helper.make_node("Constant", [], ["k"], value=numpy_helper.from_array(weights(3), "k"))
    )
    proto.graph.node.append(helper.make_node("Add", ["y", "k"], ["z"], name="n3"))
    proto.graph.output[0].name = "z"
    x = {"x": weights(2, 3)}
    model = normal(tmp_path, proto)
    assert "k" in model.graph.initializers
    same_outputs(run(proto, x), run(written(tmp_path, model), x))
    edit.set_array(model.graph.initializers["b/shared_1"], np.zeros(3, np.float32))
    edit.insert_before(
        model.graph[0], 1, "Mul", [edit.add_initializer(model.graph, "mask", np.ones(3), ir.DataType.FLOAT)]
    )
    again = written(tmp_path, model)
    assert [v.name for v in again.graph.input] == ["b", "x", "c"]
    assert [t.name for t in again.graph.initializer] == ["b", "c"]
    assert [n.output[0] for n in again.graph.node if n.op_type == "Constant"] == ["k", "b/shared_1", "mask"]
    arrays = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    expected = x["x"] + arrays["b"] + arrays["c"] + weights(3)
    np.testing.assert_allclose(run(again, x)["z"], expected, rtol=1e-6)


def test_listed_initializers_that_nothing_uses(tmp_path):
    """One that nothing used from the start is an input that callers may feed; one that became unused goes."""
    proto = listing_model(8)
    proto.graph.input.append(info("idle", [7]))
    proto.graph.initializer.append(numpy_helper.from_array(weights(7), "idle"))
    proto.graph.initializer.append(numpy_helper.from_array(weights(7), "unlisted"))
    model = normal(tmp_path, proto)
    model.graph[1].replace_input_with(1, model.graph.initializers["b"])
    again = written(tmp_path, model)
    assert [v.name for v in again.graph.input] == ["b", "x", "idle"]
    assert [t.name for t in again.graph.initializer] == ["b", "idle"]


# ----------------------------------------------------------------------------------------------- twins


def twins_model(tmp_path, users=4):
    nodes = [
        helper.make_node("Add", ["x" if n == 0 else f"h{n - 1}", "b"], [f"h{n}"], name=f"n{n}")
        for n in range(users)
    ]
    proto = model_of(nodes, [info("x", [2, 3])], [info(f"h{users - 1}", [2, 3])], {"b": weights(3)})
    return normal(tmp_path, proto)


def used(proto):
    return {node.name: node.input[1] for node in proto.graph.node}


def test_twins_that_still_agree_are_merged(tmp_path):
    assert used(written(tmp_path, twins_model(tmp_path))) == dict.fromkeys(["n0", "n1", "n2", "n3"], "b")


def test_twins_that_changed_alike_are_merged_with_the_original(tmp_path):
    model = twins_model(tmp_path)
    for value in model.graph.initializers.values():
        edit.set_array(value, value.const_value.numpy()[:1])
    assert used(written(tmp_path, model)) == dict.fromkeys(["n0", "n1", "n2", "n3"], "b")


def test_twins_that_differ_stay_apart(tmp_path):
    model = twins_model(tmp_path)
    for name, size in (("b/shared_1", 1), ("b/shared_3", 1)):
        edit.set_array(model.graph.initializers[name], weights(3)[:size])
    again = written(tmp_path, model)
    assert used(again) == {"n0": "b", "n1": "b/shared_1", "n2": "b", "n3": "b/shared_1"}
    assert [t.name for t in again.graph.initializer] == ["b", "b/shared_1"]


def test_an_original_that_is_gone(tmp_path):
    model = twins_model(tmp_path)
    model.graph[0].replace_input_with(
        1, edit.add_initializer(model.graph, "other", np.zeros(3), ir.DataType.FLOAT)
    )
    edit.drop_unused(model.graph)
    assert used(written(tmp_path, model)) == {
        "n0": "other",
        **dict.fromkeys(["n1", "n2", "n3"], "b/shared_1"),
    }


def test_lazy_twins_are_compared_by_content(tmp_path):
    model = twins_model(tmp_path)
    for value in model.graph.initializers.values():
        edit.set_lazy(value, (1,), lambda: weights(3)[:1])
    assert used(written(tmp_path, model)) == dict.fromkeys(["n0", "n1", "n2", "n3"], "b")


def test_equal_initializers_that_never_were_one_are_left_alone(tmp_path):
    proto = listing_model(8)
    proto.graph.initializer[1].CopyFrom(numpy_helper.from_array(weights(3), "c"))
    unchanged(tmp_path, proto)


def test_twins_survive_clones(tmp_path):
    model = twins_model(tmp_path).clone().clone()
    assert used(written(tmp_path, model)) == dict.fromkeys(["n0", "n1", "n2", "n3"], "b")


def test_same_bytes_but_another_type_or_shape_are_not_the_same(tmp_path):
    nodes = [helper.make_node("Cast", ["b"], [f"y{n}"], to=1, name=f"n{n}") for n in range(3)]
    proto = model_of(nodes, [], [info(f"y{n}") for n in range(3)], {"b": np.zeros(2, np.int32)})
    model = normal(tmp_path, proto)
    edit.set_tensor(model.graph.initializers["b/shared_1"], edit.tensor(np.zeros(2), ir.DataType.FLOAT))
    edit.set_tensor(model.graph.initializers["b/shared_2"], edit.tensor(np.zeros((2, 1)), ir.DataType.INT32))
    again = written(tmp_path, model)
    assert [node.input[0] for node in again.graph.node] == ["b", "b/shared_1", "b/shared_2"]


# ---------------------------------------------------------------------------------------- stale shapes


def test_shapes_that_no_longer_hold_are_dropped(tmp_path):
    proto = perceptron()
    proto.graph.value_info.extend([info("h", ["n", 4]), info("s", ["n", 4]), info("r", ["n", 4, 1])])
    assert [v.name for v in written(tmp_path, normal(tmp_path, perceptron())).graph.value_info] == []
    model = normal(tmp_path, proto)
    for name, index in (("W", np.s_[:, :2]), ("b", np.s_[:2]), ("V", np.s_[:2])):
        edit.set_array(
            model.graph.initializers[name], model.graph.initializers[name].const_value.numpy()[index]
        )
    model.graph[0].outputs[0].shape = ir.Shape(["n", 2])
    again = written(tmp_path, model)
    kept = {v.name: v.type.tensor_type.HasField("shape") for v in again.graph.value_info}
    assert kept == {"h": True, "s": False, "r": False}
    assert again.graph.value_info[0].type.tensor_type.shape.dim[0].dim_param == "n"


def test_shapes_of_outputs_stay_as_declared(tmp_path):
    """They are the interface; onnxruntime warns where they are wrong, and runs."""
    proto = perceptron()
    proto.graph.output[0].CopyFrom(info("y", ["n", 7]))
    model = normal(tmp_path, proto)
    assert finalize(model).graph.outputs[0].shape == ir.Shape(["n", 7])


def test_types_that_inference_filled_in_are_not_written(tmp_path):
    from onnxprune.model.shapes import infer_shapes

    proto = perceptron()
    proto.graph.value_info.append(info("s"))
    model = normal(tmp_path, proto)
    infer_shapes(model)
    assert all(out.type is not None for node in model.graph for out in node.outputs)
    unchanged(tmp_path, proto)


def test_nodes_that_are_no_longer_used_are_dropped(tmp_path):
    nodes = [
        helper.make_node("Shape", ["x"], ["sh"]),
        helper.make_node("Cast", ["sh"], ["f"], to=1),
        helper.make_node("ReduceProd", ["f"], ["p"]),
        helper.make_node("Div", ["x", "p"], ["y"]),
    ]
    model = normal(tmp_path, model_of(nodes, [info("x", [2, 3])], [info("y", [2, 3])]))
    model.graph[3].replace_input_with(
        1, edit.add_initializer(model.graph, "six", np.array(6), ir.DataType.FLOAT)
    )
    again = written(tmp_path, model)
    assert [node.op_type for node in again.graph.node] == ["Div"]
    np.testing.assert_allclose(run(again, {"x": weights(2, 3)})["y"], weights(2, 3) / 6, rtol=1e-6)


# ------------------------------------------------------------------------------------------- subgraphs


def controlled():
    """If, Loop and Scan, with initializers of their own and values from outside, nested."""
    flag_type, flag = onnx.TensorProto.BOOL, helper.make_tensor("v", onnx.TensorProto.BOOL, [], [1])
    inner_if = helper.make_node(
        "If",
        ["go"],
        ["added"],
        name="inner",
        then_branch=helper.make_graph(
            [helper.make_node("Add", ["state", "w"], ["t"])], "then", [], [info("t", None)]
        ),
        else_branch=helper.make_graph(
            [helper.make_node("Mul", ["state", "own"], ["e"])],
            "else",
            [],
            [info("e", None)],
            [numpy_helper.from_array(weights(3, seed=8), "own")],
        ),
    )
    loop = helper.make_graph(
        [
            inner_if,
            helper.make_node("Add", ["added", "step"], ["next"]),
            helper.make_node("Identity", ["go"], ["goes"]),
        ],
        "loop",
        [info("i", [], INT64), info("go", [], flag_type), info("state", None)],
        [info("goes", [], flag_type), info("next", None), info("added", None)],
        [numpy_helper.from_array(weights(3, seed=9), "step")],
    )
    scan = helper.make_graph(
        [helper.make_node("Add", ["total", "row"], ["sum"]), helper.make_node("Mul", ["sum", "w"], ["out"])],
        "scan",
        [info("total", [3]), info("row", [3])],
        [info("sum", [3]), info("out", [3])],
    )
    nodes = [
        helper.make_node("Constant", [], ["yes"], value=flag, name="const"),
        helper.make_node("Add", ["x", "w"], ["start"], name="before"),
        helper.make_node("Loop", ["n", "yes", "start"], ["last", "all"], body=loop, name="loop"),
        helper.make_node("Scan", ["w", "last"], ["sum_", "y"], body=scan, num_scan_inputs=1, name="scan"),
        helper.make_node("Add", ["all", "w"], ["z"], name="after"),
    ]
    arrays = {"w": weights(3), "n": np.array(3, np.int64)}
    return model_of(nodes, [info("x", [2, 3])], [info("y", [2, 3]), info("z", ["k", 2, 3])], arrays)


def test_subgraphs_survive(tmp_path):
    proto = controlled()
    model = normal(tmp_path, proto)
    assert [v.name for v in (model.graph[0].inputs[1], model.graph[-1].inputs[1])] == [
        "w/shared_3",
        "w/shared_2",
    ]
    for copy in (model, model.clone().clone()):
        again = written(tmp_path, copy)
        for feed in ({"x": weights(2, 3)}, {"x": -weights(2, 3, seed=4)}):
            same_outputs(run(proto, feed), run(again, feed))
        assert [t.name for t in again.graph.initializer] == ["w", "n", "yes"]
        bodies = {n.name: n for n in again.graph.node}
        originals = {n.name: n for n in proto.graph.node}
        assert bodies["loop"] == originals["loop"] and bodies["scan"] == originals["scan"]
