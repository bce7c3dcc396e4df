"""Operators that are linear in their first input: <A x, s> = <x, A' s>, for drawn sizes and attributes."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from onnxprune.calibrate.sessions import open_session, run
from onnxprune.gradients import Projection, build_backward, gradient_name

SMALL = settings(max_examples=25, deadline=None, derandomize=True)


def ints(*numbers):
    return np.array(numbers, np.int64)


def adjoint(op_type, shape, *others, opset=18, **attributes):
    rng = np.random.default_rng(0)
    x = rng.standard_normal(shape).astype(np.float32)
    names = ["x", *("" if other is None else f"c{n}" for n, other in enumerate(others))]
    tensors = [onnx.numpy_helper.from_array(o, f"c{n}") for n, o in enumerate(others) if o is not None]
    node = helper.make_node(op_type, names, ["y"], **attributes)
    kind = onnx.TensorProto.FLOAT
    inputs = [helper.make_tensor_value_info("x", kind, shape)]
    outputs = [helper.make_tensor_value_info("y", kind, None)]
    graph = helper.make_graph([node], "g", inputs, outputs, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    y = run(open_session(ir.from_proto(model), threads=1), {"x": x})["y"]
    signs = rng.standard_normal(y.shape).astype(np.float32)
    built = build_backward(ir.from_proto(model), Projection(("y",)), ["x"])
    found = run(open_session(built, threads=1), {"x": x, "signs/y": signs})
    np.testing.assert_allclose(found["y"], y, rtol=0, atol=1e-5 * max(1.0, np.abs(y).max(initial=0)))
    left = float((y.astype(np.float64) * signs).sum())
    right = float((x.astype(np.float64) * found[gradient_name("x")]).sum())
    scale = float(np.abs(y.astype(np.float64) * signs).sum()) + 1e-3
    assert abs(left - right) <= 1e-5 * scale


@SMALL
@given(
    st.lists(st.integers(1, 6), min_size=3, max_size=3), st.lists(st.integers(1, 8), min_size=2, max_size=2)
)
def test_center_crop_pad(extents, wanted):
    adjoint("CenterCropPad", extents, ints(*wanted), axes=[2, 0])


@SMALL
@given(st.integers(1, 9), st.sampled_from([1, 2]), st.booleans(), st.booleans(), st.integers(0, 10))
def test_fourier_transform(length, parts, one_sided, inverse, asked):
    if one_sided and (inverse or parts == 2):
        one_sided = False
    lengths = ints(asked)[0] if asked else None
    given_length = None if lengths is None else np.asarray(lengths)
    more = {"onesided": int(one_sided), "inverse": int(inverse)}
    adjoint("DFT", [2, length, parts], given_length, axis=1, opset=17, **more)


@SMALL
@given(st.data())
def test_columns_to_image(data):
    kernel, strides, dilations, pads, blocks = (
        data.draw(st.tuples(st.integers(low, high), st.integers(low, high)))
        for low, high in ((1, 3), (1, 2), (1, 2), (0, 1), (2, 4))
    )
    image = [(blocks[n] - 1) * strides[n] + dilations[n] * (kernel[n] - 1) + 1 - 2 * pads[n] for n in (0, 1)]
    if min(image) < 1:
        return
    shape = [2, 2 * kernel[0] * kernel[1], blocks[0] * blocks[1]]
    how = {"strides": strides, "dilations": dilations, "pads": [*pads, *pads]}
    adjoint("Col2Im", shape, ints(*image), ints(*kernel), **how)


@SMALL
@given(st.data())
def test_gather_with_batch_axes(data):
    batch = data.draw(st.integers(0, 2))
    shape = data.draw(st.lists(st.integers(1, 4), min_size=3, max_size=4))
    width = data.draw(st.integers(1, len(shape) - batch))
    count = data.draw(st.integers(1, 4))
    rng = np.random.default_rng(1)
    lead = shape[:batch]
    index = np.stack([rng.integers(0, shape[batch + n], (*lead, count)) for n in range(width)], axis=-1)
    adjoint("GatherND", shape, index, batch_dims=batch)


@SMALL
@given(st.data())
def test_grid_sample_is_linear_in_the_image(data):
    shape = [2, 2, data.draw(st.integers(1, 5)), data.draw(st.integers(1, 5))]
    grid = np.random.default_rng(2).uniform(-1.6, 1.6, (2, 3, 2, 2)).astype(np.float32)
    mode = data.draw(st.sampled_from(["linear", "nearest", "cubic"]))
    padding = data.draw(st.sampled_from(["zeros", "border", "reflection"]))
    aligned = data.draw(st.integers(0, 1))
    adjoint("GridSample", shape, grid, opset=20, mode=mode, padding_mode=padding, align_corners=aligned)
