"""Duplicate and proportional channels: one of them stays, and its consumers' weights do the others' work."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxprune.graph.axes import Axis, Bools, Index
from onnxprune.graph.groups import Group
from onnxprune.graph.relations import Sink
from onnxprune.model import edit
from onnxprune.model.quantized import QuantizedTensor
from onnxprune.slimming.classes import TOLERANCE, joined
from onnxprune.slimming.known import Array
from onnxprune.slimming.same import Alike, Likeness
from onnxprune.slimming.units import UnitFinder
from onnxprune.surgery.clone import clone_model

_MOST_RATIOS = 64
"""Positions of a unit up to which they may have factors of their own; those of larger ones have to be equal."""

_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def find_duplicates(finder: UnitFinder, likeness: Likeness, group: Group, zero: Bools) -> tuple[Index, str]:
    """The first unit that each unit of a group is a positive multiple of.

    Parameters
    ----------
    finder, likeness
        Of the model; not mutated.
    zero
        Units that are no duplicates, because they go anyway.

    Returns
    -------
    first, why
        Per unit the number of the first one like it (its own where there is none before it); and why they cannot
        be merged, empty where they can.
    """
    alone = np.arange(group.units)
    keys: list[Index] = [np.where(zero, alone, -1)]
    factors: dict[Axis, Array] = {}
    why = ""
    for sink, unit, on_weight in finder.sinks(group):
        if (finder.idle(group, sink, on_weight) | zero).all():
            continue
        found = _at(sink, unit, group.units, likeness)
        if found is None:
            return alone, ""
        why = why or _refusal(finder, sink)
        keys.append(found.label)
        if sink.parameter is not None:
            before = factors.setdefault(sink.parameter, found.scale)
            if before is not found.scale:  # a shared weight
                keys.append(joined(np.zeros(group.units, np.int64), numbers=before / found.scale))
    if len(keys) < 2:
        return alone, ""
    label = joined(*keys)
    _, place, back = np.unique(label, return_index=True, return_inverse=True)
    first = place[back.ravel()]
    return np.asarray(first, np.int64), why


def _at(sink: Sink, unit: Index, units: int, likeness: Likeness) -> Alike | None:
    """Classes and factors of whole units where they are summed over; None where all are distinct."""
    alike, dim = likeness.found.get(sink.axis.value), sink.axis.dim
    if alike is None or alike.label.shape[dim] != len(unit):
        return None
    label, scale = (np.moveaxis(a, dim, 0).reshape(len(unit), -1) for a in (alike.label, alike.scale))
    order = np.argsort(unit, kind="stable")
    order = order[unit[order] >= 0]
    counts = np.bincount(unit[order], minlength=units)
    if len(set(counts.tolist())) != 1 or not (scale[order] > 0).all():
        return None
    labels, scales = label[order].reshape(units, -1), scale[order].reshape(units, -1)
    ratios = scales / scales[:, :1]
    wide = ratios.shape[1] > _MOST_RATIOS
    if wide and (np.abs(ratios - 1) > TOLERANCE).any():
        return None
    kinds = joined(*labels.T, numbers=None if wide else ratios)
    if len(np.unique(kinds)) == units:
        return None
    return Alike(kinds, scales[:, 0])


def _refusal(finder: UnitFinder, sink: Sink) -> str:
    kind = sink.where.node.op_type
    if sink.parameter is None:
        return f"{kind} multiplies them with another activation, or sums them"
    if sink.parameter in finder.graph.blocked or sink.where.int("group", 1) > 1:
        return f"{kind} reads them in groups of channels"
    if not finder.only_read(sink):
        return "the weight that reads them has other uses"
    if kind not in _LAYERS or finder.constants.array(sink.parameter.value) is None:
        return f"{kind} reads them, whose weights cannot be added up, or may be fed"
    if isinstance(sink.parameter.value.const_value, QuantizedTensor):
        return (
            f"{kind} reads them with a quantised weight, and sums of weights would have to be rounded again"
        )
    return ""


def merge_units(
    finder: UnitFinder, likeness: Likeness, merges: Sequence[tuple[Group, Bools, Index]]
) -> ir.Model:
    """A copy of the model in which consumers read the first of several like units, and the others no more.

    Parameters
    ----------
    finder, likeness
        Of the model, which is not mutated.
    merges
        Groups, which of their units are merged, and into which (see `find_duplicates`).
    """
    clone = clone_model(finder.graph.model)
    done: set[Axis] = set()
    for group, goes, first in merges:
        for sink, unit, on_weight in finder.sinks(group):
            axis = sink.parameter
            if axis is None or on_weight is None or axis in done:
                continue
            found = _at(sink, unit, group.units, likeness)
            target = clone.values[axis.value]
            if target.const_value is None or (
                found is None and not finder.idle(group, sink, on_weight).all()
            ):
                continue
            done.add(axis)
            array = np.moveaxis(np.asarray(target.const_value.numpy()), axis.dim, 0)
            total = array.astype(np.float64)
            for u in np.flatnonzero(goes).tolist():
                factor = 1.0 if found is None else found.scale[u] / found.scale[first[u]]
                here, there = np.flatnonzero(on_weight == u), np.flatnonzero(on_weight == first[u])
                total[there] += factor * total[here]
                total[here] = 0
            edit.set_array(target, np.moveaxis(total.astype(array.dtype), 0, axis.dim))
    return clone.model
