"""LSTM, GRU and RNN: what comes in is summed over, and so are the hidden units, from one step to the next.

A hidden unit is a row of every gate in W, R and the biases, a column of R, its peepholes, and a position of the
states, given or made. What it was a step ago reaches the other units through R alone: with its column of zeros, and
zeros where its states are read, the others are what they are without it, whatever the activations and the clip. Its
own cell needs nobody else's. R loses rows and columns; the columns are the sink, the rows are made by the source.

Two directions share one rectangle, so they keep equally many units. Which ones is up to each: weights and states
are divided into a block per direction (`onnxprune.graph.axes.Blocked`), for as long as what reads the states keeps
them apart (`onnxprune.rules.divided`). Of states that come from elsewhere, position j is one in both directions.

Specification: https://onnx.ai/onnx/operators/onnx__LSTM.html and its neighbours.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from onnxprune.errors import Reason
from onnxprune.graph.axes import Axis, Blocked
from onnxprune.model.integer import rounds_states
from onnxprune.rules.helpers import arange
from onnxprune.rules.rule import Key, Rule, Term, table

if TYPE_CHECKING:
    from onnxprune.graph.relations import Relations
    from onnxprune.rules.op import Op
    from onnxprune.rules.refit import Refit

_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
_W, _R, _B, _LENGTHS, _FIRST, _CELL, _PEEPHOLES = range(1, 8)


def _relate(op: Op, relations: Relations) -> None:
    relations.contract(Axis(op.input(0), 2), Axis(op.input(_W), 2))
    stated = {Axis(op.input(0), 2), Axis(op.input(_W), 2)}
    hidden = Axis(op.input(_R), 2)
    directions, units = op.extent(Axis(op.input(_R), 0)), op.extent(hidden)
    if directions and units:
        blocks = directions if _apart(op) else 1
        if blocks > 1:
            relations.divide(hidden, blocks, rows=0)
            relations.balance(hidden, blocks)
        relations.recur(hidden, _R)
        stated.add(hidden)
        for axis, rows, runs in _axes(op):
            _hang(op, relations, axis, rows, runs, hidden, blocks, units)
            stated.add(axis)
        if rounds_states(op.node):
            _silence(op, relations)
    for value in (*op.node.inputs, *op.outputs):
        for axis in op.axes(value) if value is not None else ():
            if axis not in stated:
                relations.pin(axis, Reason.RECURRENT)


def _silence(op: Op, relations: Relations) -> None:
    """States are rounded to a range that all units share: a unit of no weights and no first states is 0."""
    for slot, dim in ((_W, 1), (_R, 1), (_B, 1), (_FIRST, 2), (_CELL, 2)):
        if op.has(slot):
            axis = Axis(op.input(slot), dim)
            if axis.value.const_value is None:
                relations.join_blocks(axis)
            relations.isolate(axis, slot)


def _apart(op: Op) -> bool:
    """Whether weights are initializers that are used like this everywhere, so that directions can be told apart."""
    weights = [(slot, op.input(slot)) for slot in (_W, _R, _B, _PEEPHOLES) if op.has(slot)]
    return all(
        value.const_value is not None
        and all(user.op_type == op.node.op_type and place == slot for user, place in value.uses())
        for slot, value in weights
    )


def _hang(
    op: Op,
    relations: Relations,
    axis: Axis,
    rows: int,
    runs: int,
    hidden: Axis,
    blocks: int,
    units: int,
) -> None:
    """Tie all runs of units on an axis to the hidden units, direction by direction where there are blocks."""
    value = axis.value
    mine = runs > 1 or value.producer() is op.node
    mine |= value.const_value is not None and len(value.uses()) == 1
    given = relations.blocked.get(axis)
    if blocks > 1 and (mine or given == Blocked(blocks, rows)):
        relations.divide(axis, blocks, rows)
        per_block = arange(runs * units) % units
        place = np.concatenate([per_block + block * units for block in range(blocks)])
        relations.follow(axis, hidden, arange(len(place)), place)
    else:
        place = arange(runs * units) if blocks == 1 else np.tile(arange(units), blocks)
        target = place % units if blocks == 1 else arange(blocks * units)
        relations.tie(axis, hidden, place, target)


def _axes(op: Op) -> Iterator[tuple[Axis, int, int]]:
    """The axes that units lie on, but for R's columns; where their values have directions; runs of units."""
    gates = _GATES[op.node.op_type]
    for slot, runs in ((_W, gates), (_R, gates), (_B, 2 * gates), (_PEEPHOLES, 3)):
        if op.has(slot):
            yield Axis(op.input(slot), 1), 0, runs
    samples_first = op.int("layout", 0)
    for slot in (_FIRST, _CELL):
        if op.has(slot):
            yield Axis(op.input(slot), 2), samples_first, 1
    for number, value in enumerate(op.node.outputs):
        if value.name:
            steps = int(number == 0)  # the states of all steps, or the last one
            yield Axis(value, 2 + steps), samples_first + steps, 1


def _refit(op: Op, refit: Refit) -> None:
    hidden = Axis(op.input(_R), 2)
    if refit.changed(hidden) and "hidden_size" in op.node.attributes:
        refit.set_int("hidden_size", refit.extent(hidden))


def _macs(op: Op) -> list[Term]:
    """Every step multiplies the input by W (directions, gates x hidden, input) and the state by R."""
    dims = op.dims(op.input(0))
    if dims is None or dims[0] is None or dims[1] is None:
        return []
    steps = float(dims[0] * dims[1])
    return [Term(steps, tuple(Axis(op.input(slot), dim) for dim in range(3))) for slot in (_W, _R)]


RULES: dict[Key, Rule] = table(
    Rule(_relate, _refit, _macs, weights=(_W, _R), kinds={_B: "bias"}), "LSTM", "GRU", "RNN"
)
