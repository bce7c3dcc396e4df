"""A dozen canonical architectures, small, with readable names: for golden texts and tests of groups."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxprune.testing import ModelBuilder


class Net(ModelBuilder):
    """Layers in the style of a training framework; every layer names its weights after itself."""

    extents: dict[ir.Value, int]

    def __init__(self, opset: int = 17) -> None:
        super().__init__(opset)
        self.extents = {}

    def image(self, channels=3, size=8, batch=1):
        x = self.input("x", (batch, channels, size, size))
        return self.mark(x, channels)

    def tokens(self, width=16, tokens=6, batch=1):
        return self.mark(self.input("x", (batch, tokens, width)), width)

    def mark(self, value, channels):
        """Remember how many channels a value has."""
        self.extents[value] = channels
        return value

    def conv(self, x, channels, kernel=3, *, stride=1, group=1, bias=True, name):
        w = self.weight((channels, self.extents[x] // group, kernel, kernel), f"{name}.weight")
        inputs = [x, w, *([self.weight((channels,), f"{name}.bias")] if bias else [])]
        y = self.op("Conv", *inputs, strides=[stride] * 2, pads=[kernel // 2] * 4, group=group, name=name)
        return self.mark(y, channels)

    def batch_norm(self, x, name):
        c = self.extents[x]
        parts = [
            self.weight((c,), f"{name}.{part}", low=0.5, high=1.5)
            for part in ("weight", "bias", "mean", "var")
        ]
        return self.mark(self.op("BatchNormalization", x, *parts, name=name), c)

    def layer_norm(self, x, name):
        c = self.extents[x]
        parts = [self.weight((c,), f"{name}.{part}", low=0.5, high=1.5) for part in ("weight", "bias")]
        return self.mark(self.op("LayerNormalization", x, *parts, axis=-1, name=name), c)

    def relu(self, x):
        return self.mark(self.op("Relu", x), self.extents[x])

    def add(self, x, y, name=""):
        return self.mark(self.op("Add", x, y, name=name), self.extents[x])

    def mul(self, x, y, name=""):
        return self.mark(self.op("Mul", x, y, name=name), self.extents[x])

    def concat(self, *values, axis=1, name="concat"):
        return self.mark(
            self.op("Concat", *values, axis=axis, name=name), sum(self.extents[v] for v in values)
        )

    def linear(self, x, channels, *, bias=True, name):
        y = self.op("MatMul", x, self.weight((self.extents[x], channels), f"{name}.weight"), name=name)
        if bias:
            y = self.op("Add", y, self.weight((channels,), f"{name}.bias"), name=f"{name}.add")
        return self.mark(y, channels)

    def gemm(self, x, channels, *, name):
        w, b = (
            self.weight((channels, self.extents[x]), f"{name}.weight"),
            self.weight((channels,), f"{name}.bias"),
        )
        return self.mark(self.op("Gemm", x, w, b, transB=1, name=name), channels)

    def pool(self, x, name="pool"):
        return self.mark(self.op("GlobalAveragePool", x, name=name), self.extents[x])

    def flatten(self, x, spatial=1):
        return self.mark(self.op("Flatten", x), self.extents[x] * spatial)

    def reshape(self, x, *target, channels=0, name=""):
        return self.mark(self.op("Reshape", x, self.constant(list(target)), name=name), channels)

    def transpose(self, x, *perm, channels=0, name=""):
        return self.mark(self.op("Transpose", x, perm=list(perm), name=name), channels)

    def classify(self, x, name="fc"):
        """Global pooling and a classifier: the output axis is pinned."""
        return self.gemm(self.flatten(self.pool(x)), 5, name=name)


def chain():
    n = Net()
    x = n.relu(n.batch_norm(n.conv(n.image(), 8, name="conv1"), "bn1"))
    x = n.relu(n.conv(x, 12, stride=2, name="conv2"))
    return n.model(n.classify(x))


def residual_identity():
    n = Net()
    x = n.relu(n.conv(n.image(), 8, name="stem"))
    for i in range(2):
        inner = n.relu(n.conv(x, 6, name=f"block{i}.conv1"))
        x = n.relu(n.add(n.conv(inner, 8, name=f"block{i}.conv2"), x))
    return n.model(n.classify(x))


def residual_projection():
    n = Net()
    x = n.relu(n.conv(n.image(), 8, name="stem"))
    inner = n.relu(n.conv(x, 6, stride=2, name="conv1"))
    short = n.batch_norm(n.conv(x, 12, 1, stride=2, bias=False, name="proj"), "proj.bn")
    return n.model(n.classify(n.relu(n.add(n.conv(inner, 12, name="conv2"), short))))


def residual_padded():
    """CIFAR ResNets' shortcut without parameters: strided slice, channels padded with zeros."""
    n = Net()
    x = n.relu(n.conv(n.image(), 8, name="stem"))
    main = n.conv(n.relu(n.conv(x, 6, stride=2, name="conv1")), 12, name="conv2")
    every = [n.constant(v) for v in ([0, 0], [9, 9], [2, 3], [2, 2])]
    short = n.op("Pad", n.op("Slice", x, *every), n.constant([0, 2, 0, 0, 0, 2, 0, 0]), name="pad")
    return n.model(n.classify(n.relu(n.add(main, short))))


def dense_block():
    n = Net()
    x = n.relu(n.conv(n.image(), 8, name="stem"))
    for i in range(2):
        inner = n.relu(n.conv(n.relu(n.batch_norm(x, f"layer{i}.bn")), 6, 1, name=f"layer{i}.conv1"))
        x = n.concat(x, n.conv(inner, 4, name=f"layer{i}.conv2"), name=f"layer{i}.concat")
    return n.model(n.classify(n.relu(n.conv(x, 10, 1, name="transition"))))


