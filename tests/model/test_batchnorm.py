from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx import helper
from small_models import check, info, model_of, run, weights, write

from onnxprune.model import io
from onnxprune.model.batchnorm import fold_batchnorm
from onnxprune.model.finalize import finalize
from onnxprune.model.normalize import normalize

NORM = ["scale", "shift", "mean", "var"]


def norm_arrays(channels, seed=50):
    rng = np.random.default_rng(seed)
    return {
        "scale": rng.normal(size=channels).astype(np.float32),
        "shift": rng.normal(size=channels).astype(np.float32),
        "mean": rng.normal(size=channels).astype(np.float32),
        "var": rng.uniform(0.1, 3, channels).astype(np.float32),
    }


def normed(layer, shape, channels, arrays, **options):
    """x -> layer (a node with input x and output h) -> BatchNormalization -> y."""
    norm = helper.make_node("BatchNormalization", ["h", *NORM], ["y"], name="norm", **options.pop("norm", {}))
    arrays = {**arrays, **norm_arrays(channels)}
    return model_of([layer, norm], [info("x", shape)], [info("y")], arrays, **options)


def folded(tmp_path, proto, *, times=1, x=None, rtol=1e-5):
    """Fold; `times` BatchNormalizations must go, the outputs must stay, the original must not change."""
    model = normalize(io.load(write(tmp_path / "in.onnx", proto)).ir)
    before = ir.to_proto(model)
    result = fold_batchnorm(model)
    assert ir.to_proto(model) == before

    def count(m):
        return sum(node.op_type == "BatchNormalization" for node in m.graph)

    assert count(model) - count(result) == times
    path = tmp_path / "out.onnx"
    io.save(finalize(result), path, force=True)
    check(path)
    feed = {} if x is None else {"x": x}
    expected, got = run(proto, feed, optimize=False), run(path, feed, optimize=False)
    assert list(expected) == list(got)
    for name, array in expected.items():
        np.testing.assert_allclose(got[name], array, rtol=rtol, atol=rtol * np.abs(array).max())
    return result


CONVOLUTIONS = {
    "plain": ("Conv", (6, 4, 3, 3), 6, (2, 4, 8, 8), {"pads": [1, 1, 1, 1]}),
    "1d": ("Conv", (6, 4, 3), 6, (2, 4, 9), {"strides": [2]}),
    "3d": ("Conv", (5, 2, 2, 2, 2), 5, (1, 2, 4, 4, 4), {}),
    "grouped": ("Conv", (6, 2, 3, 3), 6, (2, 4, 8, 8), {"group": 2}),
    "depthwise": ("Conv", (4, 1, 3, 3), 4, (2, 4, 8, 8), {"group": 4}),
    "transposed": ("ConvTranspose", (4, 6, 3, 3), 6, (2, 4, 5, 5), {"strides": [2, 2]}),
    "transposed grouped": ("ConvTranspose", (4, 3, 3, 3), 6, (2, 4, 5, 5), {"group": 2}),
    "transposed depthwise": ("ConvTranspose", (4, 1, 3), 4, (2, 4, 5), {"group": 4}),
}


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions(tmp_path, name, bias):
    op, shape, channels, x, attributes = CONVOLUTIONS[name]
    arrays = {"w": weights(*shape), **({"b": weights(channels, seed=1)} if bias else {})}
    layer = helper.make_node(op, ["x", *arrays], ["h"], name="layer", **attributes)
    result = folded(tmp_path, normed(layer, x, channels, arrays), x=weights(*x, seed=2))
    assert [node.name for node in result.graph] == ["layer"]
    assert list(result.graph.initializers) == (["w", "b"] if bias else ["w", "w/bias"])
    assert [v.name for v in result.graph.outputs] == ["y"]


@pytest.mark.parametrize("bias", [None, (5,), (1, 5), (1,), (), (1, 1)])
@pytest.mark.parametrize(
    "attributes", [{}, {"transB": 1}, {"alpha": 0.5, "beta": 2.0}, {"transA": 1}, {"beta": 0.0}]
)
def test_gemm(tmp_path, bias, attributes):
    shape = (5, 3) if attributes.get("transB") else (3, 5)
    arrays = {"w": weights(*shape)} | ({} if bias is None else {"b": weights(*bias, seed=1)})
    layer = helper.make_node("Gemm", ["x", *arrays], ["h"], name="layer", **attributes)
    x = (3, 7) if attributes.get("transA") else (7, 3)
    folded(tmp_path, normed(layer, x, 5, arrays), x=weights(*x, seed=2))


def test_chains_and_residuals(tmp_path):
    """Two layers in a row, and a sum between a normed branch and the input."""
    arrays, nodes, source = {}, [], "x"
    for number in range(2):
        arrays |= {f"{k}{number}": v for k, v in norm_arrays(4, seed=number).items()}
        arrays[f"w{number}"] = weights(4, 4, 3, 3, seed=number + 9)
        nodes += [
            helper.make_node("Conv", [source, f"w{number}"], [f"c{number}"], pads=[1, 1, 1, 1]),
            helper.make_node(
                "BatchNormalization", [f"c{number}", *(f"{k}{number}" for k in NORM)], [f"n{number}"]
            ),
        ]
        source = f"n{number}"
    nodes.append(helper.make_node("Add", ["n1", "x"], ["y"]))
    shape = [1, 4, 6, 6]
    proto = model_of(nodes, [info("x", shape)], [info("y"), info("n0")], arrays)
    result = folded(tmp_path, proto, times=2, x=weights(*shape, seed=3))
    assert [node.op_type for node in result.graph] == ["Conv", "Conv", "Add"]


