"""Arithmetic on weights alone becomes a weight; the model that is saved gives the same outputs."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from small_models import (
    FLOAT,
    array_of,
    info,
    model_of,
    normal,
    read,
    round_trip,
    run,
    same_outputs,
    weights,
)

from onnxprune import analyze
from onnxprune.model import constants
from onnxprune.model.normalize import normalize
from onnxprune.testing import check_model

EXACT = 1e-6


def node(op_type, inputs, outputs, **attributes):
    return helper.make_node(op_type, inputs.split(), outputs.split(), name=outputs.split()[0], **attributes)


def standardised(name, x, y, opset=17):
    """y = Conv(x, gain (W - mean) / sqrt(var + eps)), mean and variance over all but the filters."""
    inputs, axes = ("", {"axes": [1, 2, 3]}) if opset < 18 else (" axes", {})
    n = name
    return [
        node("ReduceMean", f"{n}{inputs}", f"{n}.mean", **axes),
        node("Sub", f"{n} {n}.mean", f"{n}.centred"),
        node("Mul", f"{n}.centred {n}.centred", f"{n}.square"),
        node("ReduceMean", f"{n}.square{inputs}", f"{n}.var", **axes),
        node("Add", f"{n}.var eps", f"{n}.padded"),
        node("Sqrt", f"{n}.padded", f"{n}.std"),
        node("Div", f"{n}.centred {n}.std", f"{n}.unit"),
        node("Mul", f"{n}.unit {n}.gain", f"{n}.final"),
        node("Conv", f"{x} {n}.final", y),
    ]


def standardised_stack(opset=17):
    nodes = [
        *standardised("a", "x", "h", opset),
        node("Relu", "h", "r"),
        *standardised("b", "r", "k", opset),
        node("Relu", "k", "s"),
        node("Conv", "s c", "y"),
    ]
    arrays = {
        "a": weights(8, 3, 3, 3),
        "a.gain": weights(8, 1, 1, 1, seed=1),
        "b": weights(6, 8, 3, 3, seed=2) + 3,  # a mean to be taken away
        "b.gain": weights(6, 1, 1, 1, seed=3),
        "c": weights(2, 6, 1, 1, seed=4),
        "eps": np.float32(1e-5),
    }
    if opset >= 18:
        arrays["axes"] = np.array([1, 2, 3])
    return model_of(nodes, [info("x", [1, 3, 9, 9])], [info("y", [1, 2, 5, 5])], arrays, opset=opset)


@pytest.mark.parametrize("opset", [13, 17, 18, 20])
def test_standardised_weights(tmp_path, opset):
    proto = standardised_stack(opset)
    model = normal(tmp_path, proto)
    assert [n.op_type for n in model.graph] == ["Conv", "Relu", "Conv", "Relu", "Conv"]
    assert list(model.graph.initializers) == ["c", "a.final", "b.final"]
    x = {"x": weights(1, 3, 9, 9, seed=5)}
    same_outputs(run(proto, x, optimize=False), run(round_trip(tmp_path, model), x), exact=False, rtol=EXACT)
    proto.graph.output.append(info("b.final"))
    theirs = run(proto, x, optimize=False)["b.final"]
    np.testing.assert_allclose(array_of(model, "b.final"), theirs, rtol=0, atol=EXACT * np.abs(theirs).max())


def test_standardised_weights_can_be_pruned(tmp_path):
    """Without folding, the mean over a weight's channels blocks them."""
    model = read(tmp_path, standardised_stack())
    checked = check_model(model)
    assert [group.units for group in checked.groups] == [8, 6]
    analysis = analyze(tmp_path / "in.onnx")
    assert [blocked.layers for blocked in analysis.blocked] == [("y",)]  # the last one, a graph output
    kinds = {value.name: p.kind for value, p in analysis.axis_graph.parameters.items()}
    assert kinds == dict.fromkeys(("a.final", "b.final", "c"), "weight")


