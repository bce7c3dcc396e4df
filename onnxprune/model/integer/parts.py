"""The nodes between integers and floats: made, found, taken over. These mutate the graph."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.model import edit
from onnxprune.model.integer.notes import Made, Template

Array = np.ndarray[Any, Any]

_SUFFIX = "_quantized"
"""onnxruntime's suffix of names of quantised tensors."""


class NotThisForm(Exception):
    """The node is not of a form that is taken apart; says why."""


@dataclass(frozen=True)
class Quantized:
    """A tensor of integers with what they stand for: `(integers - zero) * scale`."""

    integers: ir.Value
    scale: ir.Value
    zero: ir.Value | None


@dataclass
class Workbench:
    """A graph in which operators are taken apart.

    Attributes
    ----------
    graph
        Mutated.
    opset
        Version of the standard operators.
    known
        DequantizeLinear nodes that several operators share: those of weights.
    """

    graph: ir.Graph
    opset: int
    known: dict[tuple[object, ...], ir.Value] = field(default_factory=dict)

    def dequantize(self, before: ir.Node, what: Quantized, axis: int | None, **attributes: int) -> ir.Value:
        """The floats that integers stand for; weights that two operators share stay shared."""
        constant = is_constant(what.integers)
        key = (what.integers, what.scale, what.zero, axis)
        if constant and key in self.known:
            return self.known[key]
        name = what.integers.name or ""
        name = name[: -len(_SUFFIX)] if constant and name.endswith(_SUFFIX) else f"{name}/float"
        if axis is not None:
            attributes["axis"] = axis
        inputs = [what.integers, what.scale] + ([] if what.zero is None else [what.zero])
        out = self.add(
            before, "DequantizeLinear", inputs, name, what.scale.dtype or ir.DataType.FLOAT, **attributes
        )
        out.shape = shape_of(what.integers)
        if constant:
            self.known[key] = out
        return out

    def add(
        self,
        before: ir.Node,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        name: str,
        dtype: ir.DataType | None,
        **attributes: int,
    ) -> ir.Value:
        """Add a node with one output."""
        out = ir.Value(
            name=edit.fresh(self.graph, name), type=None if dtype is None else ir.TensorType(dtype)
        )
        given = [ir.AttrInt64(key, number) for key, number in attributes.items()]
        label = edit.fresh(self.graph, f"{out.name}/{op_type}")
        self.graph.insert_before(before, ir.Node("", op_type, inputs, given, outputs=[out], name=label))
        return out

    def replace(
        self, old: ir.Node, op_type: str, inputs: Sequence[ir.Value | None], attributes: Mapping[str, ir.Attr]
    ) -> ir.Node:
        """Put an operator of floats before `old`, under its name; the output is new."""
        out = ir.Value(
            name=edit.fresh(self.graph, f"{old.outputs[0].name}/float"),
            type=ir.TensorType(ir.DataType.FLOAT),
            shape=shape_of(old.outputs[0]),
        )
        node = ir.Node("", op_type, inputs, list(attributes.values()), outputs=[out], name=old.name)
        self.graph.insert_before(old, node)
        node.name = old.name  # a graph gives names to nodes that have none
        return node


def take_place(graph: ir.Graph, old: ir.Value, new: ir.Value) -> None:
    """Let `new` have the name, the declaration and the users of `old`, as an output of the graph, too."""
    name = old.name
    new.type, new.shape, new.doc_string = old.type or new.type, old.shape, old.doc_string
    new.metadata_props.update(old.metadata_props)
    new.meta.update(old.meta)
    old.name = None
    new.name = name
    old.replace_all_uses_with(new, replace_graph_outputs=True)


def give_back(graph: ir.Graph, old: ir.Value, new: ir.Value) -> None:
    """The same where `new` is what a template remembers: a value without a type in the file has none."""
    typed = new.type is not None or old.is_graph_output()
    take_place(graph, old, new)
    if not typed:
        new.type = None
    sweep(graph, [old])


def shape_of(value: ir.Value) -> ir.Shape | None:
    """The extents of a value, as far as they are declared."""
    if value.const_value is not None:
        return ir.Shape(value.const_value.shape.numpy())
    return None if value.shape is None else value.shape.copy()


def is_constant(value: ir.Value | None) -> bool:
    """Whether a value is an initializer that no caller sees or feeds."""
    return (
        value is not None
        and value.is_initializer()
        and value.const_value is not None
        and not value.is_graph_output()
        and not value.is_graph_input()
    )


def array_of(value: ir.Value | None, what: str) -> Array:
    """The data of an initializer; not this form where it is none."""
    if value is None or value.const_value is None or not is_constant(value):
        raise NotThisForm(f"{what} is computed")
    return np.asarray(value.const_value.numpy())


def one_value(value: ir.Value | None) -> bool:
    """Whether a scale is one number: known as such, or an activation's that is computed at run time."""
    if value is None:
        return True
    shape = shape_of(value)
    return shape is None or (len(shape) <= 1 and all(dim == 1 for dim in shape))


def rank_of(value: ir.Value) -> int | None:
    """Rank of a value, as far as it is declared."""
    shape = shape_of(value)
    return None if shape is None else len(shape)


def build(
    graph: ir.Graph,
    before: ir.Node,
    template: Template,
    inputs: Sequence[ir.Value | None],
    attributes: Mapping[str, ir.Attr] | None = None,
    declared: bool = True,
) -> ir.Node:
    """The node that a template remembers, before another one.

    Parameters
    ----------
    graph, before
        Where the node goes.
    template, inputs, attributes
        What it is; attributes are the template's where none are given.
    declared
        Whether the remembered shapes of its outputs still hold.
    """
    outs = [_value(graph, made, declared) for made in template.outputs]
    node = ir.Node(
        template.domain,
        template.op_type,
        inputs,
        list((template.attributes if attributes is None else attributes).values()),
        outputs=outs,
        doc_string=template.doc_string,
        metadata_props=dict(template.metadata) or None,
        name=template.name,
    )
    graph.insert_before(before, node)
    node.name = template.name
    return node


def _value(graph: ir.Graph, made: Made, declared: bool) -> ir.Value:
    return ir.Value(name=made.name, type=made.type, shape=made.shape if declared else None)


def restore(graph: ir.Graph, name: str, array: Array, dtype: ir.DataType) -> ir.Value:
    """An initializer under a name that the file had for it, unless something else bears that now."""
    if name in edit.used_names(graph):
        return edit.add_initializer(graph, name, array, dtype)
    value = ir.Value(name=name)
    edit.set_tensor(value, edit.tensor(array, dtype, name))
    graph.register_initializer(value)
    return value


def sweep(graph: ir.Graph, values: Iterable[ir.Value | None]) -> None:
    """Remove nodes and initializers behind these values that nothing reads any more."""
    waiting = [value for value in values if value is not None]
    while waiting:
        value = waiting.pop()
        if value.uses() or value.is_graph_output() or value.is_graph_input():
            continue
        node = value.producer()
        if node is None:
            name = value.name or ""
            if graph.initializers.get(name) is value:
                del graph.initializers[name]
        elif node.graph is graph and not any(o.uses() or o.is_graph_output() for o in node.outputs):
            waiting += [given for given in node.inputs if given is not None]
            graph.remove(node, safe=True)
