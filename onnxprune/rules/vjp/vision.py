"""VJPs of Col2Im and MaxUnpool, which put windows into an image: what they put is read back.

Specification: https://onnx.ai/onnx/operators/onnx__Col2Im.html,
https://onnx.ai/onnx/operators/onnx__MaxUnpool.html
"""

from __future__ import annotations

import math

import numpy as np

from onnxprune.rules.backward import Backward, Vjp
from onnxprune.rules.expr import vector
from onnxprune.rules.op import Op
from onnxprune.rules.rule import Key


def _columns_to_image(op: Op, back: Backward) -> None:
    """Convolve every channel with kernels that read one place each."""
    kernel = op.ints("block_shape", 2)
    if kernel is None or op.varies(2):
        raise back.refusal("its block is not of fixed size")
    rank, places = len(kernel), math.prod(kernel)
    y = op.output()
    image = [back.extent(y, 2 + n) for n in range(rank)]
    one = back.builder.constant(np.eye(places, dtype=np.float32).reshape(places, 1, *kernel))
    ones = [1] * rank
    read = back.g.reshape(vector(back.builder, [-1, 1, *image])).op(
        *("Conv", one),
        dilations=op.ints("dilations") or ones,
        pads=op.ints("pads") or [0] * 2 * rank,
        strides=op.ints("strides") or ones,
        kernel_shape=kernel,
    )
    back.give(0, back.reshape_like(read, op.input(0)))


def _unpool(op: Op, back: Backward) -> None:
    """The indices count through the whole output."""
    if op.has(2) and not _expected(op, back):
        raise back.refusal("its output is larger than what its windows span")
    back.give(0, back.g.reshape([-1]).op("Gather", back.x(1), axis=0))


def _expected(op: Op, back: Backward) -> bool:
    """Whether the output has the size that windows and strides say."""
    kernel = op.ints("kernel_shape") or []
    strides, pads = op.ints("strides") or [1] * len(kernel), op.ints("pads") or [0] * 2 * len(kernel)
    before, after = back.dims(op.input(0))[2:], back.dims(op.output())[2:]
    if None in before or None in after:
        return False
    spans = [
        (extent or 0) * stride - stride + width - pads[n] - pads[n + len(kernel)]
        for n, (extent, stride, width) in enumerate(zip(before, strides, kernel, strict=True))
    ]
    return spans == list(after)


VJPS: dict[Key, Vjp] = {("", "Col2Im"): _columns_to_image, ("", "MaxUnpool"): _unpool}