TO_ONE_WEIGHT = {
    "transposed": ([node("Transpose", "w", "v", perm=[1, 0])], {"w": weights(8, 4)}),
    "transposed back and forth": (
        [node("Transpose", "w", "t", perm=[1, 0]), node("Transpose", "t", "v", perm=[1, 0])],
        {"w": weights(4, 8)},
    ),
    "normalised": (
        [
            node("ReduceL2", "w", "norm", axes=[0]),
            node("Div", "w norm", "unit"),
            node("Mul", "unit g", "v"),
        ],
        {"w": weights(4, 8), "g": weights(1, 8, seed=1)},
    ),
    "low-rank update": (
        [node("MatMul", "a b", "d"), node("Mul", "d scale", "e"), node("Add", "w e", "v")],
        {
            "w": weights(4, 8),
            "a": weights(4, 2, seed=1),
            "b": weights(2, 8, seed=2),
            "scale": np.float32(0.5),
        },
    ),
    "masked": (
        [node("Where", "mask w zero", "v")],
        {"w": weights(4, 8), "mask": np.tri(4, 8) > 0, "zero": np.float32(0)},
    ),
    "a slice and its padding": (
        [node("Slice", "w from to dim", "s"), node("Concat", "s u", "v", axis=0)],
        {
            "w": weights(5, 8),
            "u": weights(1, 8),
            "from": np.array([0]),
            "to": np.array([3]),
            "dim": np.array([0]),
        },
    ),
    "reshaped": ([node("Reshape", "w shape", "v")], {"w": weights(2, 2, 8), "shape": np.array([-1, 8])}),
    "batch normalisation in training": (
        [
            node("Reshape", "w flat", "f"),
            node("BatchNormalization", "f g z m o", "u p q", training_mode=1, epsilon=1e-6),
            node("Reshape", "u shape", "v"),
        ],
        {
            "w": weights(4, 8),
            "flat": np.array([1, 4, 8]),
            "shape": np.array([4, 8]),
            "g": weights(4, seed=1),
            "z": np.zeros(4, np.float32),
            "m": np.zeros(4, np.float32),
            "o": np.ones(4, np.float32),
        },
    ),
}


@pytest.mark.parametrize("name", TO_ONE_WEIGHT)
def test_one_weight_of_several(tmp_path, name):
    """`x v`, where v of shape (4, 8) or (4, 8) again is made of initializers."""
    nodes, arrays = TO_ONE_WEIGHT[name]
    proto = model_of([*nodes, node("MatMul", "x v", "y")], [info("x", [2, 4])], [info("y")], arrays)
    model = normal(tmp_path, proto)
    assert [n.op_type for n in model.graph] == ["MatMul"] and list(model.graph.initializers) == ["v"]
    assert model.graph.initializers["v"].dtype.value == FLOAT
    x = {"x": weights(2, 4, seed=9)}
    same_outputs(run(proto, x, optimize=False), run(round_trip(tmp_path, model), x), exact=False, rtol=EXACT)


def test_several_weights_of_one(tmp_path):
    """A packed projection, cut into three by the exporter."""
    nodes = [node("Split", "w", "q k v", axis=1)]
    nodes += [node("MatMul", f"x {n}", f"{n}y") for n in "qkv"]
    nodes += [node("Sum", "qy ky vy", "y")]
    proto = model_of(nodes, [info("x", [2, 4])], [info("y")], {"w": weights(4, 9)})
    model = normal(tmp_path, proto)
    assert list(model.graph.initializers) == ["q", "k", "v"]
    x = {"x": weights(2, 4, seed=9)}
    same_outputs(run(proto, x, optimize=False), run(round_trip(tmp_path, model), x))


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_types_are_moved_exactly(tmp_path, dtype):
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    nodes = [node("Transpose", "w", "v"), node("MatMul", "x v", "y")]
    array = weights(8, 4).astype(dtype)
    proto = model_of(nodes, [info("x", [2, 4], kind)], [info("y", None, kind)], {"w": array})
    found = array_of(normal(tmp_path, proto), "v")
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, array.T)


def test_external_weights(tmp_path):
    onnx.save(
        standardised_stack(),
        tmp_path / "in.onnx",
        save_as_external_data=True,
        location="in.bin",
        size_threshold=0,
    )
    model = normalize(analyze(tmp_path / "in.onnx").source.ir)
    assert list(model.graph.initializers) == ["c", "a.final", "b.final"]
    x = {"x": weights(1, 3, 9, 9, seed=5)}
    expected = run(standardised_stack(), x, optimize=False)
    same_outputs(expected, run(round_trip(tmp_path, model), x), exact=False, rtol=EXACT)


