"""Quantised weights without dropped positions: what stays keeps its stored numbers, scales and zero points."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.graph.axes import Blocked, Bools
from onnxprune.model import edit
from onnxprune.model.quantized import QuantizedTensor
from onnxprune.surgery.keep import slice_array, sliced_shape

Array = np.ndarray[Any, Any]


def cut_quantized(
    tensor: QuantizedTensor, kept: Mapping[int, Bools], blocked: Mapping[int, Blocked]
) -> QuantizedTensor:
    """A quantised weight without dropped positions.

    Where positions that shared a scale do not go together, so that those that are left fit no scale (parts
    of blocks along an axis, columns of grouped weights with a scale each), the floats are cut and wait to
    be rounded again.

    Parameters
    ----------
    kept, blocked
        As for `slice_array`.
    """

    def part(array: Array) -> Array:
        return slice_array(array, kept, blocked)

    shape = sliced_shape(tensor.extents, kept, blocked)
    scale, zero = (_cut_scale(tensor, array, kept, blocked) for array in (tensor.scale, tensor.zero))
    if scale is None or zero is None:
        return tensor.holding(part(tensor.plain().numpy()))
    stored, dtype = tensor.stored, tensor.stored.dtype
    cut: ir.TensorProtocol
    if isinstance(stored, ir.ExternalTensor | ir.LazyTensor):
        cut = ir.LazyTensor(
            lambda: edit.tensor(part(stored.numpy()), dtype), dtype=dtype, shape=ir.Shape(shape)
        )
    else:
        cut = edit.tensor(part(stored.numpy()), dtype)
    return tensor.rearranged(
        {
            "stored": cut,
            "scale": scale,
            "zero": zero,
            "floats": None if tensor.floats is None else part(tensor.floats),
            "raw": None if tensor.raw_floats is None else part(tensor.raw_floats),
        }
    )


def _cut_scale(
    tensor: QuantizedTensor, scale: Array, kept: Mapping[int, Bools], blocked: Mapping[int, Blocked]
) -> Array | None:
    """Scales or zero points of what stays; None where they are no longer the layout's."""
    layout = tensor.layout
    if layout.axis is None:
        return scale
    if layout.block >= tensor.extents[layout.axis] and all(b.rows != layout.axis for b in blocked.values()):
        # one block, of whatever is left of it
        others = {dim: flags for dim, flags in kept.items() if dim != layout.axis}
        return slice_array(scale, others, {dim: b for dim, b in blocked.items() if dim in others})
    if layout.axis in blocked or (layout.block and blocked):
        spread = slice_array(np.array(layout.spread(scale, tensor.extents)), kept, blocked)
        rows = layout.rows(spread)
        return None if layout.block or (rows != rows[:, :1]).any() else rows[:, 0]
    if not layout.block:
        flags = kept.get(layout.axis)
        return scale if flags is None else scale[flags]
    for dim, flags in kept.items():
        if dim == layout.axis:
            gap = -len(flags) % layout.block
            runs = np.pad(flags, (0, gap), mode="edge").reshape(-1, layout.block)
            if (runs != runs[:, :1]).any():
                return None
            scale = np.compress(runs[:, 0], scale, axis=dim)
        else:
            scale = np.compress(flags, scale, axis=dim)
    return scale
