"""Weights that are stored in one float type and cast to another before they are used.

Mixed-precision exporters write `Cast(initializer)` in front of a layer that computes in another type than its
weight has in the file. For whoever scores, cuts and repairs weights the layer has a weight like any other, of the
type in which it is used; that is the normal form. How it is stored is noted, and the file gets its Cast again.
What is written to such a weight is rounded to the stored type at once, so that all that is measured afterwards
holds for the file.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.model import edit
from onnxprune.model.convert import FLOATS
from onnxprune.model.edit import STORED, StoredAs

Array = np.ndarray[Any, Any]

_KINDS = FLOATS | {ir.DataType.FLOAT}


class CastTensor(ir.LazyTensor):
    """A stored tensor, seen in another float type.

    Attributes
    ----------
    source
        What is stored.
    """

    def __init__(self, source: ir.TensorProtocol, dtype: ir.DataType, name: str | None) -> None:
        shape = ir.Shape(source.shape.numpy())
        super().__init__(lambda: edit.tensor(source.numpy(), dtype, name), dtype, shape, name=name)
        self.source = source

    def moved(self, shape: tuple[int, ...], change: Callable[[Array], Array]) -> CastTensor:
        """The same after a selection of elements or zeros in their place, which commute with the cast."""
        source = self.source
        stored = ir.LazyTensor(
            lambda: edit.tensor(change(source.numpy()), source.dtype, source.name),
            source.dtype,
            ir.Shape(shape),
            name=source.name,
        )
        return CastTensor(stored, self.dtype, self.name)


def take_casts(graph: ir.Graph) -> None:
    """Read through `Cast(initializer)` from one float type to another.

    Parameters
    ----------
    graph
        Mutated. Initializers that only Casts to one type use get that type and keep their names; others stay.
    """
    for value in tuple(graph.initializers.values()):
        data = value.const_value
        casts = {use.node for use in value.uses()}
        targets = {_target(node, graph) for node in casts}
        dtype = targets.pop() if len(targets) == 1 else None
        if data is None or dtype is None or data.dtype not in _KINDS or data.dtype == dtype:
            continue
        if value.is_graph_output() or value.is_graph_input() or STORED in value.meta:
            continue
        first = min(casts, key=lambda node: str(node.name))
        value.meta[STORED] = StoredAs(data.dtype, str(first.outputs[0].name), first.name)
        edit.set_tensor(value, CastTensor(data, dtype, value.name))
        for node in casts:
            node.outputs[0].replace_all_uses_with(value)
            graph.remove(node, safe=True)


def _target(node: ir.Node, graph: ir.Graph) -> ir.DataType | None:
    """The float type that a Cast of the graph itself makes; None for anything else."""
    to = node.attributes.get("to") if node.op_type == "Cast" and node.domain in ("", "ai.onnx") else None
    if to is None or to.is_ref() or node.graph is not graph or node.outputs[0].is_graph_output():
        return None
    dtype = ir.DataType(to.as_int())
    return dtype if dtype in _KINDS else None


def give_casts(graph: ir.Graph) -> None:
    """Undo `take_casts`: initializers are stored in their type again, behind a Cast.

    Parameters
    ----------
    graph
        Mutated. Initializers without users stay in the type in which they would be used.
    """
    order = {node: number for number, node in enumerate(graph)}
    for value in tuple(graph.initializers.values()):
        note, data, users = value.meta.pop(STORED, None), value.const_value, tuple(value.uses())
        if not isinstance(note, StoredAs) or data is None or not users or value.is_graph_output():
            continue
        used = data.dtype
        edit.set_tensor(value, data.source if isinstance(data, CastTensor) else _narrowed(data, note.dtype))
        output = ir.Value(
            name=edit.fresh(graph, note.output), type=ir.TensorType(used), shape=ir.Shape(data.shape.numpy())
        )
        name = edit.fresh(graph, note.node) if note.node else None
        node = ir.Node("", "Cast", [value], [ir.AttrInt64("to", int(used))], outputs=[output], name=name)
        for user, slot in users:
            user.replace_input_with(slot, output)
        inner = [user for user, _ in users if user not in order]
        graph.insert_before(graph[0] if inner else min((u for u, _ in users), key=order.__getitem__), node)


def _narrowed(data: ir.TensorProtocol, dtype: ir.DataType) -> ir.TensorProtocol:
    return ir.LazyTensor(
        lambda: edit.tensor(data.numpy(), dtype, data.name),
        dtype,
        ir.Shape(data.shape.numpy()),
        name=data.name,
    )
