"""Who reads a value."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import onnx_ir as ir


class Use(NamedTuple):
    """A node, and as which input it reads a value."""

    node: ir.Node
    slot: int


def only_use(value: ir.Value) -> Use | None:
    """The one place where a value is read; None for any other number of them, and for outputs of the graph."""
    uses = list(itertools.islice(value.uses(), 2))
    return Use(uses[0].node, uses[0].idx) if len(uses) == 1 and not value.is_graph_output() else None


def only_user(value: ir.Value) -> ir.Node | None:
    """The node that alone reads a value, once."""
    use = only_use(value)
    return None if use is None else use.node
