"""Tables of positions that are computed from fixed extents become constants; others stay computed."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

import onnxprune
from onnxprune.model.normalize import normalize
from onnxprune.model.shapes import infer_shapes
from onnxprune.model.tables import LIMIT, fold_tables
from onnxprune.testing import ModelBuilder


def assigning(shape, *, rows=None):
    """`data[:, 1:3] = updates` on (batch, positions); the table is computed from the shape of data."""
    b = ModelBuilder(17)
    data, updates = b.input("data", shape), b.input("updates", (shape[0], 2))
    count = b.op("Gather", b.op("Shape", data), b.constant(0), axis=0) if rows is None else rows(b, data)
    samples = b.op("Unsqueeze", b.op("Range", b.constant(0), count, b.constant(1)), b.constant([1, 2]))
    target = b.op("Concat", b.op("Shape", updates), b.constant([1]), axis=0)
    places = b.op("Reshape", b.constant([1, 2]), b.constant([1, 2, 1]))
    both = (b.op("Expand", part, target) for part in (samples, places))
    table = b.op("Concat", *both, axis=2, name="table")
    return b.model(b.op("ScatterND", data, table, updates, name="assign"), declare=False)


def folded(model):
    model = normalize(model)
    shapes = infer_shapes(model)
    return model, fold_tables(model, shapes)


def test_a_table_from_fixed_extents():
    model, changed = folded(assigning((3, 5)))
    assert changed
    assert [node.op_type for node in model.graph] == ["ScatterND"]
    table = model.graph[0].inputs[1]
    assert (table.name, table.dtype) == ("table_out", ir.DataType.INT64)
    assert table.const_value.numpy().tolist() == [[[row, 1], [row, 2]] for row in range(3)]


def test_a_table_that_is_larger_than_shapes_ever_are():
    model, changed = folded(assigning((1500, 5)))
    assert changed
    table = model.graph[0].inputs[1].const_value.numpy()
    assert table.shape == (1500, 2, 2) and table[1499].tolist() == [[1499, 1], [1499, 2]]


@pytest.mark.parametrize("shape", [("n", 5), (LIMIT, 5)], ids=["batch", "large"])
def test_what_stays_computed(shape):
    """With as many rows as the batch; with more entries than a file should have to hold."""
    model, changed = folded(assigning(shape))
    assert not changed
    assert "Range" in {node.op_type for node in model.graph}


def test_a_table_that_an_input_decides_on():
    def rows(b, data):
        return b.op("Squeeze", b.op("Cast", b.input("rows", (1,)), to=7), b.constant([0]))

    assert not folded(assigning((3, 5), rows=rows))[1]


def test_a_constant_table_is_left_alone():
    b = ModelBuilder(17)
    model = b.model(b.op("ScatterND", b.input("x", (3, 5)), b.constant([[0], [2]]), b.input("z", (2, 5))))
    assert not folded(model)[1]


def test_what_is_written_computes_the_same(tmp_path):
    b = ModelBuilder(17)
    x = b.input("x", (3, 4))
    h = b.op("MatMul", x, b.weight((4, 6), "in"))
    updates = b.op("MatMul", x, b.weight((4, 2), "new"))
    shape = b.op("Shape", updates)
    grids = [
        b.op("Expand", b.op("Reshape", line, b.constant(form)), shape)
        for line, form in (
            (b.op("Range", b.constant(0), b.op("Gather", shape, b.constant(0)), b.constant(1)), [-1, 1]),
            (b.constant([1, 4]), [1, -1]),
        )
    ]
    table = b.op("Concat", *(b.op("Unsqueeze", grid, b.constant([2])) for grid in grids), axis=2)
    y = b.op("ScatterND", h, table, updates, name="assign")
    path, out = tmp_path / "in.onnx", tmp_path / "out.onnx"
    ir.save(b.model(b.op("MatMul", b.op("Tanh", y), b.weight((6, 2), "out"))), path)
    done = onnxprune.prune(path, out, ratio=0.3, round_to=1)
    assert done.report.soundness.max_abs_diff <= 1e-5
    assert "Range" not in {node.op_type for node in onnx.load(out).graph.node}
    masked = tmp_path / "masked.onnx"
    onnxprune.apply(path, done.plan, masked, mode="mask")
    feed = {"x": np.random.default_rng(1).standard_normal((3, 4)).astype(np.float32)}
    results = [
        onnxruntime.InferenceSession(p, providers=["CPUExecutionProvider"]).run(None, feed)[0]
        for p in (out, masked)
    ]
    np.testing.assert_allclose(*results, rtol=0, atol=1e-5)
