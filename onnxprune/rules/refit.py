"""What a rule's REFIT may do to its node: attributes and constant inputs that carry an extent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.graph.axes import Axis, Blocked, Index, Kept, extent_left
from onnxprune.model import edit
from onnxprune.rules.op import Op


@dataclass
class Refit:
    """Reads extents of the model as it was, writes to the node of the model as it becomes.

    Attributes
    ----------
    op
        The node in the original model; axes are always the original's.
    node
        Its counterpart in the clone that is being cut. Mutated.
    wanted
        Entries that computed integer inputs must have, per slot: checked, and corrected, by the settling walk.
    moving
        The same for entries that depend on the symbolic dims: what they must be at the sizes of the analysis.
        Where they are not, they become -1.
    """

    op: Op
    node: ir.Node
    kept: Kept
    blocked: Mapping[Axis, Blocked]
    wanted: dict[int, dict[int, int]] = field(default_factory=dict)
    moving: dict[int, dict[int, int]] = field(default_factory=dict)

    def changed(self, axis: Axis) -> bool:
        """Whether the axis loses positions."""
        return axis in self.kept

    def keep(self, axis: Axis) -> Index | None:
        """Positions that stay, in order; None where all do."""
        flags = self.kept.get(axis)
        return None if flags is None else np.flatnonzero(flags)

    def extent(self, axis: Axis) -> int:
        """Extent after the cut."""
        left = extent_left(axis, self.kept, self.blocked)
        return (self.op.extent(axis) or 0) if left is None else left

    def count(self, axis: Axis, start: int, stop: int) -> int:
        """How many of the positions `start <= p < stop` stay."""
        flags = self.kept.get(axis)
        return max(stop - start, 0) if flags is None else int(flags[start:stop].sum())

    def set_int(self, name: str, value: int) -> None:
        """Set an integer attribute."""
        self.node.attributes[name] = ir.AttrInt64(name, value)

    def set_ints(self, name: str, values: Sequence[int]) -> None:
        """Set an attribute that is a list of integers."""
        self.node.attributes[name] = ir.AttrInt64s(name, [int(v) for v in values])

    def drop_attribute(self, name: str) -> None:
        """Remove an attribute where it is present."""
        self.node.attributes.pop(name, None)

    def entries(self, slot: int, wanted: Mapping[int, int]) -> None:
        """Demand values for some entries of a 1-D integer input.

        A constant input is replaced at once, where it differs. A computed one may adapt by itself, so it is
        looked at when all shapes are known again.
        """
        value = self.node.inputs[slot]
        if value is None:
            raise KeyError(f"{self.op.label} has no input {slot}")
        if value.const_value is None:
            self.wanted.setdefault(slot, {}).update(wanted)
            return
        old = value.const_value.numpy()
        array = np.array(old)
        for index, entry in wanted.items():
            array[index] = entry
        if not np.array_equal(old, array):
            self.set_input(slot, array)

    def set_input(self, slot: int, array: np.ndarray[Any, Any]) -> None:
        """Replace an input by a constant; other users of the old one are left alone."""
        old = self.node.inputs[slot] if slot < len(self.node.inputs) else None
        if old is not None and old.const_value is not None and len(old.uses()) == 1:
            edit.set_array(old, array.astype(old.const_value.dtype.numpy()))
            return
        graph = self.node.graph
        if not isinstance(graph, ir.Graph):
            raise ValueError(f"{self.op.label} belongs to no graph")
        dtype = ir.DataType.INT64 if old is None or old.dtype is None else old.dtype
        base = f"{self.node.name or self.node.outputs[0].name}/{slot}" if old is None else str(old.name)
        new = edit.add_initializer(graph, base, array.astype(dtype.numpy()), dtype)
        if slot >= len(self.node.inputs):
            self.node.resize_inputs(slot + 1)
        self.node.replace_input_with(slot, new)
