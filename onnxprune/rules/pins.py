"""Pinning of many axes at once, for operators that let few of them go."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from onnxprune.graph.axes import Axis

if TYPE_CHECKING:
    import onnx_ir as ir

    from onnxprune.errors import Reason
    from onnxprune.graph.relations import Relations
    from onnxprune.rules.op import Op


def pin_dims(relations: Relations, value: ir.Value, dims: Iterable[int], reason: Reason) -> None:
    """Pin these dims of `value`."""
    for dim in dims:
        relations.pin(Axis(value, dim), reason)


def pin_all(op: Op, relations: Relations, values: Iterable[ir.Value | None], reason: Reason) -> None:
    """Pin every axis of these values; inputs that are left out are None."""
    for value in values:
        if value is not None:
            pin_dims(relations, value, range(op.rank(value)), reason)
