"""What loops carry without changing it is read from outside: the same function, layers with their own weights."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from structures.control_nets import graphs_of, proto_of

import onnxprune
from onnxprune.calibrate.sessions import open_session, run
from onnxprune.model.io import load
from onnxprune.model.normalize import normalize

CARRIED = """
main (float[n, 6] x, int64 count) => (float[n, 12] y OUTPUTS) {
    h = MatMul (x, a)
    p0 = MatMul (h, w)
    shape = Shape (p0)
    zeros = ConstantOfShape (shape)
    first = Add (h, zeros)
    y, same, bias, pair = Loop (count, "", first, w, z, h) <
        body = step (int64 i, bool on, float[n, 12] s, float[12, 12] v, float[12] c, float[n, 12] k)
            => (bool still, float[n, 12] next, float[12, 12] v, float[12] d, float[n, 12] k) {
        still = Identity (on)
        d = Identity (c)
        p = MatMul (s, v)
        q = Add (p, c)
        t = Tanh (q)
        next = Add (t, k)
    }>
    MORE
}
"""
SHAPES = {"a": (6, 12), "w": (12, 12), "z": (12,)}
SCANNED = """
main (float[5, n, 6] x) => (float[5, n, 12] y) {
    unused, y = Scan <num_scan_inputs = 1,
        body = step (float[6, 12] v, float[n, 6] row) => (float[6, 12] same, float[n, 12] out) {
        same = Identity (v)
        p = MatMul (row, v)
        out = Relu (p)
    }> (w, x)
}
"""


def saved(tmp_path, text, shapes):
    path = tmp_path / "net.onnx"
    onnx.save(proto_of(text, shapes), path)
    return path


@pytest.mark.parametrize(
    ("outputs", "more", "left"),
    [
        ("", "", 1),
        (", float[12, 12] twice", "twice = Add (same, same)", 1),
        (", float[12, 12] same", "", 2),
    ],
    ids=["unused", "used", "output"],
)
@pytest.mark.parametrize("count", [0, 3])
def test_the_same_function(tmp_path, outputs, more, left, count):
    """Also where a loop never runs; what is an output of the model is carried on."""
    path = saved(tmp_path, CARRIED.replace("OUTPUTS", outputs).replace("MORE", more), SHAPES)
    model = load(path).ir
    plain = normalize(model)
    (loop,) = [node for node in plain.graph if node.op_type == "Loop"]
    assert len(loop.inputs) == 2 + left == len(loop.attributes["body"].as_graph().inputs)
    feed = {
        "x": np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32),
        "count": np.array(count),
    }
    want, found = (run(open_session(each), feed) for each in (model, plain))
    assert want.keys() == found.keys()
    for name, array in want.items():
        np.testing.assert_array_equal(found[name], array)


def test_states_of_a_scan(tmp_path):
    """Through an Identity: a state that is returned as it is, onnxruntime 1.31 does not carry on."""
    path = saved(tmp_path, SCANNED, {"w": (6, 12)})
    plain = normalize(load(path).ir)
    (scan,) = [node for node in plain.graph if node.op_type == "Scan"]
    assert len(scan.inputs) == 1 == len(scan.outputs)
    feed = {"x": np.random.default_rng(0).standard_normal((5, 4, 6)).astype(np.float32)}
    want, found = (run(open_session(each), feed)["y"] for each in (load(path).ir, plain))
    np.testing.assert_array_equal(found, want)


def test_weights_that_are_carried_are_repaired(tmp_path):
    """The weight of the cell has another reader, of which only the shape is used."""
    path = saved(tmp_path, CARRIED.replace("OUTPUTS", "").replace("MORE", ""), {**SHAPES})
    proto = onnx.load(path)
    y = proto.graph.output[0]
    proto.graph.node.append(onnx.helper.make_node("MatMul", ["y", "b"], ["o"], name="last"))
    rng = np.random.default_rng(5)
    proto.graph.initializer.append(
        numpy_helper.from_array(rng.standard_normal((12, 3)).astype(np.float32), "b")
    )
    y.name = "o"
    y.type.tensor_type.shape.dim[1].dim_value = 3
    onnx.save(proto, path)
    data = [{"x": rng.standard_normal((4, 6)).astype(np.float32), "count": np.array(3)} for _ in range(40)]
    out = tmp_path / "out.onnx"
    report = onnxprune.prune(path, out, ratio=0.5, data=data, round_to=1, slim=False).report
    assert {layer.name: layer.kind for layer in report.repairs} == {
        "step.matmul2": "affine",
        "last": "affine",
    }
    shapes = {t.name: tuple(t.dims) for g in graphs_of(onnx.load(out).graph) for t in g.initializer}
    assert shapes["w"] == (6, 6) and report.target.met
    assert run(open_session(load(out).ir), data[0])["o"].shape == (4, 3)
