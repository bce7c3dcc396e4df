"""Attention as exporters write it, node by node: what all the forms share, and how units are compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from onnxprune.graph.axes import Axis
from onnxprune.graph.groups import Group
from onnxprune.testing import Checked, ModelBuilder

HEADS, DEPTH, WIDTH, TOKENS, FFN = 4, 6, 10, 5, 7
INNER = HEADS * DEPTH

Index = np.ndarray
Units = dict[str, Index]


class Net(ModelBuilder):
    """Layers on a stream `x` of shape (batch, TOKENS, WIDTH); every layer names its weights after itself."""

    def tokens(self, name="x", tokens=TOKENS, width=WIDTH, batch="batch") -> ir.Value:
        return self.input(name, (batch, tokens, width))

    def linear(self, x, inner, outer, name, *, bias=True) -> ir.Value:
        y = self.op("MatMul", x, self.weight((inner, outer), f"{name}.weight"), name=name)
        return self.op("Add", y, self.weight((outer,), f"{name}.bias"), name=f"{name}.add") if bias else y

    def reshape(self, x, *target, name="") -> ir.Value:
        return self.op("Reshape", x, self.constant(list(target)), name=name)

    def permute(self, x, *perm, name="") -> ir.Value:
        return self.op("Transpose", x, perm=list(perm), name=name)

    def number(self, value) -> ir.Value:
        return self.constant(np.float32(value), "number")

    def pick(self, x, index, axis) -> ir.Value:
        """`x.select(axis, index)`."""
        return self.op("Gather", x, self.constant(np.array(index)), axis=axis)

    def cut(self, x, start, end, axis, step=1) -> ir.Value:
        return self.op("Slice", x, *(self.constant([i]) for i in (start, end, axis, step)))

    def split(self, x, *sizes, axis) -> tuple[ir.Value, ...]:
        return self.ops("Split", x, self.constant(list(sizes)), axis=axis, outputs=len(sizes))

    def unsqueeze(self, x, *axes) -> ir.Value:
        return self.op("Unsqueeze", x, self.constant(list(axes)))

    def apart(self, x, heads=HEADS, depth=DEPTH, tokens=TOKENS) -> ir.Value:
        """(B, N, H*D) -> (B, H, N, D)."""
        return self.permute(self.reshape(x, 0, tokens, heads, depth), 0, 2, 1, 3)

    def together(self, mixed, inner=INNER, tokens=TOKENS) -> ir.Value:
        """(B, H, N, D) -> (B, N, H*D)."""
        return self.reshape(self.permute(mixed, 0, 2, 1, 3), 0, tokens, inner)

    def project(self, x, heads: Mapping[str, int] | Sequence[str] = ("q", "k", "v")) -> list[ir.Value]:
        """Separate projections of (B, N, WIDTH), each (B, H, N, D)."""
        counts = heads if isinstance(heads, Mapping) else dict.fromkeys(heads, HEADS)
        return [self.apart(self.linear(x, WIDTH, n * DEPTH, name), n) for name, n in counts.items()]

    def scores(self, q, k) -> ir.Value:
        """Scaled products of queries and keys, both (B, H, N, D)."""
        products = self.op("MatMul", q, self.permute(k, 0, 1, 3, 2), name="scores")
        return self.op("Mul", products, self.number(0.2), name="scale")

    def attend(self, q, k, v, change: Callable[[ir.Value], ir.Value] = lambda scores: scores) -> ir.Value:
        """softmax(change(q k^T)) v."""
        weights = self.op("Softmax", change(self.scores(q, k)), axis=-1, name="softmax")
        return self.op("MatMul", weights, v, name="mix")

    def close(self, x, joined, inner=INNER, *others, **more) -> ir.Model:
        """Projection, residual connection, feed-forward layers; `others` are further outputs."""
        x = self.op("Add", x, self.linear(joined, inner, WIDTH, "proj"), name="residual")
        y = self.op("Relu", self.linear(x, WIDTH, FFN, "fc1"))
        return self.model(self.op("Add", x, self.linear(y, FFN, WIDTH, "fc2")), *others, **more)


# --- units -----------------------------------------------------------------------------------------------


def digit(*shape: int, of: int) -> Index:
    """The index along axis `of` for every position of a flattened array of this shape."""
    return np.indices(shape)[of].ravel()


WHOLE = digit(HEADS, DEPTH, of=0)
"""The head of every channel of a projection."""

EACH = np.arange(HEADS)


def rows(names: Sequence[str], units: Index = WHOLE) -> Units:
    """Weight and bias of linear layers that produce units."""
    return {f"{name}.{part}": units for name in names for part in ("weight[1]", "bias[0]")}


FEED_FORWARD = {**rows(["fc1"], np.arange(FFN)), "fc2.weight[0]": np.arange(FFN)}

SEPARATE = {**rows("qkv"), "proj.weight[0]": WHOLE}
"""Whole heads: rows of Q, K and V, and columns of the projection."""


def units_are(result: Checked, *expected: Units) -> None:
    """The groups in use have exactly these units on exactly these parameter axes."""
    _compare(result, result.partition.groups, expected)


def alternatives_are(result: Checked, *expected: Units) -> None:
    """The same of the groups that are not in use."""
    _compare(result, result.partition.alternatives, expected)


def ways_are(result: Checked, *expected: Units) -> None:
    """The same of all groups, in use or not."""
    _compare(result, (*result.partition.groups, *result.partition.alternatives), expected)


def _compare(result: Checked, groups: Sequence[Group], expected: Sequence[Units]) -> None:
    got, wanted = _text([uses(group) for group in groups]), _text(expected)
    if got != wanted:
        raise AssertionError(f"found:\n{got}\nexpected:\n{wanted}\nblocked:\n{_reasons(result)}")


def uses(group: Group) -> Units:
    """The unit of every position of a group's parameter axes."""
    return {use.axis.name: use.unit for use in (*group.sources, *group.sinks)}


def _text(groups: Sequence[Units]) -> str:
    """One block of lines per group; units are numbered as they are met on the axes, by name."""
    blocks = []
    for group in groups:
        numbers: dict[int, int] = {-1: -1}
        blocks.append(
            "\n".join(
                f"  {name} {[numbers.setdefault(int(unit), len(numbers) - 1) for unit in group[name]]}"
                for name in sorted(group)
            )
        )
    return "\n  ---\n".join(sorted(blocks))


def _reasons(result: Checked) -> str:
    """Why each parameter axis without units stays."""
    used = {use.axis for group in result.partition.groups for use in (*group.sources, *group.sinks)}
    names = {axis.name for axis in result.axis_graph.graph if isinstance(axis, Axis)}
    return "\n".join(
        f"  {name}: {reason.name}"
        for value in result.axis_graph.parameters
        for dim in range(len(value.shape or ()))
        if (name := f"{value.name}[{dim}]") in names - {axis.name for axis in used}
        and (reason := result.reason(name)) is not None
    )
