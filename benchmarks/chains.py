"""Graphs of any length with small channels, built node by node: what scaling is measured on."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from onnxprune.testing import ModelBuilder

SIDE = 4
TOKENS = 6


def residual(nodes: int, width: int = 16) -> ir.Model:
    """Residual blocks of 7 nodes: Conv, BatchNormalization, Relu, Conv, BatchNormalization, Add, Relu."""
    b, x = _stem(width)
    for i in range(nodes // 7):
        y = b.op("Relu", _norm(b, _conv(b, x, width, width, f"block{i}.conv1"), width, f"block{i}.bn1"))
        y = _norm(b, _conv(b, y, width, width, f"block{i}.conv2"), width, f"block{i}.bn2")
        x = b.op("Relu", b.op("Add", x, y))
    return _head(b, x, width)


def dense(nodes: int, width: int = 16) -> ir.Model:
    """Each Conv reads the Concat of the last three results: three nodes, all tied to their neighbours."""
    b, x = _stem(width)
    last = [x, x, x]
    for i in range(nodes // 3):
        joined = b.op("Concat", *last, axis=1)
        last = [*last[1:], b.op("Relu", _conv(b, joined, 3 * width, width, f"layer{i}", 1))]
    return _head(b, last[-1], width)


def shuffle(nodes: int, width: int = 32) -> ir.Model:
    """ShuffleNet v2 units of 10 nodes; every channel shuffle offers two ways of cutting the whole chain."""
    b, x = _stem(width)
    half = width // 2
    for i in range(nodes // 10):
        left, y = b.ops("Split", x, outputs=2, axis=1, num_outputs=2)
        y = b.op("Relu", _conv(b, y, half, half, f"unit{i}.conv1", 1))
        y = _conv(b, y, half, half, f"unit{i}.depthwise", 3, half)
        y = b.op("Relu", _conv(b, y, half, half, f"unit{i}.conv2", 1))
        x = b.op("Reshape", b.op("Concat", left, y, axis=1), b.constant([0, 2, half, SIDE, SIDE]))
        x = b.op("Reshape", b.op("Transpose", x, perm=[0, 2, 1, 3, 4]), b.constant([0, width, SIDE, SIDE]))
    return _head(b, x, width)


def transformer(nodes: int, width: int = 32, heads: int = 4) -> ir.Model:
    """Pre-norm transformer blocks of 28 nodes, attention written out."""
    b = ModelBuilder(opset=18)
    size = width // heads
    x = _linear(b, b.input("input", ("batch", TOKENS, width)), width, width, "embed")
    for i in range(nodes // 28):
        y = _layer_norm(b, x, width, f"block{i}.norm1")
        query, key, value = (
            b.op(
                "Transpose",
                b.op(
                    "Reshape",
                    _linear(b, y, width, width, f"block{i}.{name}"),
                    b.constant([0, TOKENS, heads, size]),
                ),
                perm=perm,
            )
            for name, perm in (("query", [0, 2, 1, 3]), ("key", [0, 2, 3, 1]), ("value", [0, 2, 1, 3]))
        )
        y = b.op("MatMul", b.op("Softmax", b.op("MatMul", query, key), axis=-1), value)
        y = b.op("Reshape", b.op("Transpose", y, perm=[0, 2, 1, 3]), b.constant([0, TOKENS, width]))
        x = b.op("Add", x, _linear(b, y, width, width, f"block{i}.output"))
        y = _linear(b, _layer_norm(b, x, width, f"block{i}.norm2"), width, 2 * width, f"block{i}.up")
        x = b.op("Add", x, _linear(b, b.op("Relu", y), 2 * width, width, f"block{i}.down"))
    return b.model(_linear(b, b.op("ReduceMean", x, b.constant([1]), keepdims=0), width, 10, "head"))


CHAINS: dict[str, Callable[[int], ir.Model]] = {
    "residual": residual,
    "dense": dense,
    "shuffle": shuffle,
    "transformer": transformer,
}
"""What can be built, by name: a function of the number of nodes."""


def _stem(width: int) -> tuple[ModelBuilder, ir.Value]:
    b = ModelBuilder(opset=18)
    return b, b.op("Relu", _conv(b, b.input("input", ("batch", 3, SIDE, SIDE)), 3, width, "stem"))


def _head(b: ModelBuilder, x: ir.Value, width: int) -> ir.Model:
    x = b.op("Flatten", b.op("GlobalAveragePool", x))
    return b.model(b.op("Gemm", x, b.weight((10, width)), b.weight((10,)), transB=1, name="head"))


def _conv(
    b: ModelBuilder, x: ir.Value, width: int, wider: int, name: str, kernel: int = 3, group: int = 1
) -> ir.Value:
    weight = b.weight((wider, width // group, kernel, kernel), f"{name}.weight", low=-0.1, high=0.1)
    bias = b.weight((wider,), f"{name}.bias", low=-0.1, high=0.1)
    pads = [kernel // 2] * 4
    return b.op("Conv", x, weight, bias, kernel_shape=[kernel, kernel], pads=pads, group=group, name=name)


def _norm(b: ModelBuilder, x: ir.Value, width: int, name: str) -> ir.Value:
    parts = [
        b.weight((width,), f"{name}.{part}", low=0.5, high=1.5) for part in ("scale", "shift", "mean", "var")
    ]
    return b.op("BatchNormalization", x, *parts, name=name)


def _layer_norm(b: ModelBuilder, x: ir.Value, width: int, name: str) -> ir.Value:
    parts = [b.weight((width,), f"{name}.{part}", low=0.5, high=1.5) for part in ("scale", "shift")]
    return b.op("LayerNormalization", x, *parts, axis=-1, name=name)


def _linear(b: ModelBuilder, x: ir.Value, width: int, wider: int, name: str) -> ir.Value:
    y = b.op("MatMul", x, b.weight((width, wider), f"{name}.weight", low=-0.1, high=0.1), name=name)
    return b.op("Add", y, b.weight((wider,), f"{name}.bias", low=-0.1, high=0.1), name=f"{name}.add")
