"""Files with If, Loop and Scan, and how tests look at them."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
from structures.control_nets import proto_of

BRANCHES = """
main (float[n, 6] x, bool flag) => (float[n, 3] y) {
    h = MatMul (x, a)
    r = Relu (h)
    z = If (flag) <
        then_branch = yes () => (t) { p = MatMul (r, w)  q = Tanh (p)  t = MatMul (q, v) },
        else_branch = no () => (t) { p = MatMul (r, w)  q = Sigmoid (p)  t = Gemm (q, v, c) }>
    k = Relu (z)
    y = MatMul (k, b)
}
"""
SHAPES = {
    **{"a": (6, 32), "b": (24, 3), "yes:w": (32, 16), "yes:v": (16, 24)},
    **{"no:w": (32, 48), "no:v": (48, 24), "no:c": (24,)},
}
LOOP = """
main (float[n, 6] x) => (float[n, 3] y) {
    h = MatMul (x, a)
    count = Constant <value_int = 3> ()
    last = Loop (count, "", h) <body = step (int64 i, bool on, float[n, 32] s) => (bool still, float[n, 32] next) {
        still = Identity (on)
        p = MatMul (s, w)
        q = Tanh (p)
        next = MatMul (q, v)
    }>
    k = Relu (last)
    y = MatMul (k, b)
}
"""
LOOP_SHAPES = {"a": (6, 32), "b": (32, 3), "step:w": (32, 16), "step:v": (16, 32)}
SCAN = """
main (float[5, 2, 6] x) => (float[5, 2, 3] y) {
    zero = Constant <value_floats = [0.0]> ()
    size = Constant <value_ints = [2, 32]> ()
    start = Expand (zero, size)
    last, all = Scan <num_scan_inputs = 1,
        body = step (float[2, 32] s, float[2, 6] row) => (float[2, 32] next, float[2, 32] out) {
            e = MatMul (row, u)
            p = MatMul (s, w)
            q = Add (p, e)
            next = Tanh (q)
            out = Identity (next)
        }> (start, x)
    y = MatMul (all, b)
}
"""
SCAN_SHAPES = {"b": (32, 3), "step:u": (6, 32), "step:w": (32, 32)}


def saved(tmp_path, text, shapes, **options):
    path = tmp_path / "net.onnx"
    onnx.save(proto_of(text, shapes, **options), path)
    return path


def feeds(flags, count=1):
    rng = np.random.default_rng(1)
    return [
        {"x": rng.standard_normal((4, 6)).astype(np.float32), "flag": np.array(flag)}
        for flag in flags
        for _ in range(count)
    ]


def run(path, feed):
    return onnxruntime.InferenceSession(path).run(None, feed)[0]


def weights(graph):
    return {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}


def bodies(path, op_type):
    (node,) = [node for node in onnx.load(path).graph.node if node.op_type == op_type]
    return {attribute.g.name: attribute.g for attribute in node.attribute if attribute.HasField("g")}
