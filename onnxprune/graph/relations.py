"""What rules write into: ties, contractions, pins and choices between axes.

A rule speaks about one operator. `Relations` collects what all rules say in one networkx multigraph whose
nodes are `Axis` and `Barrier` values. Axes with at most one position have no node: there is nothing to drop.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import networkx as nx
import numpy as np
import onnx_ir as ir

from onnxprune.errors import Reason
from onnxprune.graph.axes import Axis, Barrier, Blocked, Index
from onnxprune.rules.op import Op


@dataclass(frozen=True)
class Edge:
    """One relation between two axes, as a rule stated it.

    Attributes
    ----------
    kind
        "tie": the positions live and die together. "contract": the same, and the operator sums over them.
        "choice": one factor of a Reshape; it holds only in groups that cut along this factor.
    a, b
        The two axes.
    a_index, b_index
        Positions: `a_index[i]` of a goes with `b_index[i]` of b. Both None: all positions in order.
    where
        The node that states it.
    factor
        For choices: a number that tells the factors of one Reshape apart.
    """

    kind: str
    a: Axis
    b: Axis
    a_index: Index | None
    b_index: Index | None
    where: Op
    factor: int = -1


@dataclass(frozen=True)
class Sink:
    """A place where an operator sums over an axis: zeroing it there masks a unit.

    Attributes
    ----------
    axis
        The axis that is summed over.
    slot
        Input of the node that carries it.
    parameter
        The weight's axis, where the other operand is an initializer (its slices are zeroed instead).
    where
        The node.
    """

    axis: Axis
    slot: int
    parameter: Axis | None
    where: Op


@dataclass(frozen=True)
class Balance:
    """`axis` is divided into `blocks` equal runs; every run must keep the same number of positions.

    Attributes
    ----------
    axis, blocks
        The axis and its runs.
    where
        The node that states it.
    unless
        It does not hold where that node's choice of this factor is taken; -1: it always holds.
    """

    axis: Axis
    blocks: int
    where: Op
    unless: int = -1


@dataclass(frozen=True)
class Average:
    """An operator whose statistics change with the number of positions, and that is cut all the same.

    The masked model computes it on the positions that stay: `inputs` are gathered, `outputs` spread out again.

    Attributes
    ----------
    inputs, outputs
        Slots of the node, and the axes along which positions go.
    where
        The node.
    """

    inputs: tuple[tuple[int, Axis], ...]
    outputs: tuple[tuple[int, Axis], ...]
    where: Op


class Relations:
    """Collects what rules state about axes. Mutable only while a graph is being built.

    Parameters
    ----------
    allow_inexact
        Open the axes that operators average over (see `average`); otherwise they are pinned.

    Attributes
    ----------
    averages
        The operators that `average` has opened.
    graph
        `networkx.MultiGraph` of `Axis` and `Barrier` nodes; edges between axes carry `edge=Edge`.
    sinks, isolated, balances, blocked
        Contractions, operators before which masks act, too (see `isolate`), rectangular constraints and
        divided weight axes found on the way.
    composed
        Dynamic axes with a static factor.
    """

    def __init__(self, allow_inexact: bool = False) -> None:
        self.allow_inexact = allow_inexact
        self.averages: list[Average] = []
        self.graph: nx.MultiGraph[Any] = nx.MultiGraph()
        self.sinks: list[Sink] = []
        self.isolated: list[Sink] = []
        self.balances: list[Balance] = []
        self.blocked: dict[Axis, Blocked] = {}
        self.composed: set[Axis] = set()
        self._op: Op | None = None
        self._mentioned: set[Axis] = set()
        self._small: list[tuple[Axis, Barrier]] = []
        self._joined: dict[Axis, None] = {}

    # --- the vocabulary of rules -------------------------------------------------------------------------

    def tie(self, a: Axis, b: Axis, a_index: Index | None = None, b_index: Index | None = None) -> None:
        """Position `a_index[i]` of `a` and `b_index[i]` of `b` live and die together.

        Without index arrays, all positions in order; then the extents must agree, else both are pinned.
        """
        self._relate("tie", a, b, a_index, b_index)

    def contract(self, a: Axis, b: Axis | None, slot: int = 0) -> None:
        """The operator multiplies `a` with `b` position by position and sums: zero terms can be dropped.

        Parameters
        ----------
        a
            Axis of the activation (input `slot`).
        b
            Axis of the other operand, or None where the operator only sums (ReduceSum).
        """
        if b is not None:
            self._relate("contract", a, b, None, None)
        self._mention(a)
        parameter = b if b is not None and b.value.const_value is not None else None
        self.sinks.append(Sink(a, slot, parameter, self._where))

    def recur(self, axis: Axis, slot: int) -> None:
        """The operator multiplies a state that it keeps itself with `axis` of input `slot`, and sums."""
        self._mention(axis)
        self.sinks.append(Sink(axis, slot, axis if axis.value.const_value is not None else None, self._where))

    def follow(self, a: Axis, b: Axis, a_index: Index | None = None, b_index: Index | None = None) -> None:
        """As `tie`, by a rule that knows divided axes: positions are counted over all their blocks."""
        self._state("tie", a, b, a_index, b_index)

    def isolate(self, axis: Axis, slot: int = 0) -> None:
        """What the operator makes of a position depends on the others unless they are 0: masks act before it.

        Ties are the caller's to state. Nothing is summed here, so this is no sink. Of a parameter, the positions
        are masked where they are stored.
        """
        self._mention(axis)
        stored = axis.value.const_value is not None
        self.isolated.append(Sink(axis, slot, axis if stored else None, self._where))

    def choice(self, a: Axis, b: Axis, a_index: Index, b_index: Index, factor: int) -> None:
        """One way of cutting two axes: along `factor`, a factor of a Reshape or another number for this node.

        With empty index arrays the choice ties nothing; it stands for what else the node states.
        """
        self._relate("choice", a, b, a_index, b_index, factor)

    def pin(self, axis: Axis, reason: Reason, where: str = "") -> None:
        """`axis` keeps all positions, because of `reason`, which this operator imposes or the one at `where`."""
        self._mention(axis)
        barrier = Barrier(reason, where or self._where.label)
        if self._extent(axis) == 1:
            self._small.append((axis, barrier))
        else:
            self.graph.add_edge(axis, barrier)

    def average(
        self, reason: Reason, inputs: Sequence[tuple[int, int]], outputs: Sequence[tuple[int, int]] = ()
    ) -> bool:
        """The operator averages over axes, given as (slot, dim): pinned, unless inexact cuts are allowed.

        Returns
        -------
        bool
            Whether they are open; ties between them are the caller's to state.
        """
        op = self._where
        coming = tuple((slot, op.axis(op.input(slot), dim)) for slot, dim in inputs)
        going = tuple((slot, op.axis(op.output(slot), dim)) for slot, dim in outputs)
        for _, axis in (*coming, *going):
            self.join_blocks(axis)
            if self.allow_inexact:
                self._mention(axis)
            else:
                self.pin(axis, reason)
        if self.allow_inexact:
            self.averages.append(Average(coming, going, op))
        return self.allow_inexact

    def free(self, axis: Axis) -> None:
        """`axis` needs no partner: the operator makes it (Expand, Pad) and its REFIT can make it smaller."""
        self._mention(axis)
        if self._extent(axis) not in (0, 1):
            self.graph.add_node(axis)

    def auxiliary(self, value: ir.Value) -> None:
        """`value` carries sizes, scales or positions, not data: nothing of it is cut, REFIT adapts it."""
        for axis in self._where.axes(value):
            self.pin(axis, Reason.AUXILIARY)

    def compose(self, axis: Axis) -> None:
        """A factor of the dynamic `axis` is static and can be cut (see `graph.dynamic`)."""
        self.composed.add(axis)

    def balance(self, axis: Axis, blocks: int, unless: int = -1) -> None:
        """`axis` is divided into `blocks` runs that must keep equal numbers of positions (see `Balance`)."""
        self._mention(axis)
        self.balances.append(Balance(axis, blocks, self._where, unless))

    def divide(self, axis: Axis, blocks: int, rows: int) -> Axis:
        """Declare that `axis` stands for `blocks` private runs of columns (see `Blocked`).

        That of an activation is joined again where a rule speaks of it that does not know of blocks: then position
        j of all blocks is one position.
        """
        declared = Blocked(blocks, rows)
        if self.blocked.setdefault(axis, declared) != declared:
            self.pin(axis, Reason.INCOMPATIBLE_BLOCKS)
        return axis

    def join_blocks(self, axis: Axis) -> None:
        """The blocks of an activation's divided axis, if it has any, are not told apart: see `divide`."""
        if self._divided(axis):
            self._joined[axis] = None

    # --- the builder's side ------------------------------------------------------------------------------

    def enter(self, op: Op) -> None:
        """Begin to collect what the rule of `op` states."""
        self._op = op
        self._mentioned = set()

    def leave(self, reason: Reason = Reason.NOT_MENTIONED, where: str = "") -> None:
        """Pin every axis of the operator that its rule did not mention (closed world).

        What bodies are given and what they return is the operator's to speak about, too. `where` is as for `pin`.
        """
        op = self._where
        inner = [value for body in op.bodies for value in (*body.inputs, *body.outputs)]
        for value in (*op.node.inputs, *op.node.outputs, *inner):
            if value is None:
                continue
            for axis in op.axes(value):
                if axis not in self._mentioned:
                    self.pin(axis, reason, where)
        self._op = None

    def finish(self) -> None:
        """Join blocks that are not told apart, and pin single positions that a tie has put on a longer axis."""
        for axis in self._joined:
            self._join(axis)
        self._joined.clear()
        for axis, barrier in self._small:
            if axis in self.graph:
                self.graph.add_edge(axis, barrier)
        self._small.clear()

    @property
    def _where(self) -> Op:
        if self._op is None:
            raise RuntimeError("relations are stated between enter() and leave()")
        return self._op

    def _extent(self, axis: Axis) -> int | None:
        extent = self._where.extent(axis)
        blocked = self.blocked.get(axis)
        return extent if extent is None or blocked is None else extent * blocked.blocks

    def _mention(self, axis: Axis) -> None:
        self._mentioned.add(axis)

    def _divided(self, axis: Axis) -> bool:
        return axis in self.blocked and axis.value.const_value is None

    def _join(self, axis: Axis) -> None:
        """State everything about a divided axis again, as if position j of all blocks were one."""
        blocks = self.blocked.pop(axis).blocks
        if axis not in self.graph:
            return
        for other in list(self.graph.adj[axis]):
            for key, data in list(self.graph.adj[axis][other].items()):
                if isinstance(other, Barrier):
                    continue
                edge: Edge = data["edge"]
                count = (edge.where.extent(axis) or 0) * blocks
                index = {True: edge.a_index, False: edge.b_index}
                for first, end in ((True, edge.a), (False, edge.b)):
                    found = index[first]
                    found = np.arange(count, dtype=np.int64) if found is None else found
                    index[first] = found % (count // blocks) if end == axis else found
                self.graph.remove_edge(axis, other, key)
                again = Edge(edge.kind, edge.a, edge.b, index[True], index[False], edge.where, edge.factor)
                self.graph.add_edge(edge.a, edge.b, edge=again)

    def _relate(
        self,
        kind: str,
        a: Axis,
        b: Axis,
        a_index: Index | None,
        b_index: Index | None,
        factor: int = -1,
    ) -> None:
        """State a relation of a rule that does not know of blocks of activations."""
        for axis in (a, b):
            self.join_blocks(axis)
        if self._divided(a) or self._divided(b):
            m, n = self._where.extent(a), self._where.extent(b)
            if a_index is None and m is not None and m == n:
                a_index = b_index = np.arange(m, dtype=np.int64)
            if a_index is not None and b_index is not None:
                a_index, b_index = self._in_all(a, a_index, b_index)
                b_index, a_index = self._in_all(b, b_index, a_index)
        self._state(kind, a, b, a_index, b_index, factor)

    def _in_all(self, axis: Axis, index: Index, other: Index) -> tuple[Index, Index]:
        """Positions of one block, repeated for all blocks of `axis`; and their partners as often."""
        if not self._divided(axis):
            return index, other
        blocks, size = self.blocked[axis].blocks, self._where.extent(axis) or 0
        start = np.repeat(np.arange(blocks, dtype=np.int64) * size, len(index))
        return np.tile(index, blocks) + start, np.tile(other, blocks)

    def _state(
        self,
        kind: str,
        a: Axis,
        b: Axis,
        a_index: Index | None,
        b_index: Index | None,
        factor: int = -1,
    ) -> None:
        self._mention(a)
        self._mention(b)
        m, n = self._extent(a), self._extent(b)
        if m is None or n is None:
            self.pin(a, Reason.UNKNOWN_SHAPE)
            self.pin(b, Reason.UNKNOWN_SHAPE)
            return
        if a_index is None and m != n:
            self.pin(a, Reason.NOT_MENTIONED)
            self.pin(b, Reason.NOT_MENTIONED)
            return
        if m == 1 and n == 1:
            return
        self.graph.add_edge(a, b, edge=Edge(kind, a, b, a_index, b_index, self._where, factor))