def depthwise_separable():
    n = Net()
    x = n.relu(n.conv(n.image(), 6, name="stem"))
    inner = n.relu(n.conv(x, 12, 1, name="expand"))
    inner = n.relu(n.conv(inner, 12, group=12, name="depthwise"))
    x = n.add(n.conv(inner, 6, 1, name="project"), x)
    return n.model(n.classify(x))


def channel_shuffle():
    """ShuffleNet v2: split in halves, one of them convolved, concatenated, shuffled."""
    n = Net()
    x = n.relu(n.conv(n.image(), 12, name="stem"))
    for i in range(2):
        left, right = (n.mark(v, 6) for v in n.ops("Split", x, n.constant([6, 6]), axis=1, outputs=2))
        right = n.relu(n.conv(right, 6, 1, name=f"unit{i}.conv1"))
        right = n.conv(right, 6, group=6, name=f"unit{i}.depthwise")
        right = n.relu(n.conv(right, 6, 1, name=f"unit{i}.conv2"))
        x = n.concat(left, right, name=f"unit{i}.concat")
        x = n.reshape(x, 1, 2, 6, 8, 8)
        x = n.reshape(n.transpose(x, 0, 2, 1, 3, 4), 1, 12, 8, 8, channels=12)
    return n.model(n.classify(n.relu(n.conv(x, 8, 1, name="last"))))


def squeeze_excitation():
    n = Net()
    x = n.relu(n.conv(n.image(), 12, name="conv"))
    gate = n.relu(n.conv(n.pool(x, "se.pool"), 4, 1, name="se.reduce"))
    gate = n.mark(n.op("Sigmoid", n.conv(gate, 12, 1, name="se.expand")), 12)
    return n.model(n.classify(n.mul(x, gate)))


def flatten_gemm():
    n = Net()
    x = n.relu(n.conv(n.image(), 6, stride=2, name="conv"))
    x = n.relu(n.gemm(n.flatten(x, 16), 10, name="fc1"))
    return n.model(n.gemm(x, 5, name="fc2"))


def attention(n, x, *, fused, name="attn", heads=4, depth=3, tokens=6):
    width = heads * depth
    parts = []
    if fused:
        qkv = n.reshape(n.linear(x, 3 * width, name=f"{name}.qkv"), 1, tokens, 3, heads, depth)
        qkv = n.transpose(qkv, 2, 0, 3, 1, 4)
        parts = [n.op("Gather", qkv, n.constant(np.array(i)), axis=0) for i in range(3)]
    else:
        for part in "qkv":
            y = n.reshape(n.linear(x, width, name=f"{name}.{part}"), 1, tokens, heads, depth)
            parts.append(n.transpose(y, 0, 2, 1, 3))
    q, k, v = parts
    scores = n.op("MatMul", q, n.transpose(k, 0, 1, 3, 2), name=f"{name}.scores")
    scores = n.op("Mul", scores, n.constant(np.float32(depth**-0.5)), name=f"{name}.scale")
    mixed = n.op("MatMul", n.op("Softmax", scores, axis=-1, name=f"{name}.softmax"), v, name=f"{name}.mix")
    merged = n.reshape(n.transpose(mixed, 0, 2, 1, 3), 1, tokens, width, channels=width)
    return n.linear(merged, n.extents[x], name=f"{name}.proj")


def transformer(*, fused):
    n = Net()
    x = n.linear(n.tokens(), 8, name="embed")
    x = n.add(x, attention(n, n.layer_norm(x, "norm1"), fused=fused))
    inner = n.linear(n.layer_norm(x, "norm2"), 10, name="mlp.fc1")
    x = n.add(x, n.linear(n.relu(inner), 8, name="mlp.fc2"))
    return n.model(n.linear(x, 5, name="head"))


def unet():
    n = Net()
    skip = n.relu(n.conv(n.image(), 6, name="down1"))
    deep = n.relu(n.conv(skip, 10, stride=2, name="down2"))
    up = n.op("Resize", deep, None, n.constant(np.float32([1, 1, 2, 2])), mode="nearest", name="up")
    joined = n.concat(skip, n.mark(up, 10), name="skip")
    x = n.relu(n.conv(joined, 8, name="up1"))
    return n.model(n.conv(x, 2, 1, name="out"))


def group_norm():
    """GroupNorm as exporters write it: Reshape, InstanceNormalization, Reshape, scale, shift."""
    n = Net()
    x = n.conv(n.image(), 12, name="conv")
    flat = n.reshape(x, 0, 3, -1, name="gn.split")
    ones, zeros = (
        n.constant(np.ones(3, np.float32), "gn.ones"),
        n.constant(np.zeros(3, np.float32), "gn.zeros"),
    )
    normal = n.op("InstanceNormalization", flat, ones, zeros, name="gn.norm")
    back = n.mark(n.op("Reshape", normal, n.op("Shape", x, name="gn.shape"), name="gn.merge"), 12)
    scaled = n.op("Mul", back, n.weight((12, 1, 1), "gn.weight"), name="gn.scale")
    shifted = n.mark(n.op("Add", scaled, n.weight((12, 1, 1), "gn.bias"), name="gn.shift"), 12)
    return n.model(n.classify(n.relu(shifted)))


CANONICAL = {
    "chain": chain,
    "residual_identity": residual_identity,
    "residual_projection": residual_projection,
    "residual_padded": residual_padded,
    "dense_block": dense_block,
    "depthwise_separable": depthwise_separable,
    "channel_shuffle": channel_shuffle,
    "squeeze_excitation": squeeze_excitation,
    "flatten_gemm": flatten_gemm,
    "attention_separate": lambda: transformer(fused=False),
    "attention_fused": lambda: transformer(fused=True),
    "unet": unet,
    "group_norm": group_norm,
}
