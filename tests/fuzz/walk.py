"""A graph that grows: the values at hand, and helpers with which steps make new ones."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from onnxprune.rules.rule import Key
from onnxprune.testing import ModelBuilder

Extents = tuple[int | str, ...]
LIMIT = 4.0
"""Values that may be larger than this are squashed, so that no output drowns the others."""


@dataclass(frozen=True, eq=False)
class At:
    """A float32 value at hand.

    Attributes
    ----------
    shape
        Only the first extent may be a name.
    bound
        About how large its elements get.
    """

    value: ir.Value
    shape: Extents
    bound: float = 2.0

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def free(self) -> tuple[int, ...]:
        """Dims of a known extent, the batch left out where the rank allows it."""
        return (
            tuple(range(1 if self.rank > 1 else 0, self.rank)) if self.static else tuple(range(1, self.rank))
        )

    @property
    def static(self) -> bool:
        return all(isinstance(d, int) for d in self.shape)

    @property
    def size(self) -> int:
        """Elements per sample."""
        return math.prod(d for d in self.shape if isinstance(d, int))


class Walk:
    """Holds what has been drawn so far; the same generator makes the same graph."""

    def __init__(self, rng: np.random.Generator, opset: int, contrib: bool) -> None:
        self.rng, self.opset, self.contrib = rng, opset, contrib
        domains = {"com.microsoft": 1} if contrib else None
        self.b = ModelBuilder(opset, domains, seed=int(rng.integers(1 << 30)))
        self.values: list[At] = []
        self.drawn: Counter[Key] = Counter()
        self.highs: dict[str, int] = {}
        self.checker = True
        self.half = False
        self._used: set[ir.Value] = set()
        self._weights: dict[tuple[Any, ...], list[ir.Value]] = {}

    # --- draws ---

    def chance(self, share: float) -> bool:
        return bool(self.rng.random() < share)

    def integer(self, low: int, high: int) -> int:
        return int(self.rng.integers(low, high + 1))

    def choose(self, entries: Sequence[Any]) -> Any:
        return entries[int(self.rng.integers(len(entries)))]

    def divisor(self, n: int, least: int = 1) -> int:
        return int(self.choose([d for d in range(least, n + 1) if n % d == 0] or [n]))

    def pick(self, fits: Callable[[At], bool] = lambda at: True) -> At | None:
        """A value at hand, mostly one that nothing uses yet, or a recent one."""
        found = [at for at in self.values if fits(at)]
        fresh = [at for at in found if at.value not in self._used]
        if fresh and self.chance(0.6):
            return fresh[0] if self.chance(0.5) else fresh[-1]
        return self.choose(found[-5:]) if found else None

    # --- nodes ---

    @property
    def nodes(self) -> int:
        return sum(self.drawn.values())

    def ops(self, op_type: str, *inputs: ir.Value | None, outputs: Any, domain: str = "", **attributes: Any):
        self.drawn[domain, op_type] += 1
        self._used.update(value for value in inputs if value is not None)
        return self.b.ops(op_type, *inputs, outputs=outputs, domain=domain, **attributes)

    def op(self, op_type: str, *inputs: ir.Value | None, domain: str = "", **attributes: Any) -> ir.Value:
        return self.ops(op_type, *inputs, outputs=1, domain=domain, **attributes)[0]

    def given(self, op_type: str, value: ir.Value, outputs: int = 1, **options: Any) -> Any:
        """Apply an operator whose options are attributes in some versions and inputs in others."""
        schema = onnx.defs.get_schema(op_type, self.opset, "")
        names = [formal.name for formal in schema.inputs]
        inputs: list[ir.Value | None] = [value]
        attributes = {}
        for name, option in options.items():
            if name in schema.attributes or option is None:
                attributes[name] = option
                continue
            slot = names.index(name)
            inputs += [None] * (slot + 1 - len(inputs))
            inputs[slot] = self.b.constant(np.asarray(option))
        made = self.ops(op_type, *inputs, outputs=outputs, **attributes)
        return made[0] if outputs == 1 else made

    def unused(self) -> list[At]:
        return [at for at in self.values if at.value not in self._used]

    def knows(self, op_type: str) -> bool:
        """Whether the opset has an operator."""
        return onnx.defs.has(op_type, self.opset, "")

    # --- values ---

    def weight(self, *shape: int, low: float = -1.0, high: float = 1.0) -> ir.Value:
        """Weights, now and then those of another node."""
        earlier = self._weights.setdefault((shape, low, high), [])
        if earlier and self.chance(0.3):
            return self.choose(earlier)
        earlier.append(self.b.weight(shape, "w", low=low, high=high))
        return earlier[-1]

    def columns(self, rows: int, most: int) -> int:
        """Columns of a new matrix, now and then as many as one of as many rows has."""
        earlier = [shape[1] for shape, *_ in self._weights if len(shape) == 2 and shape[0] == rows]
        return self.choose(earlier) if earlier and self.chance(0.5) else self.integer(2, most)

    def matrix(self, rows: int, columns: int) -> ir.Value:
        """Weights of a product that keeps the scale of its input; now and then a node makes them."""
        limit = round(1.7 / math.sqrt(rows), 4)
        how = self.rng.random()
        if how < 0.1:
            return self.op("Transpose", self.weight(columns, rows, low=-limit, high=limit), perm=[1, 0])
        if how < 0.15:
            wide = self.weight(rows, columns + 2, low=-limit, high=limit)
            return self.given("Slice", wide, starts=[1], ends=[columns + 1], axes=[1])
        if how < 0.2:
            scale = self.weight(columns, low=0.5, high=1.5)
            return self.op("Mul", self.weight(rows, columns, low=-limit, high=limit), scale)
        if how < 0.23:
            half = self.b.rng.uniform(-limit, limit, (rows, columns)).astype(np.float16)
            return self.op("Cast", self.b.constant(half), to=1)
        return self.weight(rows, columns, low=-limit, high=limit)

    def ints(self, *values: int) -> ir.Value:
        return self.b.constant(np.array(values, np.int64))

    def number(self, value: float) -> ir.Value:
        return self.b.constant(np.float32(value))

    def push(self, value: ir.Value, shape: Sequence[int | str], bound: float = 2.0) -> At:
        """Add a value to those at hand, squashed where it may have got too large."""
        if bound > LIMIT:
            if self.chance(0.5):
                value, bound = self.op("Tanh", value), 1.0
            else:
                value, bound = self.op("Mul", value, self.number(2.0 / bound)), 2.0
        at = At(value, tuple(shape), bound)
        self.values.append(at)
        return at

    def extent(self, value: ir.Value, dim: int) -> ir.Value:
        """One extent, computed: a vector of one int64."""
        shape = self.op("Shape", value)
        if self.chance(0.3):
            return self.given("Slice", shape, starts=[dim], ends=[dim + 1], axes=[0])
        return self.op("Gather", shape, self.ints(dim), axis=0)

    def reshape(self, at: At, shape: Sequence[int | str]) -> ir.Value:
        """Reshape; the target is a constant, or computed in part where the first extents agree."""
        kept = at.shape[0] == shape[0]
        if kept and self.chance(0.25):
            rest = list(shape[1:])
            if rest and self.chance(0.3):
                rest[self.integer(0, len(rest) - 1)] = -1
            return self.op("Reshape", at.value, self.op("Concat", *self.parts(at, rest), axis=0))
        first = shape[0] if isinstance(shape[0], int) and self.chance(0.7) else 0 if kept else -1
        return self.op("Reshape", at.value, self.ints(first, *shape[1:]))

    def parts(self, at: At, rest: Sequence[int | str]) -> list[ir.Value]:
        """A computed target: the first extent, and others where one of the value's is a multiple."""
        parts = [self.extent(at.value, 0)]
        for n in rest:
            source = [d for d in at.free if n != -1 and int(at.shape[d]) % int(n) == 0 and d > 0]
            if source and self.chance(0.4):
                dim = self.choose(source)
                times = int(at.shape[dim]) // int(n)
                extent = self.extent(at.value, dim)
                parts.append(extent if times == 1 else self.op("Div", extent, self.ints(times)))
            else:
                parts.append(self.ints(int(n)))
        return parts

    def whole(self, at: At) -> At:
        """Without a batch of unknown size."""
        if at.static:
            return at
        value = self.given("ReduceMean", at.value, axes=[0], keepdims=1)
        return At(value, (1, *at.shape[1:]), at.bound)

    def ranged(self, at: At, low: float, high: float) -> At:
        """Squashed into a range, unless that is about the one it has."""
        bound = max(abs(low), abs(high))
        if low < 0 < high and 0.4 * bound < at.bound <= bound:
            return at
        value = self.op("Tanh", at.value)
        value = self.op("Mul", value, self.number(0.98 * (high - low) / 2))
        if low != -high:
            value = self.op("Add", value, self.number((high + low) / 2))
        return At(value, at.shape, bound)
