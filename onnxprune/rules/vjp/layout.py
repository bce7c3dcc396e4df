"""VJPs of operators that only rename positions: each is another one of them."""

from __future__ import annotations

from onnxprune.rules.backward import Backward, Vjp
from onnxprune.rules.expr import vector
from onnxprune.rules.op import Op
from onnxprune.rules.rule import Key


def _reshape(op: Op, back: Backward) -> None:
    back.give(0, back.reshape_like(back.g, op.input(0)))


def _transpose(op: Op, back: Backward) -> None:
    rank = back.rank(op.input(0))
    order = op.ints("perm") or list(range(rank))[::-1]
    if sorted(order) != list(range(rank)):
        raise back.refusal(f"its perm {order} does not fit {rank} axes: the model is not valid")
    back.give(0, back.g.transpose([order.index(dim) for dim in range(rank)]))


def _squeeze(op: Op, back: Backward) -> None:
    axes = op.ints("axes", 1)
    if axes is None:
        _reshape(op, back)
    else:
        back.give(0, back.g.unsqueeze(*sorted(axis % back.rank(op.input(0)) for axis in axes)))


def _unsqueeze(op: Op, back: Backward) -> None:
    axes = op.ints("axes", 1)
    if axes is None:
        _reshape(op, back)
    else:
        back.give(0, back.g.squeeze(*sorted(axis % back.rank(op.output()) for axis in axes)))


def _depth_to_space(op: Op, back: Backward) -> None:
    size = op.int("blocksize", 1)
    if op.str("mode", "DCR") == "DCR":
        back.give(0, back.g.op("SpaceToDepth", blocksize=size))
        return
    x = op.input(0)
    shape = vector(back.builder, [0, -1, back.extent(x, 2), size, back.extent(x, 3), size])
    back.give(0, back.reshape_like(back.g.reshape(shape).transpose([0, 1, 3, 5, 2, 4]), x))


def _space_to_depth(op: Op, back: Backward) -> None:
    back.give(0, back.g.op("DepthToSpace", blocksize=op.int("blocksize", 1), mode="DCR"))


VJPS: dict[Key, Vjp] = {
    ("", "Reshape"): _reshape,
    ("", "Flatten"): _reshape,
    ("", "Transpose"): _transpose,
    ("", "Squeeze"): _squeeze,
    ("", "Unsqueeze"): _unsqueeze,
    ("", "DepthToSpace"): _depth_to_space,
    ("", "SpaceToDepth"): _space_to_depth,
}
