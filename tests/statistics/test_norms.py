"""BatchNormalization as a linear map: normalised rows times the scale are what onnxruntime computes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune.analysis import analyze
from onnxprune.calibrate.sessions import open_session, run
from onnxprune.statistics.collect import consumers
from onnxprune.statistics.consumers import consumer_of
from onnxprune.statistics.norms import Norm, linear_map_of, norm_of
from onnxprune.statistics.probes import Geometry, Probe

PARTS = ("scale", "shift", "mean", "variance")


def parameters(channels=5, dtype=np.float32, seed=0):
    rng = np.random.default_rng(seed)
    arrays = {part: rng.standard_normal(channels).astype(dtype) for part in PARTS[:3]}
    return {**arrays, "variance": rng.uniform(0.1, 2, channels).astype(dtype)}


def model_of(rank=4, dtype=np.float32, arrays=None, opset=17, inputs=(), outputs=1, **attributes):
    """A model of one BatchNormalization; parameters that are in `inputs` are inputs of the graph."""
    arrays = parameters() if arrays is None else arrays
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    names = ["y", "running_mean", "running_variance"][:outputs]
    node = helper.make_node("BatchNormalization", ["x", *PARTS], names, **attributes)
    shape = ["n", len(arrays["scale"]), 4, 3, 2][:rank]
    graph = helper.make_graph(
        [node],
        "norm",
        [
            helper.make_tensor_value_info("x", kind, shape),
            *(helper.make_tensor_value_info(name, TensorProto.FLOAT, [5]) for name in inputs),
        ],
        [helper.make_tensor_value_info(name, kind, None) for name in names],
        [numpy_helper.from_array(array, name) for name, array in arrays.items() if name not in inputs],
    )
    return ir.from_proto(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    )


def rows_of(model, x, share):
    """Rows of input and output at drawn positions."""
    norm = norm_of(next(iter(model.graph)))
    assert isinstance(norm, Norm), norm
    geometry = Geometry(norm, x.shape, x.shape, unit=len(x))
    drawn = geometry.draw(np.random.default_rng(0), share, len(x))
    probed = model.clone()
    probe = Probe(probed.graph, norm, "probe", geometry.count(share))
    values = {v.name: v for v in (*probed.graph.inputs, *(o for n in probed.graph for o in n.outputs))}
    rows = probe.input_rows(values["x"])
    count = geometry.drawn_rows(drawn, len(x))
    out = probe.in_groups(probe.output_rows(values["y"], norm.outputs), norm.outputs)
    names = [probe.show(rows, "x"), probe.show(out, "y"), *probe.moments(rows)]
    got = run(open_session(probed), {"x": x, **probe.feed(drawn, count)}, names)
    assert got["probe/x"].shape == (5, count, 1)
    return norm, [got[name].astype(np.float64) for name in names]


@pytest.mark.parametrize("rank", [2, 3, 4, 5])
@pytest.mark.parametrize("share", [1.0, 0.4])
def test_normalised_rows_times_the_scale_are_the_output(rank, share):
    model = model_of(rank, epsilon=0.01)
    x = np.random.default_rng(1).standard_normal((6, 5, 4, 3, 2)[:rank]).astype(np.float32)
    norm, (rows, out, total, gram) = rows_of(model, x, share)
    made = rows @ norm.matrix().transpose(0, 2, 1) + norm.bias_vector().reshape(5, 1, 1)
    np.testing.assert_allclose(made, out, rtol=0, atol=1e-5 * np.abs(out).max())
    np.testing.assert_allclose(gram, rows.transpose(0, 2, 1) @ rows, rtol=1e-4)
    np.testing.assert_allclose(total, rows.sum(axis=1, keepdims=True), rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(norm.from_matrix(norm.matrix()), norm.array)
    np.testing.assert_array_equal(norm.to_bias(norm.bias_vector()), norm.bias.const_value.numpy())


@pytest.mark.parametrize(("dtype", "inner"), [(np.float16, np.float16), (np.float16, np.float32)])
def test_half_precision_also_where_the_parameters_have_another_type(dtype, inner):
    """From opset 15 on input and parameters may differ in type."""
    model = model_of(dtype=dtype, arrays=parameters(dtype=inner))
    x = np.random.default_rng(1).standard_normal((6, 5, 4, 3)).astype(dtype)
    norm, (rows, out, *_) = rows_of(model, x, 1.0)
    made = rows @ norm.matrix().transpose(0, 2, 1) + norm.bias_vector().reshape(5, 1, 1)
    np.testing.assert_allclose(made, out, rtol=0, atol=4e-3 * np.abs(out).max())


def test_moments_lose_no_digits_where_the_mean_is_large():
    arrays = parameters()
    arrays["mean"] += 1000
    x = np.random.default_rng(1).standard_normal((600, 5, 4, 3)).astype(np.float32)
    x += arrays["mean"].reshape(1, -1, 1, 1)
    norm, (_, _, total, gram) = rows_of(model_of(arrays=arrays), x, 1.0)
    rows = x.astype(np.float64).transpose(1, 0, 2, 3).reshape(5, -1)
    found = gram[:, 0, 0] / rows.shape[1] - (total[:, 0, 0] / rows.shape[1]) ** 2
    np.testing.assert_allclose(found, rows.var(axis=1) / norm.variance, rtol=1e-4)


def broken(part, array):
    return {"arrays": {**parameters(), part: np.asarray(array, np.float32)}}


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"training_mode": 1}, "inference form"),
        ({"outputs": 3, "training_mode": 1}, "inference form"),
        ({"outputs": 3, "opset": 9}, "inference form"),
        ({"opset": 6}, "inference form"),
        ({"opset": 7, "spatial": 0}, "inference form"),
        ({"inputs": ["mean"]}, "computed"),
        (broken("scale", np.ones((5, 4, 3))), "no vectors"),
        (broken("shift", [1.0]), "no vectors"),
        (broken("variance", -np.ones(5)), "variance is not positive"),
        (broken("variance", np.full(5, np.nan)), "variance is not positive"),
    ],
)
def test_why_a_norm_is_no_linear_map(options, why):
    found = norm_of(next(iter(model_of(**options).graph)))
    assert isinstance(found, str) and why in found


@pytest.mark.parametrize("opset", [7, 9, 14, 15, 21])
def test_opsets_with_running_statistics_are_all_known(opset):
    assert isinstance(norm_of(next(iter(model_of(opset=opset).graph))), Norm)


def test_a_norm_consumes_no_units(tmp_path):
    """It sums over no channels: the elimination must not see it."""
    model = model_of()
    node = next(iter(model.graph))
    assert isinstance(consumer_of(node), str) and isinstance(linear_map_of(node), Norm)
    ir.save(model, tmp_path / "norm.onnx")
    assert consumers(analyze(tmp_path / "norm.onnx").axis_graph) == {}
