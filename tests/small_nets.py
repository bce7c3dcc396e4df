"""Small networks that several test files share, built node by node."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from onnxprune.testing import ModelBuilder

ROOT = Path(__file__).parents[1]
MODELS = ROOT / "models"
REAL = ROOT.parent / "shared" / "real"


class Net(ModelBuilder):
    """A builder that names weights like exporters do and makes them of one float type."""

    def __init__(self, dtype: ir.DataType = ir.DataType.FLOAT, **options) -> None:
        super().__init__(**options)
        self.dtype = dtype

    def data(self, name: str, shape: Sequence[int | str]) -> ir.Value:
        return self.input(name, shape, self.dtype)

    def normal(self, shape: Sequence[int], name: str, scale: float = 1.0) -> ir.Value:
        array = self.rng.standard_normal(tuple(shape)) * scale
        return self.constant(array.astype(self.dtype.numpy()), name)

    def conv(self, x, name: str, shape: Sequence[int], *, bias: bool = True, **attributes) -> ir.Value:
        fan = np.prod(shape[1:])
        weight = self.normal(shape, f"{name}.weight", 1 / np.sqrt(fan))
        inputs = [x, weight, *([self.normal(shape[:1], f"{name}.bias", 0.1)] if bias else [])]
        pads = [side // 2 for side in shape[2:]] * 2
        return self.op("Conv", *inputs, name=name, kernel_shape=list(shape[2:]), pads=pads, **attributes)

    def linear(self, x, name: str, inner: int, outer: int) -> ir.Value:
        weight = self.normal((outer, inner), f"{name}.weight", 1 / np.sqrt(inner))
        return self.op("Gemm", x, weight, self.normal((outer,), f"{name}.bias", 0.1), name=name, transB=1)

    def batch_norm(self, x, name: str, channels: int) -> ir.Value:
        scale, bias, mean = (
            self.normal((channels,), f"{name}.{part}") for part in ("weight", "bias", "mean")
        )
        spread = self.constant(
            self.rng.uniform(0.5, 2, channels).astype(self.dtype.numpy()), f"{name}.variance"
        )
        return self.op("BatchNormalization", x, scale, bias, mean, spread, name=name)

    def head(self, x, channels: int, classes: int = 4) -> ir.Value:
        pooled = self.op("Flatten", self.op("GlobalAveragePool", x, name="pool"), name="flat")
        weight = self.normal((classes, channels), "head.weight", 1 / np.sqrt(channels))
        bias = self.normal((classes,), "head.bias", 0.1)
        return self.ops("Gemm", pooled, weight, bias, outputs=["logits"], name="head", transB=1)[0]


def convnet(
    widths: Sequence[int] = (16, 32, 24),
    *,
    batch: int | str = "n",
    size: int = 8,
    dtype: ir.DataType = ir.DataType.FLOAT,
    norm: bool = False,
    seed: int = 0,
) -> ir.Model:
    """conv0, relu0, conv1, relu1, ..., global pooling, head; `image` in, `logits` out."""
    net = Net(dtype, seed=seed)
    x = net.data("image", (batch, 3, size, size))
    before = 3
    for number, width in enumerate(widths):
        x = net.conv(x, f"conv{number}", (width, before, 3, 3))
        if norm:
            x = net.batch_norm(x, f"bn{number}", width)
        x, before = net.op("Relu", x, name=f"relu{number}"), width
    return net.model(net.head(x, before))


def residual(width: int = 32, blocks: int = 2, inner: int = 16) -> ir.Model:
    """A stem and residual blocks of two convolutions; the stream is one group, each block has another."""
    net = Net()
    x = net.op(
        "Relu", net.conv(net.data("image", ("n", 3, 8, 8)), "stem", (width, 3, 3, 3)), name="stem_relu"
    )
    for number in range(blocks):
        y = net.conv(x, f"block{number}.a", (inner, width, 3, 3))
        y = net.conv(net.op("Relu", y, name=f"block{number}.mid"), f"block{number}.b", (width, inner, 3, 3))
        x = net.op("Relu", net.op("Add", x, y, name=f"block{number}.add"), name=f"block{number}.out")
    return net.model(net.head(x, width))


def grouped(channels: int = 32, groups: int = 4) -> ir.Model:
    """A 1x1 convolution, a grouped one, a 1x1 one."""
    net = Net()
    x = net.op(
        "Relu", net.conv(net.data("image", ("n", 3, 6, 6)), "before", (channels, 3, 1, 1)), name="relu0"
    )
    x = net.conv(x, "grouped", (channels, channels // groups, 3, 3), group=groups)
    x = net.conv(net.op("Relu", x, name="relu1"), "after", (16, channels, 1, 1))
    return net.model(net.head(x, 16))


def attention(tokens: int = 5, width: int = 32, heads: int = 4) -> ir.Model:
    """One self-attention block with a residual connection, as exporters write it; heads are units."""
    net = Net()
    x = net.data("tokens", ("n", tokens, width))
    size = width // heads

    def project(source, name: str) -> ir.Value:
        weight = net.normal((width, width), f"{name}.weight", 1 / np.sqrt(width))
        return net.op("MatMul", source, weight, name=name)

    def split(value, name: str, perm: Sequence[int]) -> ir.Value:
        shape = net.constant(np.array([0, tokens, heads, size]), f"{name}.shape")
        return net.op("Transpose", net.op("Reshape", value, shape, name=f"{name}.split"), perm=list(perm))

    q = split(project(x, "q"), "q", (0, 2, 1, 3))
    k = split(project(x, "k"), "k", (0, 2, 3, 1))
    v = split(project(x, "v"), "v", (0, 2, 1, 3))
    weights = net.op("Softmax", net.op("MatMul", q, k, name="scores"), axis=-1, name="softmax")
    mixed = net.op("Transpose", net.op("MatMul", weights, v, name="mix"), perm=[0, 2, 1, 3])
    joined = net.op("Reshape", mixed, net.constant(np.array([0, tokens, width]), "join.shape"), name="join")
    out = net.ops("Add", x, project(joined, "out"), outputs=["mixed"], name="residual")[0]
    return net.model(out)


def save(model: ir.Model, path: Path) -> Path:
    """Write a model without any of onnxprune's own code."""
    ir.save(model, path)
    return path


def feeds(count: int = 6, *, seed: int = 0, classes: int = 4) -> dict[str, np.ndarray]:
    """Samples for `convnet` and its kin, with labels."""
    rng = np.random.default_rng(seed)
    image = rng.standard_normal((count, 3, 8, 8)).astype(np.float32)
    return {"image": image, "labels": rng.integers(0, classes, count)}