def test_normalising_twice_changes_nothing_more(tmp_path):
    once = normal(tmp_path, standardised_stack())
    twice = normalize(once)
    assert list(twice.graph.initializers) == list(once.graph.initializers)
    np.testing.assert_array_equal(array_of(once, "a.final"), array_of(twice, "a.final"))


# ------------------------------------------------------------------------------------------- what stays


def inner(op_type, inputs):
    """A body that reads a value from outside."""
    return helper.make_graph([helper.make_node(op_type, inputs, ["in"])], "b", [], [info("in")])


W = {"w": weights(4, 8)}
STAYS = {
    "the weight is used elsewhere": (
        [node("Transpose", "w", "t"), node("MatMul", "x w", "h"), node("MatMul", "h t", "y")],
        W,
    ),
    "it would get larger": (
        [node("MatMul", "a b", "v"), node("MatMul", "x v", "y")],
        {"a": weights(4, 1), "b": weights(1, 8)},
    ),
    "an expansion": (
        [node("Expand", "row shape", "v"), node("MatMul", "x v", "y")],
        {"row": weights(1, 8), "shape": np.array([4, 8])},
    ),
    "it would get larger on the way": (
        [
            node("MatMul", "a b", "big"),
            node("ReduceMax", "big", "v", axes=[0]),
            node("ReduceMax", "x", "m", axes=[1]),
            node("Mul", "m v", "y"),
        ],
        {"a": weights(9000, 1), "b": weights(1, 9000)},
    ),
    "it is a graph output": ([node("Neg", "w", "v"), node("MatMul", "x v", "y")], W, ["v"]),
    "numbers only": (
        [node("Sqrt", "d", "r"), node("Div", "x r", "y")],
        {"d": np.float32(64)},
    ),
    "integers": (
        [node("Add", "a b", "s"), node("Reshape", "x s", "y")],
        {"a": np.array([0, 3]), "b": np.array([4, -1])},
    ),
    "an operator that draws": (
        [node("RandomNormalLike", "w", "n"), node("Add", "w n", "v"), node("MatMul", "x v", "y")],
        W,
    ),
    "not finite": ([node("Log", "w", "v"), node("MatMul", "x v", "y")], W),
    "fed by the caller": (
        [node("Neg", "w", "v"), node("MatMul", "x v", "y")],
        W,
        [],
        [info("w", [4, 8])],
    ),
    "used inside a body": (
        [
            node("Neg", "w", "v"),
            node(
                "If",
                "flag",
                "y",
                then_branch=inner("MatMul", ["x", "v"]),
                else_branch=inner("MatMul", ["x", "v"]),
            ),
        ],
        {"w": weights(4, 8), "flag": np.array(True)},
    ),
}


@pytest.mark.parametrize("name", STAYS)
def test_what_stays(tmp_path, name):
    nodes, arrays, outputs, listed = _fill(*STAYS[name])
    proto = model_of(nodes, [info("x", [2, 4]), *listed], [info("y"), *(info(o) for o in outputs)], arrays)
    model = normal(tmp_path, proto)
    assert [n.op_type for n in model.graph] == [n.op_type for n in nodes]
    assert set(model.graph.initializers) == set(arrays)


def _fill(nodes, arrays, outputs=(), listed=()):
    return nodes, arrays, outputs, listed


def test_shapes_of_weights_are_read_from_what_is_made(tmp_path):
    """They are to follow what is cut, so they are not folded."""
    nodes = [
        node("Neg", "w", "v"),
        node("Shape", "v", "s"),
        node("MatMul", "x v", "h"),
        node("Reshape", "h s", "y"),
    ]
    proto = model_of(nodes, [info("x", [4, 4])], [info("y")], W)
    model = normal(tmp_path, proto)
    assert [n.op_type for n in model.graph] == ["Shape", "MatMul", "Reshape"]
    x = {"x": weights(4, 4, seed=9)}
    same_outputs(run(proto, x), run(round_trip(tmp_path, model), x))


