"""Recurrent layers drawn at random, one behind the other or side by side, and what lies between them."""

from __future__ import annotations

import numpy as np
import pytest
from block_nets import check
from test_recurrent_blocks import GATES, Recurrent


class Drawn(Recurrent):
    """Draws how layers are made, and how their states are read."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.draw = np.random.default_rng(seed)
        self.count = 0

    def pick(self, *values):
        return values[int(self.draw.integers(len(values)))]

    def block(self, x, last=None):
        """A layer and a way to read the states of all its steps, (steps, samples, width)."""
        self.count += 1
        op_type, both = self.pick(*GATES), self.pick(False, True, True)
        hidden = int(self.draw.integers(2, 7))
        states = ()
        if last is not None and self.pick(True, False):
            op_type, hidden, both, states = last
        more = {"linear_before_reset": 1} if op_type == "GRU" and self.pick(True, False) else {}
        y, *ends = self.recurrent(
            op_type, x, hidden, name=f"layer{self.count}", both=both, states=states, **more
        )
        read = self.pick("merge", "merge", "slice", "sum", "split", "act") if both else "squeeze"
        return self.read(y, hidden, read, both), (op_type, hidden, both, tuple(ends)), ends

    def read(self, y, hidden, way, both):
        if way == "act":
            y = self.op("Sigmoid", y)
        if way == "sum":
            return self.mark(self.op("ReduceSum", y, self.constant([1]), keepdims=0), hidden)
        if way == "squeeze":
            return self.mark(self.op("Squeeze", y, self.constant([1])), hidden)
        if way == "slice":
            parts = [self.op("Squeeze", self.slice(y, i, i + 1), self.constant([1])) for i in (1, 0)]
        elif way == "split":
            parts = [self.op("Squeeze", part, self.constant([1])) for part in self.split(y, 1, 1)]
        else:
            y = self.op("Transpose", y, perm=[0, 2, 1, 3])
            return self.mark(self.op("Reshape", y, self.constant([0, 0, -1])), 2 * hidden)
        return self.mark(self.op("Concat", *parts, axis=2), 2 * hidden)

    def end(self, last, hidden, both):
        """A way to read the last states of all directions, (samples, width)."""
        if not both:
            return self.mark(self.op("Squeeze", last, self.constant([0])), hidden)
        way = self.pick("gather", "merge", "first", "turned")
        if way == "first":
            return self.mark(self.gather(last, 0, axis=0), hidden)
        if way == "merge":
            flat = self.op("Reshape", self.op("Transpose", last, perm=[1, 0, 2]), self.constant([0, -1]))
            return self.mark(flat, 2 * hidden)
        if way == "turned":
            last = self.op("Gather", last, self.constant(np.array([1, 0])), axis=0)
        parts = [self.gather(last, i, axis=0) for i in range(2)]
        return self.mark(self.op("Concat", *parts, axis=1), 2 * hidden)

    def net(self):
        x, last = self.steps(), None
        for _ in range(self.pick(1, 2, 3)):
            y, last, ends = self.block(x, last)
            if self.extents[y] == self.extents[x] and self.pick(True, False):
                y = self.mark(self.op("Add", x, y), self.extents[x])
            elif self.pick(True, False, False):
                y = self.mark(self.op("Concat", x, y, axis=2), self.extents[x] + self.extents[y])
            x = y
        outputs = [self.linear(x, 3, name="fc")]
        if self.pick(True, False):
            outputs.append(self.linear(self.end(ends[0], last[1], last[2]), 2, name="head"))
        return outputs


@pytest.mark.parametrize("seed", range(20))
def test_drawn(seed):
    n = Drawn(seed)
    assert check(n, *n.net()).groups
