"""Repair of products of two activations that lost dims: queries and keys (see `onnxprune.repair.logits`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.graph.axes import Axis, Index, Kept
from onnxprune.graph.build import AxisGraph
from onnxprune.repair.logits import Mixing, Rows, best_mixing, fold, plain_error
from onnxprune.repair.rows import HELD_OUT, both
from onnxprune.rules.op import Op
from onnxprune.statistics.batches import Batches
from onnxprune.statistics.collect import consumers
from onnxprune.statistics.consumers import Consumer, consumer_of
from onnxprune.statistics.factors import ProductProbe, draw
from onnxprune.statistics.moments import Moments
from onnxprune.statistics.paths import Route, Router
from onnxprune.statistics.piecewise import Feed, Piecewise
from onnxprune.statistics.products import Product, product_of

Array = np.ndarray[Any, Any]

FUSED = ("Attention", "MultiHeadAttention", "GroupQueryAttention", "FusedMatMul", "Einsum", "Gemm")
"""Operators that sum products of activations in a form that is not looked into."""

INSIDE = (
    "it multiplies two activations inside the body of another node, where such products are not looked into"
)


@dataclass(frozen=True, eq=False)
class Factor:
    """A product that lost dims, and the layer of the cut model that is to make up for it.

    Attributes
    ----------
    product
        In the original.
    route
        From the original's layer to its factor.
    node
        The layer of the cut model.
    values
        Both factors in the cut model.
    kept
        Shape (left,): which dims are left.
    rows
        Shape (heads, left): the outputs of the cut layer that these are.
    """

    product: Product
    route: Route
    node: ir.Node
    values: tuple[ir.Value, ir.Value]
    kept: Index
    rows: Index

    @property
    def layer(self) -> Consumer:
        """The layer as it is now: its own repair may have given it a bias."""
        found = consumer_of(self.node)
        if isinstance(found, str):
            raise ValueError(f"{self.node.name!r}: {found}")
        return found


def products_to_repair(
    axis_graph: AxisGraph, cut: ir.Model, kept: Kept, unit: int
) -> tuple[list[Factor], dict[str, str]]:
    """Products that lost dims and can be repaired; and by name why others are left as they are.

    Parameters
    ----------
    axis_graph
        Of the original.
    unit
        For how many samples its shapes hold.
    """
    every = {
        sink.where.node: sink.where
        for sink in axis_graph.sinks
        if sink.parameter is None and sink.axis in kept
    }
    lost = {node: op for node, op in every.items() if op not in axis_graph.inner_ops}
    inside = [node for node in every if node not in lost and node.op_type in ("MatMul", *FUSED)]
    left = {node.name or node.op_type: INSIDE for node in inside}
    if not lost:
        return [], left
    made = {str(out.name): node for node in cut.graph for out in node.outputs}
    router = Router(axis_graph, consumers(axis_graph))
    found: list[Factor] = []
    for op in lost.values():
        factor = _factor(op, router, made, kept, unit)
        if isinstance(factor, Factor):
            found.append(factor)
        elif factor:
            left[op.node.name or op.node.op_type] = factor
    return found, left


def _factor(op: Op, router: Router, made: Mapping[str, ir.Node], kept: Kept, unit: int) -> Factor | str:
    """What to repair, why that cannot be done, or "" where no products are summed."""
    if op.node.op_type in FUSED:
        return f"{op.node.op_type} of two activations is not looked into"
    if op.node.op_type != "MatMul":
        return ""
    product = product_of(op, router, unit)
    if isinstance(product, str):
        return product
    route = product.route
    if isinstance(route, str):
        return route
    cut_too = [axis for axis in kept if axis.value in (product.axes[0].value, product.axes[1].value)]
    if not set(cut_too) <= set(product.axes):
        return "its rows or heads were cut as well"
    flags = kept[product.axes[product.mixed]]
    y = route.layer.y
    stay = kept.get(Axis(y, 1 if route.layer.convolves else len(op.shapes.dims[y]) - 1))
    channels = product.channels[product.mixed]
    if stay is None or channels is None or (stay[channels] != flags).any():
        return f"the channels that {route.layer.label} lost are others"
    node, new = made[str(route.layer.node.outputs[0].name)], made[str(op.node.outputs[0].name)]
    values = new.inputs[0], new.inputs[1]
    layer = consumer_of(node)
    if isinstance(layer, str) or values[0] is None or values[1] is None:
        return str(layer)
    left = np.flatnonzero(flags)
    rows = (np.cumsum(stay) - 1)[channels[:, left]]
    return Factor(product, route, node, (values[0], values[1]), left, rows)


Sides = tuple[Rows, Rows]
"""Rows of a factor to fit on, and to choose on."""


@dataclass(frozen=True, eq=False)
class Goals:
    """What the original's factors are at places that were drawn.

    Attributes
    ----------
    drawn
        Per batch and factor: which rows.
    rows
        Per batch and factor: the original's.
    """

    drawn: Sequence[tuple[Index, Index]]
    rows: Sequence[Sequence[Array]]

    @classmethod
    def of(cls, product: Product, teacher: Piecewise, batches: Batches, rng: np.random.Generator) -> Goals:
        """Draw places and run the original up to them."""
        drawn = [draw(rng, product, batches.samples, size) for size in batches.sizes]
        return cls(drawn, list(_goals(product, teacher, drawn)))


def rows_of(factor: Factor, student: Piecewise, goals: Goals) -> tuple[Sides, Sides] | None:
    """Rows of both factors as they are in the cut model now, beside the original's; None: they are not finite."""
    known: list[list[Moments | None]] = [[None, None], [None, None]]
    for batch, found in enumerate(_moments(factor, student, goals.drawn, goals.rows)):
        side = 1 if batch % HELD_OUT == HELD_OUT - 1 else 0
        for slot, part in enumerate(found):
            old = known[slot][side]
            known[slot][side] = part if old is None else old + part
    pairs = [both(*each) for each in known]
    if not all(np.isfinite(moments.gram).all() for pair in pairs for moments in pair):
        return None
    left, right = (
        (Rows(seen, factor.kept, flag), Rows(held, factor.kept, flag))
        for (seen, held), flag in zip(pairs, factor.product.around, strict=True)
    )
    return left, right


