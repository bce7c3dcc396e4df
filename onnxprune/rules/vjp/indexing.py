"""VJPs of gathers and scatters: each is put back by the other."""

from __future__ import annotations

import numpy as np

from onnxprune.rules.backward import Backward, Vjp
from onnxprune.rules.op import Op
from onnxprune.rules.rule import Key
from onnxprune.rules.vjp.scatter import put_back, put_back_run, scatter

_LARGEST = 1 << 16
"""Indices up to which constant ones are looked at."""


def _gather(op: Op, back: Backward) -> None:
    data, indices = op.input(0), op.input(1)
    rank, width = back.rank(data), back.rank(indices)
    axis = op.int("axis", 0) % rank
    extent = back.dims(data)[axis]
    tensor = indices.const_value
    if tensor is not None and extent is not None and width < 2 and tensor.size <= _LARGEST:
        taken = np.asarray(tensor.numpy(), np.int64) % max(extent, 1)
        if width == 1:
            back.give(0, put_back(back, back.g, data, axis, taken))
        else:
            first = int(taken)
            back.give(0, put_back_run(back.g.unsqueeze(axis), {axis: (first, extent - 1 - first)}, rank))
        return
    back.give(0, scatter(back, back.g, data, axis, back.x(1), width))


def _gather_elements(op: Op, back: Backward) -> None:
    zeros = back.builder.zeros(back.shape(op.input(0)))
    axis = op.int("axis", 0)
    back.give(0, zeros.op("ScatterElements", back.x(1), back.g, axis=axis, reduction="add"))


def _gather_nd(op: Op, back: Backward) -> None:
    if op.int("batch_dims", 0):
        raise back.refusal("it has batch axes")
    zeros = back.builder.zeros(back.shape(op.input(0)))
    back.give(0, zeros.op("ScatterND", back.x(1), back.g, reduction="add"))


def _scatter_elements(op: Op, back: Backward) -> None:
    _check_reduction(op, back)
    axis = op.int("axis", 0)
    if back.wants(0):
        kept = back.g
        if op.str("reduction", "none") == "none":
            zeros = back.builder.zeros(back.shape(op.input(2)))
            kept = kept.op("ScatterElements", back.x(1), zeros, axis=axis)
        back.give(0, kept)
    if back.wants(2):
        back.give(2, back.g.op("GatherElements", back.x(1), axis=axis))


def _scatter_nd(op: Op, back: Backward) -> None:
    _check_reduction(op, back)
    if back.wants(0):
        kept = back.g
        if op.str("reduction", "none") == "none":
            kept = kept.op("ScatterND", back.x(1), back.builder.zeros(back.shape(op.input(2))))
        back.give(0, kept)
    if back.wants(2):
        back.give(2, back.g.op("GatherND", back.x(1)))


def _check_reduction(op: Op, back: Backward) -> None:
    if op.str("reduction", "none") not in ("none", "add"):
        raise back.refusal(f"its reduction is {op.str('reduction', 'none')!r}")


VJPS: dict[Key, Vjp] = {
    ("", "Gather"): _gather,
    ("", "GatherElements"): _gather_elements,
    ("", "GatherND"): _gather_nd,
    ("", "ScatterElements"): _scatter_elements,
    ("", "ScatterND"): _scatter_nd,
}
