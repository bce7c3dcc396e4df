"""VJPs of LSTM, GRU and RNN: back through time by a Scan, everything else for all steps at once.

The hidden states are the operator's first output, so the gates of all steps are one product of matrices; the
Scan carries the gradients of the states back and gives those of the gates, from which the gradients of
inputs and weights are products of matrices again. A reverse direction is a forward one in turned-around time.

Specification: https://onnx.ai/onnx/operators/onnx__LSTM.html and its neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxprune.model import edit
from onnxprune.rules.backward import Backward, Vjp
from onnxprune.rules.expr import Builder, Expr
from onnxprune.rules.op import Op
from onnxprune.rules.rule import Key

_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
_ACTIVATIONS = {"LSTM": ["sigmoid", "tanh", "tanh"], "GRU": ["sigmoid", "tanh"], "RNN": ["tanh"]}
_LAST = (1 << 63) - 1


@dataclass(frozen=True)
class _Direction:
    """One direction of a recurrent node, in the order in which it goes through time.

    Attributes
    ----------
    x, before
        Inputs (T, B, I) and the hidden states that steps start from (T, B, H).
    w, r
        Weights (gates x H, I) and (gates x H, H).
    gates
        What all gates get from inputs and biases of W (T, B, gates x H).
    bias
        The bias that goes with R (gates x H), where there is one.
    g
        Gradient of the hidden states (T, B, H).
    last, cell
        Gradients of the last hidden state and of the last cell (B, H).
    state
        The first cell (B, H), of LSTM.
    size
        H.
    active
        1 where a step is within its sample's length, else 0 (T, B, 1); None where all have the same.
    """

    x: Expr
    before: Expr
    w: Expr
    r: Expr
    gates: Expr
    bias: Expr | None
    g: Expr
    last: Expr
    cell: Expr
    state: Expr
    size: int
    active: Expr | None


@dataclass(frozen=True)
class _Found:
    """Gradients of the gates' inputs (T, B, gates x H), and of the first states.

    Attributes
    ----------
    input, recurrent
        What W's and what R's products get.
    read
        What R was multiplied with, per part of its rows.
    first, cell
        Gradients of the first hidden state and cell (B, H).
    """

    input: Expr
    recurrent: Expr
    read: Sequence[tuple[int, Expr]]
    first: Expr
    cell: Expr | None = None


def _recurrent(op: Op, back: Backward) -> None:
    _check(op, back)
    both = op.str("direction", "forward") == "bidirectional"
    count = 2 if both else 1
    backward = [False, True] if both else [op.str("direction", "forward") == "reverse"]
    steps = {"LSTM": _lstm, "GRU": _gru, "RNN": _rnn}[op.node.op_type]
    x_parts: list[Expr] = []
    parts: dict[int, list[Expr]] = {}
    for number in range(count):
        part = _direction(back, number, backward[number])
        found = steps(back, part)
        x_parts.append(_turn(back, found.input @ part.w, backward[number]))
        for slot, gradient in _weights(back, part, found).items():
            parts.setdefault(slot, []).append(gradient.unsqueeze(0))
    back.give(0, x_parts[0] if count == 1 else x_parts[0] + x_parts[1])
    for slot, gradients in parts.items():
        if back.wants(slot):
            back.give(slot, back.builder.concat(gradients, 0))


def _check(op: Op, back: Backward) -> None:
    names = op.node.attributes.get("activations")
    usual = _ACTIVATIONS[op.node.op_type]
    if names is not None and [name.lower() for name in names.as_strings()] != usual * (
        len(names.as_strings()) // len(usual)
    ):
        raise back.refusal("its activations are not the usual ones")
    if op.has(7) or any(name in op.node.attributes for name in ("clip", "activation_alpha")):
        raise back.refusal("it has peepholes or a clip")
    if op.int("layout", 0) or op.int("input_forget", 0):
        raise back.refusal("its layout or its coupled gates are not covered")


def _turn(back: Backward, x: Expr, backward: bool) -> Expr:
    """Reverse time; where samples have lengths, that of each."""
    if not backward:
        return x
    lengths = _lengths(back)
    if lengths is None:
        return x.slice(0, -1, -_LAST, -1)
    return x.op("ReverseSequence", lengths, time_axis=0, batch_axis=1)


def _lengths(back: Backward) -> Expr | None:
    return back.x(4).op("Cast", to=ir.DataType.INT64) if back.op.has(4) else None


def _active(back: Backward) -> Expr | None:
    """1 for the steps that a sample has (T, B, 1)."""
    lengths = _lengths(back)
    if lengths is None:
        return None
    steps = back.count_up(back.extent(back.op.input(0), 0))
    return steps.unsqueeze(-1).op("Less", lengths).float().unsqueeze(-1)


def _direction(back: Backward, number: int, backward: bool) -> _Direction:
    op, builder = back.op, back.builder
    size = back.dims(op.input(2))[2]
    if size is None:
        raise back.refusal("its number of hidden units is not known")
    x = _turn(back, back.x(), backward)
    pick = builder.constant(np.int64(number))
    w, r = (back.x(slot).op("Gather", pick, axis=0) for slot in (1, 2))
    zeros = builder.zeros(
        builder.concat([builder.op("Shape", op.input(0), start=1, end=2), builder.ints(size)], 0)
    )

    def state(slot: int) -> Expr:
        return back.x(slot).op("Gather", pick, axis=0) if op.has(slot) else zeros

    def gradient(slot: int) -> Expr:
        found = back.gradient(slot)
        return zeros if found is None else found.op("Gather", pick, axis=0)

    if not op.output().name:
        op.output().name = edit.fresh(builder.graph, f"{op.node.name or op.node.op_type}/hidden")
    hidden = _turn(back, back.y().op("Gather", pick, axis=1), backward)
    before = builder.concat([state(5).unsqueeze(0), hidden.slice(0, 0, -1)], 0)
    g = back.gradient()
    along = hidden * 0.0 if g is None else _turn(back, g.op("Gather", pick, axis=1), backward)
    gates = x @ w.transpose([1, 0])
    bias = None
    if op.has(3):
        b = back.x(3).op("Gather", pick, axis=0)
        half = _GATES[op.node.op_type] * size
        gates, bias = gates + b.slice(0, 0, half), b.slice(0, half, 2 * half)
    lstm = op.node.op_type == "LSTM"
    cell, first = (gradient(2), state(6)) if lstm else (zeros, zeros)
    active = _active(back)
    along = along if active is None else along * active
    return _Direction(x, before, w, r, gates, bias, along, gradient(1), cell, first, size, active)


def _weights(back: Backward, part: _Direction, found: _Found) -> dict[int, Expr]:
    """Gradients of W, R, B and the first states, without the axis of directions."""
    gates, size = _GATES[back.op.node.op_type], part.size
    made: dict[int, Expr] = {}
    if back.wants(1):
        made[1] = _product(found.input, part.x, gates * size)
    if back.wants(2):
        start, rows = 0, []
        for width, read in found.read:
            piece = found.recurrent.slice(2, start * size, (start + width) * size)
            rows.append(_product(piece, read, width * size))
            start += width
        made[2] = back.builder.concat(rows, 0)
    if back.wants(3):
        sums = [gradient.sum(0, 1, keep=False) for gradient in (found.input, found.recurrent)]
        made[3] = back.builder.concat(sums, 0)
    if back.wants(5):
        made[5] = found.first
    if back.wants(6) and found.cell is not None:
        made[6] = found.cell
    return made


def _product(a: Expr, b: Expr, rows: int) -> Expr:
    """Sum over steps and samples of a' b."""
    width = b.op("Shape", start=2)
    columns = b.reshape(b.builder.concat([b.builder.ints(-1), width], 0))
    return a.reshape([-1, rows]).op("Gemm", columns, transA=1)