def refit_product(factor: Factor, rows: tuple[Sides, Sides]) -> tuple[Mixing, Array, Array]:
    """What makes up for the dims that a product lost, and its layer's weight and bias (outputs,) with it."""
    mixed, layer, scale = factor.product.mixed, factor.layer, factor.route.factor
    mixing = best_mixing(rows[mixed], rows[1 - mixed], shift=scale is not None)
    shift = mixing.shift / (scale or 1.0)
    weight, bias = fold(layer, layer.matrix(), layer.bias_vector(), factor.rows, mixing.matrix, shift)
    return mixing, layer.from_matrix(weight), bias


def held_error(rows: tuple[Sides, Sides]) -> float:
    """The error that `Mixing.before` is, of the factors as they are."""
    return plain_error(rows[0][1], rows[1][1])


def _goals(
    product: Product, teacher: Piecewise, drawn: Sequence[tuple[Index, Index]]
) -> Iterator[list[Array]]:
    """Per batch and factor: the original's rows at the drawn places."""
    probes: list[ProductProbe] = []

    def extend(graph: ir.Graph, known: Mapping[str, ir.Value]) -> None:
        for slot, axis in enumerate(product.axes):
            probe = ProductProbe(graph, product, slot, f"probe{slot}")
            probe.show(probe.rows(known[str(axis.value.name)], product.dims), "rows")
            probes.append(probe)

    def more(batch: int) -> Feed:
        return {
            k: a
            for probe, places in zip(probes, drawn[batch], strict=True)
            for k, a in probe.feed(places).items()
        }

    for found in teacher.advance([axis.value for axis in product.axes], extend, more):
        yield [found[f"probe{slot}/rows"] for slot in (0, 1)]


def _moments(
    factor: Factor,
    student: Piecewise,
    drawn: Sequence[tuple[Index, Index]],
    goals: Sequence[Sequence[Array]],
) -> Iterator[list[Moments]]:
    """Per batch and factor: moments of the cut model's rows and the original's, side by side."""
    probes: list[ProductProbe] = []

    def extend(graph: ir.Graph, known: Mapping[str, ir.Value]) -> None:
        for slot, value in enumerate(factor.values):
            probe = ProductProbe(graph, factor.product, slot, f"probe{slot}")
            rows = probe.rows(known[str(value.name)], len(factor.kept))
            target = probe.given("target", ir.DataType.FLOAT, 3)
            probe.moments(probe.op("Concat", rows, target, axis=2))
            probes.append(probe)

    def more(batch: int) -> Feed:
        feed: dict[str, Any] = {}
        for probe, places, rows in zip(probes, drawn[batch], goals[batch], strict=True):
            feed |= probe.feed(places)
            feed[f"{probe.name}/target"] = rows
        return feed

    for batch, found in enumerate(student.advance(factor.values, extend, more, again=[factor.node])):
        yield [probe.read(found, len(places)) for probe, places in zip(probes, drawn[batch], strict=True)]