def test_a_large_epsilon_counts(tmp_path):
    layer = helper.make_node("Conv", ["x", "w"], ["h"])
    proto = normed(layer, (1, 3, 4, 4), 2, {"w": weights(2, 3, 1, 1)}, norm={"epsilon": 0.5})
    folded(tmp_path, proto, x=weights(1, 3, 4, 4, seed=1))


def test_a_shared_bias_is_not_changed_for_others(tmp_path):
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["h"]),
        helper.make_node("BatchNormalization", ["h", *NORM], ["n"]),
        helper.make_node("Conv", ["n", "v", "b"], ["y"]),
    ]
    arrays = {"w": weights(3, 3, 1, 1), "v": weights(3, 3, 1, 1, seed=1), "b": weights(3), **norm_arrays(3)}
    proto = model_of(nodes, [info("x", [1, 3, 4, 4])], [info("y")], arrays)
    folded(tmp_path, proto, x=weights(1, 3, 4, 4, seed=2))


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_types_stay_what_they_are(tmp_path, dtype):
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    arrays = {k: v.astype(dtype) for k, v in {"w": weights(3, 4), **norm_arrays(4)}.items()}
    nodes = [
        helper.make_node("Gemm", ["x", "w"], ["h"]),
        helper.make_node("BatchNormalization", ["h", *NORM], ["y"]),
    ]
    proto = model_of(nodes, [info("x", [5, 3], kind)], [info("y", None, kind)], arrays)
    x = weights(5, 3, seed=1).astype(dtype)
    result = folded(tmp_path, proto, x=x, rtol=1e-2 if dtype == np.float16 else 1e-12)
    assert {v.dtype for v in result.graph.initializers.values()} == {ir.DataType(kind)}


def test_external_weights_stay_lazy(tmp_path):
    layer = helper.make_node("Conv", ["x", "w"], ["h"])
    proto = normed(layer, (1, 8, 4, 4), 40, {"w": weights(40, 8, 3, 3)})
    io.save(io.load(write(tmp_path / "in.onnx", proto)).ir, tmp_path / "ext.onnx", external=True)
    model = normalize(io.load(tmp_path / "ext.onnx").ir)
    result = fold_batchnorm(model)
    assert model.graph.initializers["w"].const_value.raw is None
    io.save(finalize(result), tmp_path / "out.onnx", external=True)
    x = {"x": weights(1, 8, 4, 4, seed=1)}
    expected, got = run(proto, x)["y"], run(tmp_path / "out.onnx", x)["y"]
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def kept(nodes, arrays=None, *, inputs=(), outputs=("y",), opset=17, ir_version=8):
    arrays = {"w": weights(3, 3, 1, 1), **norm_arrays(3), **(arrays or {})}
    for name in inputs:
        arrays.pop(name, None)
    listed = [info("x", [1, 3, 4, 4]), *(info(name, [3]) for name in inputs)]
    return model_of(nodes, listed, [info(n) for n in outputs], arrays, opset=opset, ir=ir_version)


def conv(target="h", weight="w"):
    return helper.make_node("Conv", ["x", weight], [target])


def norm(source="h", target="y", **attributes):
    return helper.make_node("BatchNormalization", [source, *NORM], [target], **attributes)


KEPT = {
    "output used elsewhere": kept([conv(), norm(target="n"), helper.make_node("Add", ["h", "n"], ["y"])]),
    "output is an output": kept([conv(), norm()], outputs=["y", "h"]),
    "weight used elsewhere": kept([conv(), norm(target="n"), helper.make_node("Conv", ["n", "w"], ["y"])]),
    "something between": kept([conv(), helper.make_node("Relu", ["h"], ["r"]), norm("r")]),
    "nothing before": kept([norm("x")]),
    "another layer": kept([helper.make_node("MatMul", ["x", "m"], ["h"]), norm()], {"m": weights(4, 4)}),
    "computed weight": kept([helper.make_node("Erf", ["w"], ["v"]), conv(weight="v"), norm()]),
    "computed mean": kept([conv(), norm()], inputs=["mean"]),
    "computed bias": kept([helper.make_node("Conv", ["x", "w", "b"], ["h"]), norm()], inputs=["b"]),
}


@pytest.mark.parametrize("name", KEPT)
def test_what_cannot_be_folded_stays(tmp_path, name):
    proto = KEPT[name]
    model = normalize(io.load(write(tmp_path / "in.onnx", proto)).ir)
    assert ir.to_proto(finalize(fold_batchnorm(model))) == ir.to_proto(finalize(model))


def test_training_forms_stay(tmp_path):
    training = helper.make_node("BatchNormalization", ["h", *NORM], ["y", "m", "v"], training_mode=1)
    old = helper.make_node("BatchNormalization", ["h", *NORM], ["y", "m", "v"])
    for proto in (
        kept([conv(), training]),
        kept([conv(), old], opset=9, outputs=["y", "m"]),
        kept([conv(), norm()], opset=6, ir_version=3),
    ):
        model = ir.from_proto(proto)
        assert len(fold_batchnorm(model).graph) == 2


def test_old_inference_forms_are_folded(tmp_path):
    for attributes, opset in (
        ({"is_test": 1}, 6),
        ({}, 7),
        ({"spatial": 1}, 8),
        ({}, 9),
        ({"training_mode": 0}, 14),
    ):
        model = ir.from_proto(kept([conv(), norm(**attributes)], opset=opset))
        assert [node.op_type for node in fold_batchnorm(model).graph] == ["Conv"]
    model = ir.from_proto(kept([conv(), norm(spatial=0)], opset=8))
    assert len(fold_batchnorm(model).graph) == 2