# --- the steps ---------------------------------------------------------------------------------------------


def scan(
    builder: Builder,
    states: Sequence[Expr],
    sequences: Sequence[Expr],
    step: Callable[[Sequence[Expr], Sequence[Expr]], tuple[Sequence[Expr], Sequence[Expr]]],
    *,
    backward: bool,
) -> list[Expr]:
    """Add a Scan: last states, then what the steps give, one behind the other.

    Parameters
    ----------
    builder
        Where the node goes.
    states, sequences
        First states, and what the steps read along axis 0.
    step
        From states and entries to new states and what is given.
    backward
        Go from the last entry to the first.
    """
    prefix = edit.fresh(builder.graph, "scan")
    kind = ir.TensorType(ir.DataType.FLOAT)
    inputs = [ir.Value(name=f"{prefix}/{n}", type=kind) for n in range(len(states) + len(sequences))]
    body = ir.Graph(inputs, [], nodes=[], opset_imports=dict(builder.graph.opset_imports), name=prefix)
    inner = Builder(body, prefix)
    given = [inner.of(value) for value in inputs]
    after, made = step(given[: len(states)], given[len(states) :])
    for expr in (*after, *made):
        value = expr.op("Identity").value
        value.type = kind
        body.outputs.append(value)
    turned = {"scan_input_directions": [1] * len(sequences), "scan_output_directions": [1] * len(made)}
    return builder.ops(
        "Scan",
        [*states, *sequences],
        len(body.outputs),
        body=body,
        num_scan_inputs=len(sequences),
        **(turned if backward else {}),
    )


def _through(
    builder: Builder,
    part: _Direction,
    states: Sequence[Expr],
    sequences: Sequence[Expr],
    step: Callable[[Sequence[Expr], Sequence[Expr]], tuple[Sequence[Expr], Sequence[Expr]]],
) -> list[Expr]:
    """Go back through time; steps behind a sample's length hand its gradients on, and add nothing."""
    if part.active is None:
        return scan(builder, states, sequences, step, backward=True)

    def within(before: Sequence[Expr], now: Sequence[Expr]) -> tuple[Sequence[Expr], Sequence[Expr]]:
        active = now[-1]
        after, made = step(before, now[:-1])
        kept = [active * new + (1.0 - active) * old for new, old in zip(after, before, strict=True)]
        return kept, [active * one for one in made]

    return scan(builder, states, [*sequences, part.active], within, backward=True)


