"""Sliding windows: where those of a convolution or a pooling lie, and how what they read is put back."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from onnxprune.rules.backward import Backward
from onnxprune.rules.expr import Expr
from onnxprune.rules.op import Op


@dataclass(frozen=True)
class Windows:
    """The windows along the spatial axes of an image.

    Attributes
    ----------
    kernel, strides, dilations
        Per axis.
    begins, ends
        How far windows reach beyond the image; None where that depends on the input.
    image, map
        Extents of the image and of the map of windows; None where they depend on the input.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    begins: tuple[int | None, ...]
    ends: tuple[int | None, ...]
    image: tuple[int | None, ...]
    map: tuple[int | None, ...]

    @property
    def spans(self) -> tuple[int, ...]:
        """How many positions each window spans."""
        return tuple((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True))

    @property
    def fixed(self) -> bool:
        """Whether all extents and pads are known."""
        return None not in (*self.image, *self.map, *self.begins)

    @property
    def reach(self) -> tuple[int, ...]:
        """How many positions, pads at the front included, all windows together span; for fixed windows."""
        return tuple(
            s * ((m or 0) - 1) + span for s, m, span in zip(self.strides, self.map, self.spans, strict=True)
        )


def windows(back: Backward, image: ir.Value, mapped: ir.Value, kernel: tuple[int, ...]) -> Windows:
    """The windows of a node that slides `kernel` over `image` and makes `mapped`."""
    op = back.op
    rank = len(kernel)
    ones = (1,) * rank
    strides, dilations = _ints(op, "strides", ones), _ints(op, "dilations", ones)
    sides = back.dims(image)[2:], back.dims(mapped)[2:]
    begins, ends = _pads(op, kernel, strides, dilations, sides)
    return Windows(kernel, strides, dilations, begins, ends, *sides)


def _ints(op: Op, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
    found = op.ints(name)
    return default if found is None else tuple(found)


def _pads(
    op: Op,
    kernel: tuple[int, ...],
    strides: tuple[int, ...],
    dilations: tuple[int, ...],
    sides: tuple[tuple[int | None, ...], tuple[int | None, ...]],
) -> tuple[tuple[int | None, ...], tuple[int | None, ...]]:
    rank = len(kernel)
    mode = op.str("auto_pad", "NOTSET")
    if mode == "VALID":
        return (0,) * rank, (0,) * rank
    if mode == "NOTSET":
        pads = _ints(op, "pads", (0,) * 2 * rank)
        return pads[:rank], pads[rank:]
    begins: list[int | None] = []
    ends: list[int | None] = []
    for k, s, d, image, mapped in zip(kernel, strides, dilations, *sides, strict=True):
        if s == 1 and mode != "NOTSET":
            total: int | None = (k - 1) * d
        elif image is None or mapped is None:
            total = None
        else:
            total = max((mapped - 1) * s + (k - 1) * d + 1 - image, 0)
        small = None if total is None else total // 2
        large = None if total is None or small is None else total - small
        begins.append(small if mode == "SAME_UPPER" else large)
        ends.append(large if mode == "SAME_UPPER" else small)
    return tuple(begins), tuple(ends)


def spread(back: Backward, mapped: Expr, weight: Expr, w: Windows, image: ir.Value, groups: int = 1) -> Expr:
    """Add what each window holds, times the weight, to the positions that it reads: a transposed convolution.

    Parameters
    ----------
    back
        The node that slides the windows.
    mapped
        What the windows hold, (N, channels of the map, ...).
    weight
        Like that of Conv: (channels of the map, channels of the image / groups, ...).
    w
        The windows.
    image
        A value whose spatial extents the result gets.
    groups
        As of Conv.
    """
    rank = len(w.kernel)
    attributes = {"strides": w.strides, "dilations": w.dilations, "group": groups, "kernel_shape": w.kernel}
    if w.fixed:
        begins = [b or 0 for b in w.begins]
        # How far the image goes on behind the last window; negative where the window reaches beyond it.
        rest = [(i or 0) + b - r for i, b, r in zip(w.image, begins, w.reach, strict=True)]
        if all(more < stride for more, stride in zip(rest, w.strides, strict=True)) and min(begins) >= 0:
            pads = [*begins, *(max(-more, 0) for more in rest)]
            padding = [max(more, 0) for more in rest]
            return mapped.op("ConvTranspose", weight, pads=pads, output_padding=padding, **attributes)
        whole = mapped.op("ConvTranspose", weight, **attributes)
        before = [0, 0, *(-b for b in begins)]
        return whole.pad(before, [0, 0, *rest])
    padding = [stride - 1 for stride in w.strides]
    whole = mapped.op("ConvTranspose", weight, output_padding=padding, **attributes)
    for axis in range(rank):
        whole = _crop(back, whole, w, axis, image)
    return whole


def _crop(back: Backward, whole: Expr, w: Windows, axis: int, image: ir.Value) -> Expr:
    """The image's positions along one axis of all that windows span, from extents at run time."""
    builder = back.builder
    extent = back.extent(image, axis + 2)
    if isinstance(extent, int):
        extent = builder.ints(extent)
    begin = w.begins[axis]
    start = _same_begin(back, w, axis, extent) if begin is None else builder.ints(begin)
    return whole.slice(axis + 2, start, extent + start)


def _same_begin(back: Backward, w: Windows, axis: int, extent: Expr) -> Expr:
    """The pad in front that SAME_UPPER or SAME_LOWER takes for an extent that is known at run time."""
    ints = back.builder.ints
    stride = ints(w.strides[axis])
    count = (extent + stride - ints(1)) / stride
    total = ((count - ints(1)) * stride + ints(w.spans[axis]) - extent).op("Max", ints(0))
    small = total / ints(2)
    return small if back.op.str("auto_pad", "") == "SAME_UPPER" else total - small


def padded(back: Backward, image: Expr, value: ir.Value, w: Windows, fill: float = 0.0) -> Expr:
    """The image with the pads that windows reach into, and not more: as wide as the windows together."""
    if not w.fixed:
        raise back.refusal("the image's extents are not fixed")
    before = [b or 0 for b in w.begins]
    after = [r - b - (i or 0) for r, b, i in zip(w.reach, before, w.image, strict=True)]
    if not any(before) and not any(after):
        return image
    widths = back.builder.ints(0, 0, *before, 0, 0, *after)
    return image.op("Pad", widths, fill)


def tap(image: Expr, w: Windows, offsets: tuple[int, ...]) -> Expr:
    """What all windows of a padded image read at one place of the kernel."""
    builder = image.builder
    starts = [o * d for o, d in zip(offsets, w.dilations, strict=True)]
    ends = [start + ((m or 0) - 1) * s + 1 for start, m, s in zip(starts, w.map, w.strides, strict=True)]
    if all(start == 0 and end == r for start, end, r in zip(starts, ends, w.reach, strict=True)) and all(
        s == 1 for s in w.strides
    ):
        return image
    axes = range(2, 2 + len(starts))
    return image.op("Slice", *(builder.ints(*numbers) for numbers in (starts, ends, axes, w.strides)))
