"""Products of two activations that sum over units: queries and keys, head by head.

Nothing behind such a product has a weight for the units, so what is lost when some go is seen in the product
itself, and what makes up for it can only be done to its factors. One of them is *mixed*: the layer that makes it
gets other weights (see `onnxprune.repair.logits`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxprune.graph.axes import Axis, Index
from onnxprune.graph.build import AxisGraph
from onnxprune.model.uses import only_use
from onnxprune.rules.op import Op
from onnxprune.statistics.consumers import Consumer
from onnxprune.statistics.paths import Route, Router


@dataclass(frozen=True, eq=False)
class Product:
    """A MatMul of two activations, `(..., rows, dims)` and `(..., dims, columns)`.

    Attributes
    ----------
    node
        The MatMul.
    axes
        Per factor: the axis that is summed over.
    dims
        Its extent.
    places
        Per factor: how many matrices one sample has, and how many rows of `dims` entries each of them has.
    heads
        Per factor, shape (heads, matrices per head): which matrices of a sample a head consists of. A matrix that
        heads share is in all of them.
    mixed
        The factor that can be given other weights; 0 where none can.
    routes
        Per factor: how it comes from its layer, or why that layer cannot be changed for it.
    channels
        Per factor, shape (heads, dims): the layer's output channels; None where it cannot be changed head by head.
    centred
        Whether a softmax follows, so that the same vector may be added to all keys.
    """

    node: ir.Node
    axes: tuple[Axis, Axis]
    dims: int
    places: tuple[tuple[int, int], tuple[int, int]]
    heads: tuple[Index, Index]
    mixed: int
    routes: tuple[Route | str, Route | str]
    channels: tuple[Index | None, Index | None]
    centred: bool

    @property
    def route(self) -> Route | str:
        """Of the factor that is mixed, or why there is none."""
        return self.routes[self.mixed]

    @property
    def turns(self) -> bool:
        """Whether both factors can be changed, each head for itself, and into any range."""
        bounded = any(isinstance(route, Route) and route.rounded for route in self.routes)
        return not bounded and all(channels is not None for channels in self.channels)

    @property
    def label(self) -> str:
        """Name of the product for people."""
        return self.node.name or self.node.op_type

    @property
    def around(self) -> tuple[bool, bool]:
        """Per factor: whether only what lies around its mean counts."""
        return False, self.centred

    def rows(self, samples: int) -> tuple[int, int]:
        """Rows of each factor that a batch has per matrix."""
        left, right = (count * samples for _, count in self.places)
        return left, right


def find_products(axis_graph: AxisGraph, layers: Mapping[ir.Value, Consumer], unit: int) -> list[Product]:
    """Every product of two activations that can be looked at.

    Parameters
    ----------
    axis_graph
        Of the model; not mutated.
    layers
        Every layer that is a linear map.
    unit
        For how many samples the shapes hold.
    """
    router = Router(axis_graph, layers)
    places = {sink.where.node: sink.where for sink in axis_graph.sinks if sink.parameter is None}
    found = [product_of(op, router, unit) for op in places.values() if op not in axis_graph.inner_ops]
    return [product for product in found if isinstance(product, Product)]


def product_of(op: Op, router: Router, unit: int) -> Product | str:
    """A node as such a product, or why it is none that can be looked at."""
    if op.node.op_type != "MatMul" or op.node.domain not in ("", "ai.onnx"):
        return f"{op.node.op_type} is no plain product"
    if op.is_constant(0) or op.is_constant(1):
        return "one factor is a constant"
    left, right = (op.dims(op.input(slot)) or () for slot in (0, 1))
    if len(left) < 3 or len(left) != len(right) or None in left or None in right:
        return "its factors are not stacks of matrices of known shapes"
    a, b = ([int(d or 0) for d in dims] for dims in (left, right))
    moving = [
        (value, dim)
        for value in (op.input(0), op.input(1))
        for dim in range(1, len(a) - 2)
        if (value, dim) in op.shapes.dynamic
    ]
    if moving or a[0] != b[0] or a[0] % unit or not all(a) or not all(b):
        return "samples are not its leading axis"
    leads = [[each[0] // unit, *each[1:-2]] for each in (a, b)]
    whole = [max(pair) for pair in zip(*leads, strict=True)]
    members = [np.broadcast_to(np.arange(math.prod(lead)).reshape(lead), whole).ravel() for lead in leads]
    axes = Axis(op.input(0), len(a) - 1), Axis(op.input(1), len(b) - 2)
    places = ((math.prod(leads[0]), a[-2]), (math.prod(leads[1]), b[-1]))
    centred = _softmax_follows(op.node, router)
    routes = [_route(router, op.node, slot, unit) for slot in (0, 1)]
    for mixed in (0, 1):
        found = routes[mixed]
        if isinstance(found, str):
            continue
        _, channels = found
        _, head = np.unique(channels[members[mixed]], axis=0, return_inverse=True)
        heads = _divided(head.ravel(), members)
        if heads is None:
            continue
        each = [
            None if isinstance(r, str) else _per_head(r[1], h) for r, h in zip(routes, heads, strict=True)
        ]
        if each[mixed] is None:
            continue
        ways = [route if isinstance(route, str) else route[0] for route in routes]
        return Product(
            op.node, axes, a[-1], places, heads, mixed, (ways[0], ways[1]), (each[0], each[1]), centred
        )
    last = whole[-1] if len(a) > 3 else math.prod(whole)
    divided = _divided(np.arange(math.prod(whole)) % last, members)
    if divided is None:
        return "its heads are not alike"
    why = [route if isinstance(route, str) else "heads share its channels" for route in routes]
    return Product(op.node, axes, a[-1], places, divided, 0, (why[0], why[1]), (None, None), centred)


def _route(router: Router, node: ir.Node, slot: int, unit: int) -> tuple[Route, Index] | str:
    """The way to a factor and the channels of its matrices, (matrices per sample, dims); or why there is none."""
    route = router.route(node, slot)
    if isinstance(route, str):
        return route
    channels = _channels(route, slot, unit)
    if channels is None or route.layer.groups > 1:
        return f"the channels of {route.layer.label} do not lie in heads"
    return route, channels


def _per_head(channels: Index, heads: Index) -> Index | None:
    """Shape (heads, dims): the channels of every head; None where heads share some."""
    mine = channels[heads]
    first = mine[:, 0]
    alone = (mine == first[:, None]).all() and len(np.unique(first)) == first.size
    return first if alone else None


def _divided(head: Index, members: Sequence[Index]) -> tuple[Index, Index] | None:
    """Per factor the matrices of every head; None where heads have differently many."""
    counts = np.bincount(head)
    if len(set(counts.tolist())) != 1:
        return None
    order = np.argsort(head, kind="stable").reshape(len(counts), -1)
    return members[0][order], members[1][order]


def _channels(route: Route, slot: int, unit: int) -> Index | None:
    """Shape (matrices per sample, dims): the same channel in every row of a matrix and in every sample."""
    found = route.channel if slot == 0 else route.channel.swapaxes(-1, -2)
    found = found.reshape(unit, -1, *found.shape[-2:])
    first = found[:1, :, :1]
    return first[0, :, 0] if (found == first).all() else None


def _softmax_follows(node: ir.Node, router: Router) -> bool:
    """Whether only a softmax over the right factor's columns sees the product, scaled or shifted."""
    value = node.outputs[0]
    while (use := only_use(value)) is not None:
        user, slot = use
        if user.op_type == "Softmax":
            op = router.op(user)
            return op is not None and op.int("axis", -1 if op.opset >= 13 else 1) in (-1, op.rank(value) - 1)
        shifted = user.op_type in ("Add", "Sub", "Identity") and not (user.op_type == "Sub" and slot)
        chosen = user.op_type == "Where" and slot > 0
        if not (shifted or chosen or router.scales(user, slot)):
            return False
        value = user.outputs[0]
    return False
