"""VJPs of Conv and ConvTranspose, each of which is the other's gradient with respect to the input.

The gradient of the weight is, at each place of the kernel, a product of two matrices: what the windows of all
samples read there, and the gradient of what they made. Grouped convolutions are batches of such products. A
depthwise one has nothing to multiply matrices for: it multiplies positions and sums them, or, where that is
slower, convolves the image with the gradient.
"""

from __future__ import annotations

import itertools
import math

import onnx_ir as ir

from onnxprune.rules.backward import Backward, Vjp
from onnxprune.rules.expr import Expr, vector
from onnxprune.rules.op import Op
from onnxprune.rules.rule import Key
from onnxprune.rules.windows import Windows, padded, spread, tap, windows

_FEW_CHANNELS = 4
"""Input channels up to which one convolution over samples beats a product per place of the kernel."""

_MANY_PLACES, _SHORT_ROW = 25, 8
"""A kernel of more places, or shorter rows of the map, make that so for depthwise ones, too; so does a stride."""


def _kernel(back: Backward) -> tuple[int, ...]:
    dims = back.dims(back.op.input(1))[2:]
    if None in dims:
        raise back.refusal("its kernel has no fixed size")
    return tuple(extent or 0 for extent in dims)


def _bias(back: Backward) -> None:
    if back.wants(2):
        rank = back.rank(back.op.output())
        back.give(2, back.g.sum(0, *range(2, rank), keep=False))


def _conv(op: Op, back: Backward) -> None:
    x = op.input(0)
    w = windows(back, x, op.output(), _kernel(back))
    groups = op.int("group", 1)
    if back.wants(0):
        back.give(0, _flipped(back, w, groups) or spread(back, back.g, back.x(1), w, x, groups))
    if back.wants(1):
        back.give(1, _weight(back, back.x(0), back.g, w, groups))
    _bias(back)


