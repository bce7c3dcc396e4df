"""What is remembered of an operator that was taken apart. It travels in `meta`, which clones share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

_NOTE = "onnxprune.integer"
_WHOLE = "onnxprune.integer.whole"
_ORDER = "onnxprune.integer.order"


@dataclass(frozen=True)
class Made:
    """An output of a node that is gone: how it is declared in the file."""

    name: str | None
    type: ir.TypeProtocol | None
    shape: ir.Shape | None


@dataclass(frozen=True)
class Template:
    """A node that is gone, without its inputs.

    Attributes
    ----------
    domain, op_type, name, doc_string, metadata, attributes
        Of the node.
    given
        Which of its inputs it has.
    outputs
        What it makes.
    """

    domain: str
    op_type: str
    name: str | None
    doc_string: str | None
    metadata: Mapping[str, str]
    attributes: Mapping[str, ir.Attr]
    given: tuple[bool, ...]
    outputs: tuple[Made, ...]

    @classmethod
    def of(cls, node: ir.Node) -> Template:
        """What is to be remembered of a node."""
        return cls(
            node.domain,
            node.op_type,
            node.name,
            node.doc_string,
            dict(node.metadata_props),
            dict(node.attributes),
            tuple(value is not None for value in node.inputs),
            tuple(Made(out.name, out.type, out.shape) for out in node.outputs),
        )

    def has(self, slot: int) -> bool:
        """Whether the node had input `slot`."""
        return slot < len(self.given) and self.given[slot]


@dataclass(frozen=True)
class Lowered:
    """What the node that carries this note was, before it was taken apart.

    Attributes
    ----------
    form
        How it is put together again: a key of the table of `onnxprune.model.integer.lift`.
    nodes
        The nodes that are gone, in the order in which the form knows them.
    more
        What the form remembers besides.
    """

    form: str
    nodes: tuple[Template, ...]
    more: Mapping[str, Any] = field(default_factory=dict)


def note(node: ir.Node, lowered: Lowered) -> None:
    """Let the operator of floats carry the note; copies of it carry the same."""
    node.meta[_NOTE] = lowered


def note_of(node: ir.Node) -> Lowered | None:
    """The note that a node carries."""
    found = node.meta.get(_NOTE)
    return found if isinstance(found, Lowered) else None


def forget_note(node: ir.Node) -> None:
    """Take the note away."""
    node.meta.pop(_NOTE, None)


def note_order(graph: ir.Graph) -> None:
    """Remember the order of the nodes, by the names of their first outputs."""
    names = (node.outputs[0].name for node in graph if node.outputs)
    graph.meta.setdefault(_ORDER, {name: number for number, name in enumerate(names) if name})


def order_of(graph: ir.Graph) -> Mapping[str, int]:
    """What `note_order` remembered."""
    return dict(graph.meta.get(_ORDER, {}))


def note_whole(graph: ir.Graph, reasons: Mapping[str, str]) -> None:
    """Remember which nodes, as messages name them, are of no known form, and why."""
    graph.meta[_WHOLE] = {**left_whole(graph), **reasons}


def left_whole(graph: ir.Graph) -> dict[str, str]:
    """Nodes of integer arithmetic that were not taken apart, as messages name them, with the reason."""
    return dict(graph.meta.get(_WHOLE, {}))


def lowered_operators(graph: ir.Graph) -> dict[str, int]:
    """How many operators of each type were taken apart; of several nodes, the first one counts."""
    found = Counter(lowered.nodes[0].op_type for node in graph if (lowered := note_of(node)) is not None)
    return dict(sorted(found.items()))


def forget_notes(graph: ir.Graph) -> None:
    """Take away what is remembered of the graph."""
    graph.meta.pop(_ORDER, None)
    graph.meta.pop(_WHOLE, None)
