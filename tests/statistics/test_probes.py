"""Layers as linear maps: rows times the weight's matrix are what onnxruntime computes."""

from __future__ import annotations

import itertools

import numpy as np
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

from onnxprune.calibrate.sessions import open_session, run
from onnxprune.statistics.consumers import Consumer, consumer_of
from onnxprune.statistics.moments import Moments
from onnxprune.statistics.probes import Geometry, Probe

RNG = np.random.default_rng(3)


def layer(op_type, x_shape, w_shape, bias=None, dtype=np.float32, opset=17, **attributes):
    """A model of one layer, with random weights."""
    arrays = {"w": RNG.standard_normal(w_shape).astype(dtype)}
    names = ["x", "w"]
    if bias is not None:
        arrays["b"] = RNG.standard_normal(bias).astype(dtype)
        names.append("b")
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    node = helper.make_node(op_type, names, ["y"], **attributes)
    graph = helper.make_graph(
        [node],
        "layer",
        [helper.make_tensor_value_info("x", kind, ["n", *x_shape[1:]])],
        [helper.make_tensor_value_info("y", kind, None)],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    return ir.from_proto(model)


def rows_of(model, x, share=1.0, samples=2, seed=0):
    """Rows of input and output at drawn positions, and the consumer."""
    node = next(iter(model.graph))
    consumer = consumer_of(node)
    assert isinstance(consumer, Consumer), consumer
    y = run(open_session(model), {"x": x})["y"]
    geometry = Geometry(
        consumer, (x.shape[0] // samples, *x.shape[1:]), (y.shape[0] // samples, *y.shape[1:])
    )
    drawn = geometry.draw(np.random.default_rng(seed), share, samples)
    probed = model.clone()
    probe = Probe(probed.graph, consumer, "probe", geometry.count(share))
    values = {v.name: v for v in (*probed.graph.inputs, *(o for n in probed.graph for o in n.outputs))}
    rows = probe.input_rows(values["x"])
    count = len(drawn.places) * (x.shape[0] if consumer.convolves else 1)
    names = [
        probe.show(rows, "x"),
        probe.show(probe.in_groups(probe.output_rows(values["y"], consumer.outputs), consumer.outputs), "y"),
        *probe.moments(rows),
    ]
    got = run(open_session(probed), {"x": x, **probe.feed(drawn, count)}, names)
    return consumer, got["probe/x"], got["probe/y"], got["probe/total"], got["probe/gram"]


CONVOLUTIONS = [
    ("Conv", (4, 6, 9), (8, 6, 3), {}),
    ("Conv", (4, 6, 9), (9, 2, 3), {"group": 3, "pads": [1, 2], "strides": [2]}),
    ("Conv", (4, 6, 9, 7), (8, 6, 3, 3), {"pads": [1, 1, 1, 1]}),
    ("Conv", (4, 6, 9, 7), (8, 6, 3, 2), {"pads": [2, 0, 1, 1], "strides": [2, 1], "dilations": [2, 3]}),
    ("Conv", (4, 6, 9, 7), (6, 1, 3, 3), {"group": 6, "auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    ("Conv", (4, 6, 8, 6), (8, 3, 3, 3), {"group": 2, "auto_pad": "SAME_LOWER", "strides": [2, 3]}),
    ("Conv", (4, 6, 8, 6), (8, 6, 1, 1), {"auto_pad": "VALID"}),
    ("Conv", (2, 4, 5, 6, 4), (3, 4, 2, 3, 2), {"pads": [1, 1, 0, 0, 1, 1]}),
    ("ConvTranspose", (4, 6, 9), (6, 8, 3), {}),
    ("ConvTranspose", (4, 6, 5, 4), (6, 8, 3, 3), {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
    ("ConvTranspose", (4, 6, 5, 4), (6, 4, 3, 2), {"group": 2, "strides": [3, 2], "output_padding": [1, 1]}),
    ("ConvTranspose", (4, 6, 5, 4), (6, 4, 3, 3), {"group": 3, "dilations": [2, 1], "pads": [1, 0, 2, 1]}),
    ("ConvTranspose", (4, 6, 5, 4), (6, 4, 3, 3), {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    ("ConvTranspose", (4, 6, 5, 4), (6, 4, 4, 4), {"auto_pad": "SAME_LOWER", "strides": [3, 3]}),
    ("ConvTranspose", (4, 6, 5, 4), (6, 4, 3, 3), {"output_shape": [11, 8], "strides": [2, 2]}),
    ("ConvTranspose", (2, 4, 3, 4, 2), (4, 3, 2, 3, 2), {"strides": [1, 2, 2]}),
]
MATRICES = [
    ("Gemm", (6, 5), (5, 7), {}, 1),
    ("Gemm", (6, 5), (7, 5), {"transB": 1, "alpha": 0.5, "beta": 2.0}, 1),
    ("MatMul", (6, 5), (5, 7), {}, 1),
    ("MatMul", (4, 3, 5), (5, 7), {}, 3),
    ("MatMul", (4, 2, 3, 5), (5, 7), {}, 6),
]


def bias_for(op_type, w_shape, attributes):
    if op_type == "MatMul":
        return None
    if op_type == "Gemm":
        return w_shape[0] if attributes.get("transB") else w_shape[1]
    return w_shape[0] if op_type == "Conv" else w_shape[1] * attributes.get("group", 1)


def cases():
    for op_type, x_shape, w_shape, attributes in CONVOLUTIONS:
        yield pytest.param(
            op_type, x_shape, w_shape, attributes, id=f"{op_type}-{len(x_shape) - 2}d-{attributes}"
        )
    for op_type, x_shape, w_shape, attributes, _ in MATRICES:
        yield pytest.param(
            op_type, x_shape, w_shape, attributes, id=f"{op_type}-{len(x_shape)}d-{attributes}"
        )


@pytest.mark.parametrize(("op_type", "x_shape", "w_shape", "attributes"), list(cases()))
@pytest.mark.parametrize("share", [1.0, 0.4])
def test_rows_times_matrix_is_the_output(op_type, x_shape, w_shape, attributes, share):
    model = layer(op_type, x_shape, w_shape, bias_for(op_type, w_shape, attributes), **attributes)
    x = RNG.standard_normal(x_shape).astype(np.float32)
    consumer, rows, out, total, gram = rows_of(model, x, share)
    matrix, bias = consumer.matrix(), consumer.bias_vector().reshape(consumer.groups, 1, -1)
    made = rows.astype(np.float64) @ matrix.transpose(0, 2, 1) + bias
    np.testing.assert_allclose(made, out, rtol=0, atol=1e-5 * np.abs(out).max())
    np.testing.assert_array_equal(consumer.from_matrix(matrix).astype(np.float32), consumer.array)
    found = Moments.of(rows)
    np.testing.assert_allclose(total[:, 0], found.total, rtol=0, atol=1e-4)
    np.testing.assert_allclose(gram, found.gram, rtol=0, atol=1e-4 * np.abs(found.gram).max())
    assert rows.shape[1] <= np.prod(out.shape) / consumer.outputs * consumer.groups * max(share, 1)


@pytest.mark.parametrize("opset", [7, 9, 11, 13, 21])
def test_any_opset(opset):
    model = layer("Conv", (4, 6, 9, 7), (8, 6, 3, 3), 8, opset=opset, pads=[1, 1, 1, 1])
    x = RNG.standard_normal((4, 6, 9, 7)).astype(np.float32)
    consumer, rows, out, *_ = rows_of(model, x)
    made = rows.astype(np.float64) @ consumer.matrix().transpose(0, 2, 1) + consumer.bias_vector()
    np.testing.assert_allclose(made, out, rtol=0, atol=1e-5 * np.abs(out).max())


def test_moments_of_shards_add_up():
    rows = RNG.standard_normal((2, 50, 7))
    whole, parts = (
        Moments.of(rows),
        [Moments.of(rows[:, a:b]) for a, b in itertools.pairwise((0, 13, 14, 50))],
    )
    summed = parts[0] + parts[1] + parts[2]
    for name in ("count", "total", "gram", "mean", "covariance"):
        np.testing.assert_allclose(getattr(summed, name), getattr(whole, name), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(whole.covariance[1], np.cov(rows[1].T, bias=True), rtol=1e-10, atol=1e-12)


def test_positions_are_drawn_without_repetition_and_cover_all():
    model = layer("Conv", (4, 6, 9, 7), (8, 6, 3, 3), 8, pads=[1, 1, 1, 1])
    consumer = consumer_of(next(iter(model.graph)))
    geometry = Geometry(consumer, (1, 6, 9, 7), (1, 8, 9, 7))
    rng = np.random.default_rng(0)
    seen = np.zeros(63, int)
    for _ in range(400):
        places = geometry.draw(rng, 0.25, 4).places
        assert len(set(places)) == len(places) == 16
        seen[places] += 1
    assert seen.min() > 60 and seen.max() < 150  # 400 * 16 / 63 is about 102


@pytest.mark.parametrize(
    ("op_type", "x_shape", "w_shape", "attributes", "why"),
    [
        ("MatMul", (4, 3, 5), (4, 5, 7), {}, "stack"),
        ("Gemm", (5, 6), (5, 7), {"transA": 1}, "transposed"),
    ],
)
def test_what_is_no_linear_map_says_why(op_type, x_shape, w_shape, attributes, why):
    model = layer(op_type, x_shape, w_shape, **attributes)
    assert why in consumer_of(next(iter(model.graph)))
