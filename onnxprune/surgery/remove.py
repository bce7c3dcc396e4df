"""Physical removal: slice initializers, refit what carries an extent, settle computed shapes, check them.

`remove` never trusts a rule: after the cut every value's shape is inferred again and compared with what the
kept positions say. Whatever passes here is then compared with the masked model in onnxruntime.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.graph.axes import Axis, Blocked, Bools, Kept
from onnxprune.graph.build import AxisGraph
from onnxprune.model import edit, fold
from onnxprune.model.quantized import QuantizedTensor
from onnxprune.model.shapes import Dims, walk_shapes
from onnxprune.rules.op import Op
from onnxprune.rules.refit import Refit
from onnxprune.surgery.clone import Clone, clone_model
from onnxprune.surgery.keep import slice_array, sliced_shape
from onnxprune.surgery.stored import cut_quantized

Data = dict[ir.Value, np.ndarray[Any, Any]]


class RefitError(Exception):
    """A value of the cut model has another shape than its kept positions say: a rule is wrong or missing.

    Attributes
    ----------
    where
        The node that makes the value.
    """

    def __init__(self, where: str, expected: Dims, got: Dims | None) -> None:
        super().__init__(f"{where}: expected shape {expected}, the cut graph gives {got}")
        self.where = where


def remove(axis_graph: AxisGraph, kept: Kept) -> ir.Model:
    """A copy of the model without the dropped positions.

    Parameters
    ----------
    axis_graph
        Of the model to cut, which is not mutated.
    kept
        Positions that stay, per axis.

    Raises
    ------
    RefitError
        The shapes of the cut model do not fit together.
    """
    clone = clone_model(axis_graph.model)
    if not kept:
        return clone.model
    _slice_initializers(axis_graph, clone, kept)
    touched = {axis.value for axis in kept}
    refits = [r for op in axis_graph.ops if (r := _refit(axis_graph, clone, op, kept, touched)) is not None]
    _declare(clone, kept)
    _settle(axis_graph, clone, kept, refits)
    return clone.model


def _slice_initializers(axis_graph: AxisGraph, clone: Clone, kept: Kept) -> None:
    by_value: dict[ir.Value, dict[int, Bools]] = defaultdict(dict)
    for axis, flags in kept.items():
        if axis.value.const_value is not None:  # masks and tables of integers, too
            by_value[axis.value][axis.dim] = flags
    for value, dims in by_value.items():
        blocked = {
            dim: axis_graph.blocked[Axis(value, dim)]
            for dim in dims
            if Axis(value, dim) in axis_graph.blocked
        }
        _slice_one(clone.values[value], dims, blocked)


def _slice_one(value: ir.Value, dims: dict[int, Bools], blocked: dict[int, Blocked]) -> None:
    data = value.const_value
    if data is None:
        raise ValueError(f"{value.name!r} is no initializer")
    if isinstance(data, QuantizedTensor):
        edit.set_tensor(value, cut_quantized(data, dims, blocked))
    elif isinstance(data, ir.ExternalTensor):
        shape = sliced_shape(tuple(data.shape.numpy()), dims, blocked)
        edit.set_lazy(value, shape, lambda: slice_array(data.numpy(), dims, blocked))
    else:
        edit.set_array(value, slice_array(data.numpy(), dims, blocked))


def _refit(axis_graph: AxisGraph, clone: Clone, op: Op, kept: Kept, touched: set[ir.Value]) -> Refit | None:
    node = op.node
    if not _computed(axis_graph, node) and not any(
        value in touched for value in (*node.inputs, *node.outputs) if value is not None
    ):
        return None
    rule = axis_graph.rules.of(node)
    if rule is None:
        return None
    refit = Refit(op, clone.nodes[node], kept, axis_graph.blocked)
    rule.refit(op, refit)
    return refit


def _computed(axis_graph: AxisGraph, node: ir.Node) -> bool:
    """Whether the node has an input that is computed from shapes: cutting other tensors may change it."""
    data = axis_graph.shapes.data
    return any(value in data and value.const_value is None for value in node.inputs if value is not None)


def _declare(clone: Clone, kept: Kept) -> None:
    """Write the new extents into the declared shapes; symbolic dims stay."""
    for axis, flags in kept.items():
        value = clone.values[axis.value]
        if value.shape is not None and value.const_value is None:
            dims = list(value.shape)
            dims[axis.dim] = int(flags.sum())
            value.shape = ir.Shape(dims)


@dataclass
class _Settling:
    """State of the walk that corrects computed shapes and numbers."""

    axis_graph: AxisGraph
    clone: Clone
    wanted: dict[ir.Node, Refit]
    original: dict[ir.Node, ir.Node]

    def before(self, node: ir.Node, dims: dict[ir.Value, Dims], data: Data) -> None:
        refit = self.wanted.get(node)
        if refit is not None:
            for slot in {**refit.wanted, **refit.moving}:
                self._override(node, slot, self._corrections(refit, slot, data), dims, data)
        if node.op_type == "Cast":
            self._freeze(node, dims, data)

    def _corrections(self, refit: Refit, slot: int, data: Data) -> dict[int, int | Fraction]:
        """Entries of a computed integer input that did not adapt by themselves, and what they have to be.

        A Fraction is a factor: of an entry that depends on the symbolic dims and still counts all positions.
        """
        value = refit.node.inputs[slot]
        now = None if value is None else data.get(value)
        wanted, moving = refit.wanted.get(slot, {}), refit.moving.get(slot, {})
        if now is None:
            return {**wanted, **dict.fromkeys(moving, -1)}
        entries = np.ravel(now).tolist()
        found: dict[int, int | Fraction] = {i: w for i, w in wanted.items() if entries[i] != w}
        before = refit.op.data(slot)
        for i, w in moving.items():
            if entries[i] not in (w, -1):
                whole = before is not None and entries[i] > 0 and np.ravel(before)[i] == entries[i]
                found[i] = Fraction(w, entries[i]) if whole else -1
        return found

    def _override(
        self,
        node: ir.Node,
        slot: int,
        entries: dict[int, int | Fraction],
        dims: dict[ir.Value, Dims],
        data: Data,
    ) -> None:
        """Correct entries of a computed integer input: `Where(mask, wanted, computed * factor / divisor)`."""
        value = node.inputs[slot]
        if value is None or not entries:
            return
        now = data.get(value)
        extents = dims.get(value)
        graph = node.graph
        if extents is None or len(extents) != 1 or extents[0] is None or not isinstance(graph, ir.Graph):
            raise RefitError(f"{node.op_type} {node.name!r}", (), extents)
        dtype = value.dtype or ir.DataType.INT64
        chosen = np.zeros(extents[0], bool)
        wanted = np.zeros(extents[0], dtype.numpy())
        factors = [np.ones(extents[0], dtype.numpy()) for _ in range(2)]
        for index, entry in entries.items():
            if isinstance(entry, Fraction):
                factors[0][index], factors[1][index] = entry.numerator, entry.denominator
            else:
                chosen[index], wanted[index] = True, entry
        steps: list[tuple[str, list[tuple[str, np.ndarray[Any, Any], ir.DataType]], bool]] = []
        if any((factor != 1).any() for factor in factors):
            steps += [
                (op_type, [(name, array, dtype)], True)
                for op_type, name, array in zip(("Mul", "Div"), ("factor", "divisor"), factors, strict=True)
            ]
        if chosen.any():
            constants = [("cut", chosen, ir.DataType.BOOL), ("extent", wanted, dtype)]
            steps.append(("Where", constants, False))
        for op_type, arrays, first in steps:
            made = [edit.add_initializer(graph, f"{value.name}/{n}", a, t) for n, a, t in arrays]
            edit.insert_before(node, slot, op_type, made, first=first)
            between = node.inputs[slot]
            if between is not None:
                between.type, between.shape = ir.TensorType(dtype), ir.Shape(extents)
                dims[between] = extents
        settled = node.inputs[slot]
        if settled is not None and now is not None:
            data[settled] = np.where(chosen, wanted, now * factors[0] // factors[1])

    def _freeze(self, node: ir.Node, dims: dict[ir.Value, Dims], data: Data) -> None:
        """An extent that is cast to float is a number (a scale such as 1/sqrt(d)), not a shape: keep its value."""
        old = self.original.get(node)
        if old is None or not ir.DataType(node.attributes["to"].as_int()).is_floating_point():
            return
        shapes = self.axis_graph.shapes
        before = shapes.data.get(old.outputs[0])
        after = fold.evaluate(node, dims, data)
        if (
            before is None
            or after is None
            or before.shape != after.shape  # cut itself
            or np.array_equal(before, after)
            or old.outputs[0] in shapes.varying
        ):
            return
        graph = node.graph
        if isinstance(graph, ir.Graph):
            dtype = ir.DataType(node.attributes["to"].as_int())
            constant = edit.add_initializer(graph, f"{node.outputs[0].name}/kept", before, dtype)
            dims[constant], data[constant] = before.shape, before
            for user, slot in tuple(node.outputs[0].uses()):
                user.replace_input_with(slot, constant)


def _settle(axis_graph: AxisGraph, clone: Clone, kept: Kept, refits: list[Refit]) -> None:
    """Infer all shapes again, correct computed extents on the way, and compare with the kept positions."""
    back = {new: old for old, new in clone.nodes.items()}
    settling = _Settling(axis_graph, clone, {r.node: r for r in refits if r.wanted or r.moving}, back)
    found = walk_shapes(clone.model, axis_graph.shapes.bindings, settling.before, axis_graph.rules.infer)
    for old in axis_graph.model.graph:
        for value in old.outputs:
            extents = axis_graph.shapes.dims.get(value)
            if extents is None:
                continue
            expected = tuple(
                int(kept[axis].sum()) if (axis := Axis(value, dim)) in kept else extent
                for dim, extent in enumerate(extents)
            )
            got = found.get(clone.values[value])
            if (
                got is None
                or len(got) != len(expected)
                or any(g is not None and e is not None and g != e for g, e in zip(got, expected, strict=True))
            ):
                raise RefitError(f"{old.op_type} {old.name!r}", expected, got)
