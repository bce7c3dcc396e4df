"""The products of a recurrent layer, in a cut model and in the original."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxprune.graph.axes import Axis, Bools, Kept
from onnxprune.statistics.gates import Gates, gates_of

SHARED = "its weights are computed, or other layers share them"


def gates_to_repair(node: ir.Node, cut: ir.Node) -> dict[int, tuple[Gates, Gates]] | str:
    """By slot the products of a recurrent layer, the cut model's first; or why they cannot be repaired."""
    students, teachers = ({gates.slot: gates for gates in gates_of(each)} for each in (cut, node))
    if not teachers or teachers.keys() != students.keys():
        return SHARED
    if not all(gates.shifts for gates in (*teachers.values(), *students.values())):
        return "it has no biases of its own"
    return {slot: (students[slot], teachers[slot]) for slot in teachers}


def outputs_left(gates: Gates, kept: Kept) -> Bools | None:
    """Which outputs of W or R are left, (outputs,); None: all."""
    flags = kept.get(Axis(gates.weight, 1))
    return None if flags is None else np.tile(flags, gates.outputs // len(flags))