def _flipped(back: Backward, w: Windows, groups: int) -> Expr | None:
    """Convolve the gradient with the kernel turned around: faster than ConvTranspose for many groups."""
    ends = w.ends
    pads = [
        None if pad is None else span - 1 - pad
        for side in (w.begins, ends)
        for pad, span in zip(side, w.spans, strict=True)
    ]
    if groups == 1 or set(w.strides) != {1} or any(pad is None or pad < 0 for pad in pads):
        return None
    weight = back.x(1)
    rows, columns = (extent or 0 for extent in back.dims(back.op.input(1))[:2])
    axes = list(range(2, 2 + len(w.kernel)))
    ints = back.builder.ints
    if set(w.kernel) != {1}:
        low, high = -(1 << 31), (1 << 31) - 1
        count = len(axes)
        weight = weight.op(
            "Slice", ints(*[high] * count), ints(*[low] * count), ints(*axes), ints(*[-1] * count)
        )
    if columns > 1 or rows > groups:
        apart = weight.reshape([groups, rows // groups, columns, *w.kernel])
        turned = apart.transpose([0, 2, 1, *(axis + 1 for axis in axes)])
        weight = turned.reshape([groups * columns, rows // groups, *w.kernel])
    return back.g.op("Conv", weight, pads=pads, dilations=w.dilations, group=groups, kernel_shape=w.kernel)


def _weight(back: Backward, image: Expr, mapped: Expr, w: Windows, groups: int) -> Expr:
    """The gradient of a convolution's weight, (channels of the map, channels of the image / groups, ...)."""
    op = back.op
    transposed = op.node.op_type == "ConvTranspose"
    pair = (op.output(), op.input(0)) if transposed else (op.input(0), op.output())
    image_channels, map_channels = (back.dims(value)[1] for value in pair)
    if image_channels is None or map_channels is None:
        raise back.refusal("its number of channels is not known")
    depthwise = groups == image_channels == map_channels
    if not w.fixed or _is_for_convolution(w, groups, image_channels, depthwise):
        return _by_convolution(back, image, pair[0], mapped, w, groups, image_channels // groups)
    whole = padded(back, image, pair[0], w)
    places = list(itertools.product(*(range(extent) for extent in w.kernel)))
    rank = 2 + len(w.kernel)
    if depthwise:
        parts = [(tap(whole, w, place) * mapped).sum(0, *range(2, rank), keep=False) for place in places]
        stacked = back.builder.concat([part.unsqueeze(-1) for part in parts], -1)
        return stacked.reshape([groups, 1, *w.kernel])
    columns, rows = image_channels // groups, map_channels // groups
    order = [1, 0, *range(2, rank)]
    left = mapped.transpose(order).reshape([groups, rows, -1])
    seen = whole.transpose(order)
    products = [
        left @ tap(seen, w, place).reshape([groups, columns, -1]).transpose([0, 2, 1]) for place in places
    ]
    stacked = back.builder.concat([product.unsqueeze(-1) for product in products], -1)
    return stacked.reshape([map_channels, columns, *w.kernel])


def _is_for_convolution(w: Windows, groups: int, image_channels: int, depthwise: bool) -> bool:
    """Whether convolving the image with the gradient is the fastest way, as measured in onnxruntime."""
    if set(w.kernel) == {1}:
        return False
    if depthwise:
        row = w.map[-1] or 0
        return set(w.strides) != {1} or math.prod(w.kernel) > _MANY_PLACES or row < _SHORT_ROW
    return groups == 1 and image_channels <= _FEW_CHANNELS


def _by_convolution(
    back: Backward, image: Expr, value: ir.Value, mapped: Expr, w: Windows, groups: int, columns: int
) -> Expr:
    """Convolve the image with the gradient as the kernel, samples taking the part of channels.

    The channels of a group, of which there are `columns`, take the part of samples. The image's extents are
    those of `value`.
    """
    rank = 2 + len(w.kernel)
    order = [1, 0, *range(2, rank)]
    seen = image.transpose(order)
    if groups > 1:
        extents = back.extents(value)[2:]
        if columns > 1:
            apart = seen.reshape(vector(back.builder, [groups, columns, -1, *extents]))
            seen = apart.transpose([1, 0, 2, *range(3, rank + 1)])
        seen = seen.reshape(vector(back.builder, [columns, -1, *extents]))
    product = seen.op(
        "Conv",
        mapped.transpose(order),
        pads=_convolved_pads(back, w),
        strides=w.dilations,
        dilations=w.strides,
        group=groups,
    )
    whole = product.transpose(order)
    ints = back.builder.ints
    count = len(w.kernel)
    return whole.op("Slice", ints(*[0] * count), ints(*w.kernel), ints(*range(2, rank)))


def _convolved_pads(back: Backward, w: Windows) -> list[int]:
    """Pads of the image; at the end enough for the last place of the kernel."""
    if None in w.begins:
        raise back.refusal("its pads depend on the input")
    begins = [b or 0 for b in w.begins]
    if w.fixed:
        ends = [max(r - b - (i or 0), 0) for r, b, i in zip(w.reach, begins, w.image, strict=True)]
    else:
        ends = [end or 0 for end in w.ends]
    return [*begins, *ends]


def _transposed(op: Op, back: Backward) -> None:
    """Y = ConvTranspose(X, W) puts windows into Y: dX is what they read of dY."""
    kernel, groups = _kernel(back), op.int("group", 1)
    w = _output_windows(back, kernel)
    if back.wants(0):
        begins, ends = ([pad or 0 for pad in side] for side in (w.begins, w.ends))
        seen = back.g
        if min(*begins, *ends) < 0:
            seen = seen.pad([0, 0, *begins], [0, 0, *ends])
            begins = ends = [0] * len(kernel)
        made = seen.op(
            "Conv",
            back.x(1),
            strides=w.strides,
            dilations=w.dilations,
            pads=[*begins, *ends],
            group=groups,
            kernel_shape=kernel,
        )
        back.give(0, made)
    if back.wants(1):
        back.give(1, _weight(back, back.g, back.x(0), w, groups))
    _bias(back)


def _output_windows(back: Backward, kernel: tuple[int, ...]) -> Windows:
    """The windows in a transposed convolution's output, padded so that there are as many as inputs."""
    op, rank = back.op, len(kernel)
    image, mapped = back.dims(op.output())[2:], back.dims(op.input(0))[2:]
    strides = tuple(op.ints("strides") or [1] * rank)
    dilations = tuple(op.ints("dilations") or [1] * rank)
    more = op.ints("output_padding") or [0] * rank
    mode, asked = op.str("auto_pad", "NOTSET"), op.ints("output_shape")
    begins, ends = [], []
    for axis in range(rank):
        span = (kernel[axis] - 1) * dilations[axis] + 1
        if mode == "NOTSET" and asked is None:
            pads = op.ints("pads") or [0] * 2 * rank
            begin, end = pads[axis], pads[axis + rank] - more[axis]
        else:
            size, count = (image[axis], mapped[axis]) if len(image) == len(mapped) else (None, None)
            if size is None or count is None:
                raise back.refusal("its output's extents are not fixed")
            total = strides[axis] * (count - 1) + span + more[axis] - size
            begin = total // 2 if mode == "SAME_UPPER" else total - total // 2
            end = total - begin - more[axis]
        begins.append(begin)
        ends.append(end)
    return Windows(kernel, strides, dilations, tuple(begins), tuple(ends), image, mapped)


VJPS: dict[Key, Vjp] = {("", "Conv"): _conv, ("", "ConvTranspose"): _transposed}
