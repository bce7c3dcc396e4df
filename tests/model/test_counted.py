"""Loops that count up to a number that follows from shapes run as often as that says."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from structures.control_nets import graphs_of, proto_of

import onnxprune
from onnxprune.model.iterate import trip_count

COUNTS = """
main (float[n, t, 6] x) => (float[k, n, 4] y) {
    shape = Shape (x)
    place = Constant <value_int = 1> ()
    long = Gather (shape, place)
    many = Cast <to = 1> (long)
    zero = Constant <value_int = FROM> ()
    start = Cast <to = 1> (zero)
    on = COMPARE (start, many)
    last, y = Loop ("", on, zero) <
        body = step (int64 i, bool go, int64 c) => (bool still, int64 next, float[n, 4] out) {
            by = Constant <value_int = BY> ()
            next = Add (c, by)
            f = Cast <to = 1> (next)
            still = COMPARE (f, many)
            row = Gather <axis = 1> (x, c)
            h = MatMul (row, a)
            r = Relu (h)
            out = MatMul (r, b)
        }>
}
"""


def written(first, by, compare):
    text = COUNTS.replace("FROM", str(first)).replace("BY", str(by)).replace("COMPARE", compare)
    return proto_of(text, {"step:a": (6, 8), "step:b": (8, 4)})


@pytest.mark.parametrize(
    ("first", "by", "compare"), [(0, 1, "Less"), (1, 2, "Less"), (3, 1, "Less"), (0, 3, "Less")]
)
def test_as_often_as_in_onnxruntime(tmp_path, first, by, compare):
    proto, path = written(first, by, compare), tmp_path / "net.onnx"
    onnx.save(proto, path)
    session = onnxruntime.InferenceSession(path)
    for length in (5, 8):
        shapes = onnxprune.analyze(path, bindings={"t": length, "n": 2}).axis_graph.shapes
        want = session.run(["y"], {"x": np.zeros((2, length, 6), np.float32)})[0].shape
        assert next(dims for value, dims in shapes.dims.items() if value.name == "y") == want


def test_the_end_is_not_known_of_what_depends_on_values(tmp_path):
    """A condition that looks at activations says nothing beforehand."""
    proto, path = written(0, 1, "Less"), tmp_path / "net.onnx"
    body = next(graph for graph in graphs_of(proto.graph) if graph.name == "step")
    f = next(node for node in body.node if node.output[0] == "f")
    body.node.remove(f)
    row = next(number for number, node in enumerate(body.node) if node.output[0] == "out")
    body.node.insert(row + 1, onnx.helper.make_node("ReduceMax", ["out"], ["f"], keepdims=0))
    compare = next(node for node in body.node if node.output[0] == "still")
    body.node.remove(compare)
    body.node.insert(row + 2, compare)
    onnx.save(proto, path)
    graph = onnxprune.analyze(path, bindings={"t": 5}).axis_graph
    (loop,) = [node for node in graph.model.graph if node.op_type == "Loop"]
    assert trip_count(loop, graph.shapes.data) is None
