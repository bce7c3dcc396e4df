"""Weights that a file stores as integers or 8-bit floats with scales and zero points, as the floats they mean.

The meaning is that of DequantizeLinear, https://onnx.ai/onnx/operators/onnx__DequantizeLinear.html: a
weight is (stored - zero) x scale, with one scale for the whole tensor, one per position of an axis, or one
per block of an axis.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.model import edit, rounding

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Layout:
    """Which elements of a tensor share a scale.

    Attributes
    ----------
    axis
        The axis along which scales differ; None where one scale serves the whole tensor.
    block
        Positions of the axis that share a scale, for each position of the other axes; 0: one scale per
        position of the axis, whatever the others.
    """

    axis: int | None = None
    block: int = 0

    def rows(self, array: Array) -> Array:
        """The elements as (scales, elements per scale); an incomplete last block is filled up with zeros."""
        if self.axis is None:
            return array.reshape(1, -1)
        if not self.block:
            return np.moveaxis(array, self.axis, 0).reshape(array.shape[self.axis], -1)
        gap = -array.shape[self.axis] % self.block
        padded = np.pad(array, [(0, gap if dim == self.axis else 0) for dim in range(array.ndim)])
        last = np.moveaxis(padded, self.axis, -1)
        return last.reshape(-1, self.block)

    def unrows(self, rows: Array, shape: tuple[int, ...]) -> Array:
        """The inverse of `rows` for a tensor of a shape."""
        if self.axis is None:
            return rows.reshape(shape)
        others = tuple(extent for dim, extent in enumerate(shape) if dim != self.axis)
        if not self.block:
            return np.moveaxis(rows.reshape(shape[self.axis], *others), 0, self.axis)
        last = np.moveaxis(rows.reshape(*others, -1), -1, self.axis)
        return np.take(last, np.arange(shape[self.axis]), axis=self.axis)

    def scales(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the scales of a tensor of a shape, where there is more than one."""
        if self.axis is None:
            return ()
        if not self.block:
            return (shape[self.axis],)
        return tuple(
            -(-extent // self.block) if dim == self.axis else extent for dim, extent in enumerate(shape)
        )

    def vector(self, scale: Array) -> Array:
        """Scales or zero points, one for each row of `rows`."""
        return (np.moveaxis(scale, self.axis, -1) if self.block and self.axis is not None else scale).ravel()

    def unvector(self, vector: Array, shape: tuple[int, ...]) -> Array:
        """The inverse of `vector` for a tensor of a shape."""
        if not self.block or self.axis is None:
            return vector
        wanted = self.scales(shape)
        others = tuple(extent for dim, extent in enumerate(wanted) if dim != self.axis)
        return np.moveaxis(vector.reshape(*others, -1), -1, self.axis)

    def spread(self, scale: Array, shape: tuple[int, ...]) -> Array:
        """Scales or zero points, broadcast to a tensor's shape."""
        if self.axis is None:
            return np.broadcast_to(scale.reshape(()), shape)
        if not self.block:
            lined = scale.reshape([-1 if dim == self.axis else 1 for dim in range(len(shape))])
            return np.broadcast_to(lined, shape)
        return np.take(np.repeat(scale, self.block, self.axis), np.arange(shape[self.axis]), self.axis)


@dataclass(frozen=True)
class Scheme:
    """How a weight lies in its file, so that it can be written like that again.

    Attributes
    ----------
    node
        The DequantizeLinear that made the weight.
    layout
        Which elements share a scale.
    perm, turn
        Where a Transpose follows: its `perm`, and the node. The weight is what it makes.
    of_product
        Whether this is a bias whose scale is that of its layer's input times that of its weight.
    quantize
        The QuantizeLinear before it where the file holds floats that are rounded when the model runs, and
        the names of its inputs. `node` reads its output then.
    whole, zero
        All that the file stores of this weight, before anything was cut.
    """

    node: Written
    layout: Layout
    whole: ir.TensorProtocol = field(repr=False, compare=False)
    zero: Array = field(repr=False, compare=False)
    quantize: Written | None = None
    perm: tuple[int, ...] = ()
    of_product: bool = False
    turn: Written | None = None

    @cached_property
    def grid(self) -> rounding.Grid:
        """The numbers that the weight's own scales leave to it: looked up once, when something has changed."""
        return rounding.grid_of(self.whole.numpy(), self.zero, self.whole.dtype)


@dataclass(frozen=True)
class Written:
    """A node as a file has it.

    Attributes
    ----------
    inputs
        Names; the empty string where an optional one is left out.
    typed, shaped
        Whether the file declares the type and the shape of the output.
    """

    op_type: str
    domain: str
    name: str
    inputs: tuple[str, ...]
    output: str
    attributes: tuple[ir.Attr, ...] = field(default=(), compare=False)
    typed: bool = True
    shaped: bool = True


def stored_name(value: ir.Value) -> str | None:
    """The name under which the file stores a quantised weight; None of others."""
    tensor = value.const_value
    if not isinstance(tensor, QuantizedTensor):
        return None
    first = tensor.scheme.quantize or tensor.scheme.node
    return first.inputs[0]


class QuantizedTensor(ir.LazyTensor):
    """A weight as floats, and what is stored for it.

    Parameters
    ----------
    stored
        Integers or 8-bit floats of the weight's shape.
    scale, zero
        As `layout` says; `zero` is of the type of `stored`, and zeros where the file has none.
    scheme
        How the file has it.
    dtype
        Of the floats.
    floats
        Other floats of the same shape that are to be stored instead: `settled` rounds them. The tensor's own
        numbers are the rounded ones, so that whoever looks on sees what will be written. None where `stored` says
        all.
    raw
        The floats that the file holds, where it holds floats.
    """

    __slots__ = ("_settled", "floats", "raw_floats", "scale", "scheme", "stored", "zero")

    def __init__(
        self,
        stored: ir.TensorProtocol,
        scale: Array,
        zero: Array,
        scheme: Scheme,
        dtype: ir.DataType,
        *,
        name: str | None = None,
        floats: Array | None = None,
        raw: Array | None = None,
    ) -> None:
        super().__init__(self._make, dtype, ir.Shape(stored.shape.numpy()), name=name)
        self.stored, self.scale, self.zero, self.scheme = stored, scale, zero, scheme
        self.floats, self.raw_floats = floats, raw
        self._settled: tuple[QuantizedTensor, int] | None = None

    @property
    def layout(self) -> Layout:
        """Which elements share a scale."""
        return self.scheme.layout

    @property
    def extents(self) -> tuple[int, ...]:
        """The shape as integers."""
        return tuple(int(extent) for extent in self.shape.numpy())

    def _make(self) -> ir.TensorProtocol:
        if self.floats is not None and self.stored.dtype == ir.DataType.INT32:
            return edit.tensor(
                self.floats, self.dtype, self.name
            )  # a bias: its scale is settled with its layer's
        return edit.tensor(self.settled()[0].meaning(), self.dtype, self.name)

    def plain(self) -> ir.TensorProtocol:
        """The floats that are to be stored, before they are rounded, as a tensor that is nothing else."""
        return edit.tensor(self.meaning() if self.floats is None else self.floats, self.dtype, self.name)

    def meaning(self) -> Array:
        """What the stored numbers mean."""
        spread = self.layout.spread
        return rounding.dequantize(
            self.stored.numpy(), spread(self.scale, self.extents), spread(self.zero, self.extents)
        ).astype(self.dtype.numpy())

    # --- other weights -----------------------------------------------------------------------------------

    def holding(self, array: Array) -> QuantizedTensor:
        """The same with other floats, of any shape, which are rounded when the model is written.

        Scales of a weight of another shape, or with other axes, are found anew.
        """
        array = np.asarray(array)
        if array.shape == self.extents:
            return self._with(self.stored, self.scale, self.zero, array)
        dtype = self.stored.dtype
        scales = self.scale.shape if self.layout.axis is None else self.layout.scales(array.shape)
        return self._with(
            edit.tensor(np.zeros(array.shape, dtype.numpy()), dtype),
            np.zeros(scales, self.scale.dtype),  # no scale: none of the old ones is tried
            np.full(scales, self.scheme.zero.ravel()[0], self.zero.dtype),
            array,
        )

    def moved(self, shape: tuple[int, ...], change: Callable[[Array], Array]) -> QuantizedTensor:
        """What `change` makes of the floats, to be rounded like any others; `shape` is the result's."""
        del shape
        return self.holding(change(self.numpy()))

    def _with(
        self, stored: ir.TensorProtocol, scale: Array, zero: Array, floats: Array | None
    ) -> QuantizedTensor:
        return QuantizedTensor(stored, scale, zero, self.scheme, self.dtype, name=self.name, floats=floats)

    def under(self, scheme: Scheme) -> QuantizedTensor:
        """The same weight, written in another way."""
        return self.rearranged(
            {
                "stored": self.stored,
                "scale": self.scale,
                "zero": self.zero,
                "scheme": scheme,
                "floats": self.floats,
                "raw": self.raw_floats,
            }
        )

    def rearranged(self, cut: Mapping[str, Any]) -> QuantizedTensor:
        """The weight with `stored`, `scale`, `zero`, `floats` and `raw` given anew, of one new shape."""
        return QuantizedTensor(
            cut["stored"],
            cut["scale"],
            cut["zero"],
            cut.get("scheme", self.scheme),
            self.dtype,
            name=self.name,
            floats=cut.get("floats"),
            raw=cut.get("raw"),
        )

    def settled(self) -> tuple[QuantizedTensor, int]:
        """The weight with its floats rounded to what can be stored, and how many scales had to be found anew.

        Floats that the old scales say exactly, and zeros, are stored as before: only where others are among
        the elements of a scale, that scale is chosen anew, as the one of several with the least squared
        error.
        """
        if self.floats is None:
            return self, 0
        if self._settled is None:
            self._settled = self._rounded(self.floats)
        return self._settled

    def _rounded(self, array: Array) -> tuple[QuantizedTensor, int]:
        layout, grid = self.layout, self.scheme.grid
        floats = layout.rows(np.asarray(array, np.float32))
        stored = layout.rows(self.stored.numpy())
        scale, zero = layout.vector(self.scale).copy(), layout.vector(self.zero).copy()
        old = layout.rows(np.asarray(self.meaning(), np.float32))
        same, none = floats == old, floats == 0
        result = np.where(same, stored, zero[:, None])
        moved = np.flatnonzero(~(same | none).all(axis=1) | (scale == 0))
        if len(moved):
            result = result.astype(self.stored.dtype.numpy())
            result[moved], scale[moved], zero[moved] = rounding.round_rows(
                floats[moved], scale[moved], zero[moved], grid
            )
        dtype = self.stored.dtype
        whole = layout.unrows(result, self.extents).astype(dtype.numpy())
        made = self._with(
            edit.tensor(whole, dtype),
            layout.unvector(scale, self.extents).reshape(self.scale.shape),
            layout.unvector(zero, self.extents).reshape(self.zero.shape),
            None,
        )
        return made, len(moved)

    def at_scale(self, scale: Array) -> QuantizedTensor:
        """The weight's floats rounded with given scales, which are of the shape of its own."""
        spread = self.layout.spread
        floats = np.asarray(self.plain().numpy(), np.float64)
        made = rounding.quantize(
            floats, spread(scale, self.extents), spread(self.zero, self.extents), self.stored.dtype
        )
        return self._with(
            edit.tensor(made, self.stored.dtype), scale.astype(self.scale.dtype), self.zero, None
        )