def test_half_precision_is_not_calculated_with(tmp_path):
    """onnxruntime may round after every node, or never."""
    half = onnx.TensorProto.FLOAT16
    nodes = [node("Exp", "w", "v"), node("MatMul", "x v", "y")]
    arrays = {"w": weights(4, 8).astype(np.float16)}
    model = normal(tmp_path, model_of(nodes, [info("x", [2, 4], half)], [info("y", None, half)], arrays))
    assert [n.op_type for n in model.graph] == ["Exp", "MatMul"]


def test_large_weights_are_left_alone(tmp_path, monkeypatch):
    nodes = [node("Transpose", "w", "v"), node("MatMul", "x v", "y")]
    proto = model_of(nodes, [info("x", [2, 4])], [info("y")], {"w": weights(8, 4)})
    monkeypatch.setattr(constants, "LIMIT", 8 * 4 * 4)
    assert [n.op_type for n in normal(tmp_path, proto).graph] == ["MatMul"]
    monkeypatch.setattr(constants, "LIMIT", 8 * 4 * 4 - 1)
    assert [n.op_type for n in normal(tmp_path, proto).graph] == ["Transpose", "MatMul"]


def test_broken_arithmetic_is_left_to_others(tmp_path):
    """What onnx cannot evaluate stays as it is; running it will say what is wrong."""
    nodes = [
        node("Add", "w u", "v"),
        node("Neg", "w2", "n"),
        node("MatMul", "x v", "h"),
        node("Add", "h n", "y"),
    ]
    arrays = {"w": weights(4, 8), "u": weights(3, 8), "w2": weights(2, 8)}
    model = normal(tmp_path, model_of(nodes, [info("x", [2, 4])], [info("y")], arrays))
    assert [n.op_type for n in model.graph] == ["Add", "MatMul", "Add"]


def test_parts_are_independent(tmp_path):
    """One epsilon for all layers joins nothing: a part that stays does not hold the others."""
    tensor = numpy_helper.from_array(np.float32(1e-3), "eps")
    nodes = [
        node("Add", "w eps", "v"),
        node("Add", "u eps", "t"),
        node("MatMul", "x v", "h"),
        node("MatMul", "h t", "k"),
        node("MatMul", "k u", "y"),
    ]
    arrays = [
        numpy_helper.from_array(weights(4, 4), "w"),
        numpy_helper.from_array(weights(4, 4), "u"),
        tensor,
    ]
    model = normal(tmp_path, model_of(nodes, [info("x", [2, 4])], [info("y")], arrays))
    assert [n.op_type for n in model.graph] == ["Add", "MatMul", "MatMul", "MatMul"]
    assert set(model.graph.initializers) == {"v", "u", "eps"}


def zeros_in_a_bias(shape):
    """The middle third of a bias set to zero, as Swin V2 does to its keys: zeros expanded and scattered."""
    nodes = [
        node("Expand", "zero extent", "zeros"),
        node("ScatterND", "b where zeros", "v"),
        node("MatMul", "x w", "h"),
        node("Add", "h v", "y"),
    ]
    arrays = {
        "zero": np.zeros(1, np.float32),
        "extent": np.array(shape),
        "b": weights(6),
        "where": np.array([[2], [3]]),
        "w": weights(4, 6),
    }
    return nodes, arrays


def test_zeros_scattered_into_a_bias(tmp_path):
    nodes, arrays = zeros_in_a_bias([2])
    proto = model_of(nodes, [info("x", [2, 4])], [info("y")], arrays)
    model = normal(tmp_path, proto)
    assert [n.op_type for n in model.graph] == ["MatMul", "Add"]
    x = {"x": weights(2, 4, seed=9)}
    same_outputs(run(proto, x), run(round_trip(tmp_path, model), x))


def test_values_that_grow_for_others_stay(tmp_path):
    """Zeros that an activation needs, too, are expanded when the model runs, and what they fill stays with them."""
    nodes, arrays = zeros_in_a_bias([2])
    nodes.append(node("Add", "u zeros", "z"))
    proto = model_of(nodes, [info("x", [2, 4]), info("u", [3, 2])], [info("y"), info("z")], arrays)
    model = normal(tmp_path, proto)
    assert [n.op_type for n in model.graph] == ["Expand", "ScatterND", "MatMul", "Add", "Add"]
    x = {"x": weights(2, 4, seed=9), "u": weights(3, 2, seed=8)}
    same_outputs(run(proto, x), run(round_trip(tmp_path, model), x))
