"""MACs of nodes with bodies: of an If the costlier branch, of a Loop or a Scan every iteration.

Which branch is taken is not known, so the total is what a run costs at the most. A Loop whose number of iterations
is not known counts once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from onnxprune.model.iterate import ScanForm, branches_of, is_if, is_loop, is_scan, trip_count

if TYPE_CHECKING:
    from onnxprune.allocate.cost import Amount, Extents
    from onnxprune.graph.axes import Bools
    from onnxprune.graph.build import AxisGraph
    from onnxprune.rules.op import Op


@dataclass(frozen=True)
class Costlier:
    """An amount with choices: of the branches of every If the larger one counts.

    Attributes
    ----------
    always
        What counts whatever is chosen.
    branches
        Per If the amounts of its two branches.
    """

    always: Amount
    branches: tuple[tuple[Amount, Amount], ...]

    def total(self, extent: Extents) -> float:
        """As `Amount.total`."""
        return self.always.total(extent) + sum(
            max(a.total(extent), b.total(extent)) for a, b in self.branches
        )

    def reads(self, places: Bools) -> Bools:
        """As `Amount.reads`: an If is one summand."""
        found = [self.always.reads(places)]
        for pair in self.branches:
            both = np.concatenate([part.reads(places) for part in pair], axis=1)
            found.append(np.asarray(both.any(axis=1, keepdims=True)))
        return np.concatenate(found, axis=1)


@dataclass(frozen=True)
class Place:
    """Where a node is.

    Attributes
    ----------
    times
        How often it runs, as far as that is known.
    taken
        Per If around it, from the outermost: the If, and which of its branches it is in.
    """

    times: float = 1.0
    taken: tuple[tuple[ir.Node, int], ...] = ()


def places(axis_graph: AxisGraph) -> dict[ir.Node, Place]:
    """Where the nodes of bodies are; nodes of the main graph are not among them."""
    found: dict[ir.Node, Place] = {}
    for op in reversed(axis_graph.ops):  # owners before what is in their bodies
        place = found.get(op.node, Place())
        bodies = branches_of(op.node) if is_if(op.node) else op.bodies
        count = iterations(op) if bodies else None
        for number, body in enumerate(bodies):
            taken = (*place.taken, (op.node, number)) if is_if(op.node) else place.taken
            inner = Place(place.times * (1 if count is None else count), taken)
            found.update(dict.fromkeys(body, inner))
    return found


def iterations(op: Op) -> int | None:
    """How often the body of a node runs in one run of the node; None where that is not known."""
    node = op.node
    if is_if(node):
        return 1
    if is_loop(node):
        return trip_count(node, op.shapes.data)
    if is_scan(node, op.opset):
        form = ScanForm.of(node)
        for value, axis in zip(node.inputs[form.states :], form.input_axes, strict=True):
            dims = None if value is None else op.dims(value)
            if dims is not None and -len(dims) <= axis < len(dims):
                return dims[axis]
    return None


def with_choices(amounts: Mapping[tuple[tuple[ir.Node, int], ...], Amount], nothing: Amount) -> Amount:
    """One amount of amounts by the branches that they are in.

    Parameters
    ----------
    amounts
        By `Place.taken`.
    nothing
        An amount of zero.
    """
    inside: dict[ir.Node, list[dict[tuple[tuple[ir.Node, int], ...], Amount]]] = {}
    for taken, amount in amounts.items():
        if taken:
            (node, number), *rest = taken
            inside.setdefault(node, [{}, {}])[number][tuple(rest)] = amount
    always = amounts.get((), nothing)
    if not inside:
        return always
    pairs: Sequence[tuple[Amount, Amount]] = [
        (with_choices(then, nothing), with_choices(otherwise, nothing)) for then, otherwise in inside.values()
    ]
    return Costlier(always, tuple(pairs))
