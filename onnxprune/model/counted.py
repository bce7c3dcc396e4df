"""Loops that count: how often they run, where their condition follows from numbers that are known.

`while i < n: i += 1` is how exporters of TensorFlow write recurrent layers. What the condition depends on, from one
run to the next, is evaluated as long as it holds; nothing else of the body is.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from onnxprune.model import fold
from onnxprune.model.nested import bodies_of

MOST = 1 << 14
"""Runs after which it is not known how often a Loop runs."""


def count_runs(node: ir.Node, data: Mapping[ir.Value, np.ndarray]) -> int | None:
    """How often a Loop runs, or None where that is not known.

    Parameters
    ----------
    node
        The Loop.
    data
        Values of the graph around it that are known, and constants.
    """
    (body,) = bodies_of(node)
    most, goes_on = (*node.inputs[:2], None, None)[:2]
    limit = MOST + 1
    if most is not None:
        if most not in data or data[most].size != 1:
            return None
        limit = int(data[most].ravel()[0])
    found = _condition(body)
    if found is None or (goes_on is not None and goes_on not in data):
        return None
    nodes, numbers = found
    around = dict(data)
    starts = {slot: node.inputs[slot] if slot < len(node.inputs) else None for slot in numbers}
    state: dict[ir.Value, np.ndarray] = {}
    for slot, start in starts.items():
        if start is None or start not in data:
            return None
        state[body.inputs[slot]] = data[start]
    runs, on = 0, goes_on is None or bool(data[goes_on].ravel()[0])
    while on and runs < limit:
        if runs == MOST:
            return None
        counters = zip(body.inputs[:2], (np.array(runs, np.int64), np.array(True)), strict=True)
        known: ChainMap[ir.Value, np.ndarray] = ChainMap({**dict(counters), **state}, around)
        for each in nodes:
            made = fold.evaluate(each, {}, known)
            if made is None:
                return None
            known[each.outputs[0]] = made
        on = bool(known[body.outputs[0]].ravel()[0])
        state = {body.inputs[slot]: known[body.outputs[slot - 1]] for slot in numbers}
        runs += 1
    return runs or None  # of what never runs onnxruntime makes outputs of other extents


def _condition(body: ir.Graph) -> tuple[list[ir.Node], list[int]] | None:
    """The nodes that the condition of a Loop follows from, in order, and the inputs that it carries for them."""
    place = {value: slot for slot, value in enumerate(body.inputs)}
    nodes: set[ir.Node] = set()
    numbers: set[int] = set()
    queue = [body.outputs[0]]
    while queue:
        value = queue.pop()
        slot = place.get(value, 0)
        if slot > 1 and slot not in numbers:
            numbers.add(slot)
            queue.append(body.outputs[slot - 1])
        node = value.producer()
        if node is None or node in nodes or node.graph is not body:
            continue
        if len(node.outputs) != 1 or bodies_of(node):
            return None
        nodes.add(node)
        queue += [each for each in node.inputs if each is not None]
    return [node for node in body if node in nodes], sorted(numbers)
