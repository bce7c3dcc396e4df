"""Operators of integer arithmetic, put together again."""

from __future__ import annotations

import heapq
import logging
from collections.abc import Callable, Iterator, Mapping

import onnx_ir as ir

from onnxprune.model.integer import attention, fused, lstm, nbits, products, qlinear
from onnxprune.model.integer.forms import CONTRIB
from onnxprune.model.integer.grid import behind
from onnxprune.model.integer.notes import (
    Lowered,
    Made,
    Template,
    forget_note,
    forget_notes,
    note_of,
    order_of,
)
from onnxprune.model.integer.parts import NotThisForm
from onnxprune.model.nested import read_by

log = logging.getLogger(__name__)

_LIFT: dict[str, Callable[[ir.Graph, ir.Node, Lowered], None]] = {
    qlinear.NAME: qlinear.lift,
    products.NAME: products.lift,
    fused.NAME: fused.lift,
    nbits.NAME: nbits.lift,
    attention.NAME: attention.lift,
    lstm.NAME: lstm.lift,
}


def raise_integer(model: ir.Model) -> None:
    """Put together what `lower_integer` took apart; on a model that nobody edited, its exact opposite.

    What was edited so that the operator does not fit any more stays in DequantizeLinear and QuantizeLinear, which
    compute the same.

    Parameters
    ----------
    model
        Mutated. Weights and biases are DequantizeLinear of initializers.
    """
    graph = model.graph
    known, forms = order_of(graph), set()
    for node in tuple(graph):
        lowered = note_of(node)
        if lowered is None and qlinear.NAME in forms:
            lowered = _new_sum(node, known)
        if lowered is None:
            continue
        forget_note(node)
        forms.add(lowered.form)
        try:
            _LIFT[lowered.form](graph, node, lowered)
        except NotThisForm as why:
            log.debug("%s %r stays in floats: %s", node.op_type, node.name, why)
    _reorder(graph)
    forget_notes(graph)


def _new_sum(node: ir.Node, known: Mapping[str, int]) -> Lowered | None:
    """An Add that the file does not have, as if it had been a QLinearAdd: a repair gave a product a bias."""
    if node.op_type != "Add" or node.domain or str(node.outputs[0].name) in known:
        return None
    users = [user for user, _ in node.outputs[0].uses()]
    between = all(behind(value) is not None for value in node.inputs) and len(users) == 1
    if not between or users[0].op_type != "QuantizeLinear" or str(users[0].outputs[0].name) not in known:
        return None
    dtype = users[0].outputs[0].type
    made = (Made(None, dtype, None),)
    sum_of_integers = Template(CONTRIB, "QLinearAdd", node.name, None, {}, {}, (True,) * 8, made)
    return Lowered(qlinear.NAME, (sum_of_integers,))


def _reorder(graph: ir.Graph) -> None:
    """Bring the nodes into the order of the file, as far as they are in it."""
    known = order_of(graph)
    if not known:
        return
    nodes = list(graph)
    rank: dict[ir.Node, tuple[int, int]] = {}
    last = -1
    for place, node in enumerate(nodes):
        last = known.get(str(node.outputs[0].name), last) if node.outputs else last
        rank[node] = (last, place)
    ordered = list(_sorted(nodes, rank))
    if ordered == nodes or len(ordered) != len(nodes):
        return
    names = [node.name for node in ordered]
    graph.remove(ordered)
    graph.extend(ordered)
    for node, name in zip(ordered, names, strict=True):
        node.name = name


def _sorted(nodes: list[ir.Node], rank: dict[ir.Node, tuple[int, int]]) -> Iterator[ir.Node]:
    """Topologically, and where that leaves a choice, by rank."""
    behind: dict[ir.Node, list[ir.Node]] = {node: [] for node in nodes}
    missing: dict[ir.Node, int] = {}
    for node in nodes:
        makers = {maker for value in read_by(node) if (maker := value.producer()) in behind}
        missing[node] = len(makers)
        for maker in makers:
            behind[maker].append(node)
    by_place = {rank[node]: node for node in nodes}
    ready = [rank[node] for node in nodes if not missing[node]]
    heapq.heapify(ready)
    while ready:
        node = by_place[heapq.heappop(ready)]
        yield node
        for user in behind[node]:
            missing[user] -= 1
            if not missing[user]:
                heapq.heappush(ready, rank[user])
