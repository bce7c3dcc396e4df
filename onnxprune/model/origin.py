"""What `normalize` takes away from a model and `finalize` gives back. It travels in the graph's `meta`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import onnx_ir as ir

_ORIGIN = "onnxprune.origin"
_SPLIT = "onnxprune.split"


@dataclass(frozen=True)
class Origin:
    """The parts of the original model's interface that its normalised form lacks.

    Attributes
    ----------
    inputs
        Names of all graph inputs in order, initializers that are listed among them included.
    idle
        Names of listed initializers that nothing used; they are inputs that callers may feed.
    imports
        Opset imports.
    untyped
        Names of node outputs without a declared element type.
    """

    inputs: tuple[str, ...]
    idle: frozenset[str]
    imports: Mapping[str, int] = field(default_factory=dict)
    untyped: frozenset[str] = frozenset()


def remember(graph: ir.Graph) -> Origin:
    """Note down the graph's interface; a graph that was normalised before keeps what was noted then."""
    known = graph.meta.get(_ORIGIN)
    if isinstance(known, Origin):
        return known
    listed = [value for value in graph.inputs if value.is_initializer()]
    origin = Origin(
        tuple(value.name or "" for value in graph.inputs),
        frozenset(v.name or "" for v in listed if not v.uses() and not v.is_graph_output()),
        dict(graph.opset_imports),
        frozenset(out.name or "" for node in graph for out in node.outputs if out.type is None),
    )
    graph.meta[_ORIGIN] = origin
    return origin


def twins(graph: ir.Graph) -> dict[str, str]:
    """Initializers that were split off a shared one: their name -> its name."""
    return dict(graph.meta.get(_SPLIT, {}))


def note_twins(graph: ir.Graph, new: Mapping[str, str]) -> None:
    """Add to what `twins` returns. The old mapping is left alone: clones share it."""
    graph.meta[_SPLIT] = {**twins(graph), **new}


def forget(graph: ir.Graph) -> None:
    """Remove all notes."""
    graph.meta.pop(_ORIGIN, None)
    graph.meta.pop(_SPLIT, None)
