"""Where activations are rounded, and which roundings are one: copies that were only moved about share a scale.

A file rounds an activation, moves it (Reshape, Transpose ...), and rounds it again with the same scale and zero
point, which changes nothing; runtimes leave such pairs out, as long as both say the same. So whoever gives one of
them another scale gives it to all.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.model import edit, rounding
from onnxprune.model.biases import DOMAINS
from onnxprune.model.origin import twins

Array = np.ndarray[Any, Any]

MOVES = frozenset(
    {"Flatten", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"}
    | {"DepthToSpace", "Expand", "MaxPool", "SpaceToDepth", "Tile"}
)
"""Operators whose outputs hold nothing but entries of their first input."""

TYPES = (ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT16, ir.DataType.UINT16)


@dataclass(frozen=True, eq=False)
class Quantiser:
    """One rounding of an activation, with one scale for all its positions.

    Attributes
    ----------
    nodes
        QuantizeLinear and DequantizeLinear with this scale, in the order of the graph.
    sources
        Those QuantizeLinear that see what was not rounded like that before.
    dtype
        Of the stored numbers.
    """

    nodes: tuple[ir.Node, ...]
    sources: tuple[ir.Node, ...]
    dtype: ir.DataType

    @property
    def label(self) -> str:
        """What is rounded, for people."""
        value = self.sources[0].inputs[0]
        return "" if value is None else str(value.name)

    @property
    def scale(self) -> float:
        """The step between two numbers that are told apart."""
        return float(_one(self.nodes[0].inputs[1]) or 0.0)

    @property
    def zero(self) -> float:
        """The stored number that means 0."""
        return _zero(self.nodes[0]) or 0.0

    @property
    def movable(self) -> bool:
        """Whether the file holds a zero point that can be another one."""
        return all(_slot(node, 2) is not None for node in self.nodes)

    @property
    def ends(self) -> tuple[float, float]:
        """What the least and the largest stored number mean."""
        low, high = rounding.limits(self.dtype)
        return (low - self.zero) * self.scale, (high - self.zero) * self.scale

    def give(self, scale: float, zero: float) -> None:
        """Let all nodes have another scale and zero point.

        Raises
        ------
        ValueError
            Another zero point, where the file has none.
        """
        if zero != self.zero and not self.movable:
            raise ValueError("there is no zero point to change")
        for slot, number in ((1, scale), (2, zero)):
            for value, data in self._held(slot):
                edit.set_array(value, np.full(tuple(data.shape.numpy()), number, data.dtype.numpy()))

    @property
    def arrays(self) -> dict[str, Array]:
        """Scales and zero points of all nodes, by the names of the initializers."""
        return {str(v.name): np.asarray(data.numpy()) for slot in (1, 2) for v, data in self._held(slot)}

    @property
    def scales(self) -> dict[str, Array]:
        """The scales alone."""
        return {str(value.name): np.asarray(data.numpy()) for value, data in self._held(1)}

    def _held(self, slot: int) -> list[tuple[ir.Value, ir.TensorProtocol]]:
        values = dict.fromkeys(value for node in self.nodes if (value := _slot(node, slot)) is not None)
        return [(value, value.const_value) for value in values if value.const_value is not None]


def find_quantisers(graph: ir.Graph) -> list[Quantiser]:
    """Every rounding of activations whose scale may be another one.

    Left out are those with several scales, of other types than 8 or 16 bits, whose stored numbers something else
    than DequantizeLinear calculates with, or whose nodes do not agree.

    Parameters
    ----------
    graph
        Normalised; integer operators are said in floats.
    """
    ties = _Ties([node for node in graph if _is_known(node)])
    for node in ties.nodes:
        ties.follow(node)
    ties.share(twins(graph))
    found = [ties.quantiser(members) for members in ties.families()]
    return [quantiser for quantiser in found if quantiser is not None]


@dataclass
class _Ties:
    """Which nodes have the same scale.

    Attributes
    ----------
    nodes
        All that round or read back.
    joined
        Another node with the same scale, by node; the node itself where it stands for all.
    fixed
        Nodes whose scale cannot be another one.
    fed
        Those that read back what a node rounds.
    again
        Those that round what was rounded like that before.
    """

    nodes: list[ir.Node]
    joined: dict[ir.Node, ir.Node] = field(init=False)
    fixed: set[ir.Node] = field(default_factory=set)
    fed: set[ir.Node] = field(default_factory=set)
    again: set[ir.Node] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.joined = {node: node for node in self.nodes}

    def follow(self, node: ir.Node) -> None:
        """Look at what becomes of a node's result."""
        ends, complete = _ends(node.outputs[0])
        if node.op_type == "DequantizeLinear":
            for end in ends:
                if end in self.joined and end.op_type == "QuantizeLinear" and _same(node, end):
                    self.again.add(end)
                    self.join(node, end)
            return
        if not complete or not all(end in self.joined and end.op_type == "DequantizeLinear" for end in ends):
            self.fixed.add(node)
            return
        for end in ends:
            self.fed.add(end)
            self.join(node, end)

    def share(self, roots: Mapping[str, str]) -> None:
        """Join what has one scale in the file, where each use has its own here."""
        first: dict[str, ir.Node] = {}
        for node in self.nodes:
            for value in (_slot(node, 1), _slot(node, 2)):
                users = [] if value is None else [user for user, _ in value.uses()]
                if value is not None and (value.is_graph_output() or not self.joined.keys() >= set(users)):
                    self.fixed.add(node)
                    continue
                for user in users:
                    self.join(node, user)
            name = str(node.inputs[1].name) if node.inputs[1] is not None else ""
            self.join(first.setdefault(roots.get(name, name), node), node)

    def join(self, a: ir.Node, b: ir.Node) -> None:
        """Let two nodes have the same scale."""
        self.joined[self.root(b)] = self.root(a)

    def root(self, node: ir.Node) -> ir.Node:
        """The node that stands for all with the same scale."""
        while self.joined[node] is not node:
            self.joined[node] = self.joined[self.joined[node]]
            node = self.joined[node]
        return node

    def families(self) -> list[list[ir.Node]]:
        """Nodes with the same scale."""
        found: defaultdict[ir.Node, list[ir.Node]] = defaultdict(list)
        for node in self.nodes:
            found[self.root(node)].append(node)
        return list(found.values())

    def quantiser(self, members: Sequence[ir.Node]) -> Quantiser | None:
        """Nodes with the same scale, if that may be another one."""
        rounds = [node for node in members if node.op_type == "QuantizeLinear"]
        read = [node for node in members if node.op_type == "DequantizeLinear"]
        types = {node.outputs[0].dtype for node in rounds}
        sources = tuple(node for node in rounds if node not in self.again)
        if self.fixed & set(members) or not self.fed >= set(read) or not sources or len(types) != 1:
            return None
        dtype = types.pop()
        if dtype is None or dtype not in TYPES or not all(_same(members[0], node) for node in members):
            return None
        return Quantiser(tuple(members), sources, dtype)


