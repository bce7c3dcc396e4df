"""What only one gradient needs comes last in the file, the first layer's before the last layer's."""

from __future__ import annotations

import numpy as np

from onnxprune.calibrate.sessions import open_session, run
from onnxprune.gradients import CrossEntropy, build_backward
from onnxprune.testing import ModelBuilder

WEIGHTS = ("first", "second", "third")


def chain():
    b = ModelBuilder(18)
    x = b.input("x", ("n", 6))
    for name in WEIGHTS:
        x = b.op("Relu", b.op("MatMul", x, b.weight((6, 6), name)))
    return b.model(x)


def needed(node):
    """A node and all nodes before it."""
    found, ahead = {node}, [node]
    while ahead:
        for value in ahead.pop().inputs:
            maker = value.producer() if value is not None else None
            if maker is not None and maker not in found:
                found.add(maker)
                ahead.append(maker)
    return found


def test_order():
    graph = build_backward(chain(), CrossEntropy(), list(WEIGHTS)).graph
    nodes = list(graph)
    place = {node: number for number, node in enumerate(nodes)}
    for node in nodes:
        makers = [value.producer() for value in node.inputs if value is not None]
        assert all(place[maker] < place[node] for maker in makers if maker is not None)
    ends = [value.producer() for value in graph.outputs if value.name.startswith("gradient/")]
    own = [needed(end) - set().union(*(needed(other) for other in ends if other is not end)) for end in ends]
    assert [node.op_type for node in sorted(own[2], key=place.get)] == ["Gemm", "Identity"]
    assert "Where" in {
        node.op_type for node in own[0]
    }  # the way from the second layer to the first is its own
    assert nodes[-sum(map(len, own)) :] == [node for some in own for node in sorted(some, key=place.get)]


def test_what_several_gradients_share_stays():
    b = ModelBuilder(18)
    x, w, v = b.input("x", ("n", 4)), b.weight((4, 4), "w"), b.weight((4, 4), "v")
    model = b.model(b.op("MatMul", x, b.op("Mul", w, v)))
    built = build_backward(model, CrossEntropy(), ["w", "v"])
    types = [node.op_type for node in built.graph]
    assert types[-4:] == ["Mul", "Identity", "Mul", "Identity"] and "Gemm" in types[:-4]
    rng = np.random.default_rng(0)
    feed = {"x": rng.standard_normal((3, 4)).astype(np.float32), "labels": np.array([0, 1, 3])}
    found = run(open_session(built, threads=1), feed)
    arrays = {name: model.graph.initializers[name].const_value.numpy() for name in ("w", "v")}
    shared = found["gradient/w"] / arrays["v"]
    np.testing.assert_allclose(found["gradient/v"], shared * arrays["w"], rtol=1e-4, atol=1e-6)