def _bent(gate: Expr) -> Expr:
    """The derivative of a sigmoid that has this value."""
    return gate * (1.0 - gate)


def _flat(gate: Expr) -> Expr:
    """The derivative of a tanh that has this value."""
    return 1.0 - gate * gate


def _pre(part: _Direction) -> Expr:
    product = part.gates + part.before @ part.r.transpose([1, 0])
    return product if part.bias is None else product + part.bias


def _pieces(x: Expr, size: int, count: int) -> list[Expr]:
    return [x.slice(2, n * size, (n + 1) * size) for n in range(count)]


def _lstm(back: Backward, part: _Direction) -> _Found:
    builder, r = back.builder, part.r.value
    raw = _pieces(_pre(part), part.size, 4)
    i, o, f = (piece.op("Sigmoid") for piece in raw[:3])
    c = raw[3].op("Tanh")

    def forward(states: Sequence[Expr], now: Sequence[Expr]) -> tuple[Sequence[Expr], Sequence[Expr]]:
        cell = now[0] * states[0] + now[1]
        return [cell], [cell]

    cells = scan(builder, [part.state], [f, i * c], forward, backward=False)[1]
    earlier = builder.concat([part.state.unsqueeze(0), cells.slice(0, 0, -1)], 0)
    bent = cells.op("Tanh")
    # What the gradients of a step's hidden state and cell are multiplied by, for all steps.
    factors = [o * _flat(bent), bent * _bent(o), c * _bent(i), earlier * _bent(f), i * _flat(c), f]

    def step(states: Sequence[Expr], now: Sequence[Expr]) -> tuple[Sequence[Expr], Sequence[Expr]]:
        g, to_cell, by_o, by_i, by_f, by_c, keep = now
        dh = states[0] + g
        dc = states[1] + dh * to_cell
        gates = dh.builder.concat([dc * by_i, dh * by_o, dc * by_f, dc * by_c], 1)
        return [gates @ r, dc * keep], [gates]

    first, cell, gates = _through(builder, part, [part.last, part.cell], [part.g, *factors], step)
    return _Found(gates, gates, [(4, part.before)], first, cell)


def _gru(back: Backward, part: _Direction) -> _Found:
    builder, size, r = back.builder, part.size, part.r
    rows = [r.slice(0, n * size, (n + 1) * size) for n in range(3)]
    z, reset = (piece.op("Sigmoid") for piece in _pieces(_pre(part), size, 2))
    bias = 0.0 if part.bias is None else part.bias.slice(0, 2 * size, 3 * size)
    late = bool(back.op.int("linear_before_reset", 0))
    own = _pieces(part.gates, size, 3)[2]
    if late:
        linear = part.before @ rows[2].transpose([1, 0]) + bias
        h = (own + reset * linear).op("Tanh")
    else:
        linear = part.before
        h = (own + (reset * part.before) @ rows[2].transpose([1, 0]) + bias).op("Tanh")
    factors = [z, (part.before - h) * _bent(z), (1.0 - z) * _flat(h), linear * _bent(reset), reset]

    def step(states: Sequence[Expr], now: Sequence[Expr]) -> tuple[Sequence[Expr], Sequence[Expr]]:
        g, keep, by_z, by_h, by_r, passes = now
        dh = states[0] + g
        dz, dn = dh * by_z, dh * by_h
        if late:
            dr, hidden = dn * by_r, dn * passes
            through = hidden @ rows[2].value
        else:
            hidden = dn
            product = dn @ rows[2].value
            dr, through = product * by_r, product * passes
        before = dh * keep + dz @ rows[0].value + dr @ rows[1].value + through
        concat = dh.builder.concat
        return [before], [concat([dz, dr, dn], 1), concat([dz, dr, hidden], 1)]

    first, gates, recurrent = _through(builder, part, [part.last], [part.g, *factors], step)
    read = [(2, part.before), (1, part.before if late else reset * part.before)]
    return _Found(gates, recurrent, read, first)


def _rnn(back: Backward, part: _Direction) -> _Found:
    flat = _flat(_pre(part).op("Tanh"))

    def step(states: Sequence[Expr], now: Sequence[Expr]) -> tuple[Sequence[Expr], Sequence[Expr]]:
        gate = (states[0] + now[0]) * now[1]
        return [gate @ part.r.value], [gate]

    first, gates = _through(back.builder, part, [part.last], [part.g, flat], step)
    return _Found(gates, gates, [(1, part.before)], first)


VJPS: dict[Key, Vjp] = {("", "LSTM"): _recurrent, ("", "GRU"): _recurrent, ("", "RNN"): _recurrent}
