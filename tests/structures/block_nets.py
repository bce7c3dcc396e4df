"""Building blocks of architectures, node by node, and what is found in them as lines of text."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxprune.testing import Checked, check_model
from tests.nets import Net


def check(net: Net, *outputs, **options) -> Checked:
    """Assert masked == removed for all groups and alternatives."""
    return check_model(net.model(*outputs), **{"seeds": (0, 1), **options})


def spans(uses) -> str:
    """Name axes of parameters: `conv[0]+bias` is the weight's axis 0 and the bias of the same layer."""
    told: list[str] = []
    last = ""
    for use in uses:
        value, dim = use.axis.name.rsplit("[", 1)
        layer, _, part = value.rpartition(".")
        if layer and layer == last and dim == "0]":
            told[-1] += f"+{part}"
        else:
            told.append(f"{value.removesuffix('.weight')}[{dim}")
        last = layer
    return " ".join(told)


def lines(groups) -> list[str]:
    """`name: units[ of width][ in blocks]: sources -> sinks`, one per group."""
    told = []
    for group in groups:
        width = "" if group.width == 1 else f" of {group.width}"
        blocks = "" if group.blocks is None else f" in {group.block_count} blocks"
        size = f"{group.units}{width}{blocks}"
        told.append(f"{group.name}: {size}: {spans(group.sources)} -> {spans(group.sinks)}")
    return told


def used(result: Checked) -> list[str]:
    """The groups in use."""
    return lines(result.partition.groups)


def others(result: Checked) -> list[str]:
    """The alternatives."""
    return lines(result.partition.alternatives)


def pinned(result: Checked, *axes: str) -> list[str]:
    """Names of the reasons that block these axes; `free` where nothing does."""
    reasons = [result.reason(axis) for axis in axes]
    return ["free" if reason is None else reason.name for reason in reasons]


class Blocks(Net):
    """Layers with a symbolic batch, and the small steps between them."""

    def picture(self, channels: int = 3, size: int = 8):
        return self.image(channels, size, batch="n")

    def sequence(self, width: int = 8, tokens: int = 6):
        return self.tokens(width, tokens, batch="n")

    def like(self, op_type: str, x, *rest, name: str = "", **attributes):
        """Add a node that keeps the channels of its first input."""
        return self.mark(self.op(op_type, x, *rest, name=name, **attributes), self.extents.get(x, 0))

    def silu(self, x):
        return self.like("Mul", x, self.like("Sigmoid", x))

    def softmax(self, x, axis: int):
        return self.like("Softmax", x, axis=axis, name="softmax")

    def scalar(self, value, name: str = "scalar"):
        return self.constant(np.float32(value), name)

    def split(self, x, *sizes: int, axis: int = 1, name: str = "split"):
        parts = self.ops("Split", x, self.constant(list(sizes)), axis=axis, outputs=len(sizes), name=name)
        return [self.mark(part, size) for part, size in zip(parts, sizes, strict=True)]

    def slice(self, x, start: int, end: int, axis: int = 1, step: int = 1, channels: int | None = None):
        bounds = [self.constant([v]) for v in (start, end, axis, step)]
        y = self.op("Slice", x, *bounds, name="slice")
        return self.mark(y, end - start if channels is None else channels)

    def gather(self, x, indices: Sequence[int] | int, axis: int = 1, name: str = "gather"):
        y = self.op("Gather", x, self.constant(np.array(indices, np.int64)), axis=axis, name=name)
        return self.mark(y, np.size(indices))

    def mean(self, x, *axes: int, keep: bool = True, name: str = "mean"):
        y = self.op("ReduceMean", x, axes=list(axes), keepdims=int(keep), name=name)
        return self.mark(y, self.extents[x])

    def unsqueeze(self, x, *axes: int):
        return self.like("Unsqueeze", x, self.constant(list(axes)))

    def resize(self, x, factor: float = 2, name: str = "resize", **attributes):
        scales = self.constant(np.float32([1, 1, factor, factor]), "scales")
        return self.like("Resize", x, None, scales, name=name, mode="nearest", **attributes)

    def conv_nd(self, x, channels: int, shape: Sequence[int], *, name: str, group: int = 1, **attributes):
        """Convolve over any number of spatial axes."""
        w = self.weight((channels, self.extents[x] // group, *shape), f"{name}.weight")
        bias = self.weight((channels,), f"{name}.bias")
        return self.mark(self.op("Conv", x, w, bias, group=group, name=name, **attributes), channels)

    def up_conv(self, x, channels: int, *, name: str, group: int = 1):
        """Transposed convolution that doubles the resolution."""
        w = self.weight((self.extents[x], channels // group, 2, 2), f"{name}.weight")
        bias = self.weight((channels,), f"{name}.bias")
        y = self.op("ConvTranspose", x, w, bias, strides=[2, 2], group=group, name=name)
        return self.mark(y, channels)

    def stem(self, channels: int = 8, size: int = 8):
        """Image, convolution, ReLU."""
        return self.relu(self.conv(self.picture(size=size), channels, name="stem"))
