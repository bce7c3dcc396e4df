"""torchvision's basic-block ResNets with random weights, node by node: their topology, without PyTorch."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from onnxprune.testing import ModelBuilder

BLOCKS = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3)}
"""Basic blocks per stage; the stages are 64, 128, 256 and 512 channels wide."""


def build_resnet(name: str, *, folded: bool) -> ir.Model:
    """A ResNet for inputs of (N, 3, 224, 224); BatchNormalization folded into the convolutions or not."""
    b = ModelBuilder(opset=18)
    x = b.input("input", ("batch", 3, 224, 224))
    x = _relu(b, _conv(b, x, 3, 64, 7, 2, "conv1", folded))
    x = b.op("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1], name="maxpool")
    width = 64
    for stage, blocks in enumerate(BLOCKS[name], start=1):
        for number in range(blocks):
            wider = 64 * 2 ** (stage - 1)
            stride = 2 if stage > 1 and number == 0 else 1
            x = _basic_block(b, x, width, wider, stride, f"layer{stage}.{number}", folded)
            width = wider
    x = b.op("Flatten", b.op("GlobalAveragePool", x), axis=1)
    return b.model(
        b.op("Gemm", x, b.weight((1000, 512), "fc.weight"), b.weight((1000,)), transB=1, name="fc")
    )


def build_chain(widths: Sequence[int]) -> ir.Model:
    """Convolutions one after another, `widths[i]` channels wide, and one more that makes the output."""
    b = ModelBuilder(opset=18)
    x = b.input("input", ("batch", 3, 4, 4))
    width = 3
    for number, wider in enumerate(widths):
        x = _relu(b, _conv(b, x, width, wider, 1, 1, f"conv{number}", True))
        width = wider
    return b.model(_conv(b, x, width, 2, 1, 1, "last", True))


def _basic_block(
    b: ModelBuilder, x: ir.Value, width: int, wider: int, stride: int, name: str, folded: bool
) -> ir.Value:
    y = _relu(b, _conv(b, x, width, wider, 3, stride, f"{name}.conv1", folded))
    y = _conv(b, y, wider, wider, 3, 1, f"{name}.conv2", folded)
    if stride != 1:
        x = _conv(b, x, width, wider, 1, stride, f"{name}.downsample", folded)
    return _relu(b, b.op("Add", y, x))


def _conv(
    b: ModelBuilder, x: ir.Value, width: int, wider: int, kernel: int, stride: int, name: str, folded: bool
) -> ir.Value:
    bound = (3 / (width * kernel * kernel)) ** 0.5  # keeps the variance, so that the logits stay finite
    weight = b.weight((wider, width, kernel, kernel), f"{name}.weight", low=-bound, high=bound)
    pads = [kernel // 2] * 4
    shape = {"kernel_shape": [kernel, kernel], "strides": [stride, stride], "pads": pads}
    if folded:
        bias = b.weight((wider,), f"{name}.bias", low=-0.1, high=0.1)
        return b.op("Conv", x, weight, bias, name=name, **shape)
    y = b.op("Conv", x, weight, name=name, **shape)
    scale, variance = (b.weight((wider,), f"{name}.{part}", low=0.5, high=1.5) for part in ("scale", "var"))
    shift, mean = (b.weight((wider,), f"{name}.{part}", low=-0.1, high=0.1) for part in ("shift", "mean"))
    return b.op("BatchNormalization", y, scale, shift, mean, variance, name=f"{name}.bn")


def _relu(b: ModelBuilder, x: ir.Value) -> ir.Value:
    return b.op("Relu", x)