def _is_known(node: ir.Node) -> bool:
    """Whether a node rounds, or reads back, with one scale that the file holds."""
    if node.op_type not in ("QuantizeLinear", "DequantizeLinear") or node.domain not in DOMAINS:
        return False
    x, scale, zero = node.inputs[0], _slot(node, 1), _slot(node, 2)
    if x is None or x.const_value is not None or _one(scale) is None:
        return False
    return zero is None or _one(zero) is not None


def _slot(node: ir.Node, slot: int) -> ir.Value | None:
    return node.inputs[slot] if slot < len(node.inputs) else None


def _one(value: ir.Value | None) -> float | None:
    data = None if value is None else value.const_value
    return float(data.numpy().ravel()[0]) if data is not None and data.size == 1 else None


def _zero(node: ir.Node) -> float | None:
    return _one(_slot(node, 2)) if _slot(node, 2) is not None else 0.0


def _same(a: ir.Node, b: ir.Node) -> bool:
    return _one(_slot(a, 1)) == _one(_slot(b, 1)) and _zero(a) == _zero(b)


def _ends(value: ir.Value) -> tuple[list[ir.Node], bool]:
    """Who reads a value, behind operators that only move it; and whether that is all."""
    found: list[ir.Node] = []
    queue, known = [value], True
    while queue:
        one = queue.pop()
        known = known and not one.is_graph_output()
        for node, slot in one.uses():
            moved = node.op_type in MOVES and slot == 0 and node.domain in ("", "ai.onnx")
            if moved or (node.op_type == "Concat" and one.dtype in TYPES):
                queue += node.outputs
            else:
                found.append(node)
    return found, known


def of_nodes(quantisers: Sequence[Quantiser], nodes: Iterable[ir.Node]) -> list[Quantiser]:
    """The quantisers all of whose sources are among the nodes."""
    among = set(nodes)
    return [quantiser for quantiser in quantisers if among >= set(quantiser.sources)]
