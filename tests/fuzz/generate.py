"""Seed -> model: the same graph for the same seed, valid, finite and with something to see in every output."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir

from onnxprune.errors import ModelError
from onnxprune.model.check import check
from onnxprune.rules.rule import Key
from onnxprune.testing.feeds import Array, make_feeds
from tests.fuzz import blocks, moves, qdq
from tests.fuzz.adapt import apply
from tests.fuzz.dress import dress
from tests.fuzz.retype import retype
from tests.fuzz.run import difference, results_of
from tests.fuzz.templates import usable
from tests.fuzz.walk import At, Walk

OPSETS = (9, 11, 11, 13, 13, 15, 17, 18, 18, 18, 19, 20, 21, 22, 23, 24, 26)
BATCH = 2
"""The size of a symbolic batch when a graph is run."""
LEAST, MOST = 5, 60
"""Nodes of a graph, Constants not counted."""
_REDRAWS = 40
_CONDITION = 1e-2


def template(w: Walk) -> None:
    """Any operator that has a rule, as a line of the tables of tests/rules applies it; rare ones as often."""
    table = usable(w.opset, w.contrib)
    apply(w, w.choose(table[w.choose(list(table))]))


_MOVES = (
    *(moves.residual, moves.broadcast, moves.concat, moves.split, moves.cut, moves.gather, moves.pad),
    *(moves.tile, moves.transpose, moves.regroup, moves.shuffle, moves.flatten, moves.reduce, moves.squeeze),
    *(moves.normalise, moves.scaled, moves.other_type, moves.pointwise, moves.pointwise, moves.pointwise),
)
_BLOCKS = (
    *(blocks.dense, blocks.dense, blocks.convolution, blocks.convolution, blocks.transposed_convolution),
    *(blocks.conv_norm_act, blocks.pool, blocks.gate, blocks.group_norm, blocks.blocks_of_pixels),
    *(blocks.attention, blocks.attention, blocks.feed_forward, blocks.mixer, blocks.product, blocks.einsum),
    *(blocks.shared, blocks.shared, blocks.tied, blocks.to_image, blocks.to_rows, *qdq.STEPS),
)
Step = Callable[[Walk], None]


@dataclass(frozen=True, eq=False)
class Graph:
    """A drawn graph.

    Attributes
    ----------
    drawn
        How often each operator was drawn.
    highs
        For integer inputs: the number of values, counted from 0.
    checker
        Whether onnx's checker knows all its operators.
    half
        Whether a part is in float16 or bfloat16.
    dtype
        The type that all of it or a run of its nodes was converted to; "float32" where nothing was.
    bindings
        Sizes of its symbolic dims, except the batch's.
    traits
        What else was drawn for it.
    redraws
        How many graphs before it were refused, and why.
    """

    seed: int
    model: ir.Model
    drawn: Counter[Key]
    highs: dict[str, int]
    checker: bool
    half: bool
    redraws: tuple[str, ...]
    dtype: str = "float32"
    bindings: dict[str, int] = field(default_factory=dict)
    traits: tuple[str, ...] = ()

    @property
    def nodes(self) -> int:
        return operators(self.model)

    @property
    def quantised(self) -> bool:
        return any("uantize" in op_type for _, op_type in self.drawn)

    def feed(self) -> dict[str, Array]:
        return make_feeds(self.model, self.highs, {"batch": BATCH, **self.bindings})


def operators(model: ir.Model) -> int:
    """Nodes that are no Constants."""
    return sum(node.op_type != "Constant" for node in model.graph)


def generate(seed: int, after: int = 0) -> Graph:
    """Draw a graph; one that cannot be run or compared is drawn again, from the same seed.

    Parameters
    ----------
    after
        How many of the first draws are not looked at, because onnxruntime does not survive one of them.
    """
    redraws = ["onnxruntime: crash"] if after else []
    for attempt in range(after, _REDRAWS):
        rng = np.random.default_rng([seed, attempt])
        graph = draw(rng, seed, tuple(redraws))
        if not LEAST <= graph.nodes <= MOST:
            continue
        why = refuse(graph)
        if why is None:
            graph = clothe(rng, graph)
            why = refuse(graph, steep=False) if LEAST <= graph.nodes <= MOST else "size"
        if why is None:
            return graph
        redraws.append(why)
    raise AssertionError(f"seed {seed}: no graph can be used: {redraws}")


def draw(rng: np.random.Generator, seed: int, redraws: tuple[str, ...]) -> Graph:
    """Steps until the graph has the size that was drawn for it."""
    opset = int(rng.choice(OPSETS))
    w = Walk(rng, opset, contrib=bool(rng.random() < 0.5))
    begin(w)
    size = int(np.exp(rng.uniform(np.log(4), np.log(46))))
    favour = w.choose([_MOVES, _BLOCKS, (template,), (*_MOVES, *_BLOCKS)])
    while w.nodes < size:
        if w.chance(0.2):
            template(w)
            continue
        pool: tuple[Step, ...] = favour if w.chance(0.6) else w.choose([_MOVES, _BLOCKS, (template,)])
        w.choose(pool)(w)
    model = w.b.model(*finish(w), declare=w.chance(0.7))
    return Graph(seed, model, w.drawn, w.highs, w.checker, w.half, redraws)


def clothe(rng: np.random.Generator, graph: Graph) -> Graph:
    """The same function in other float types, and written in one of the ways in which files differ."""
    dtype = retype(rng, graph.model)
    bindings, traits = dress(rng, graph.model)
    half = graph.half or dtype in ("float16", "bfloat16")
    return replace(graph, dtype=dtype, half=half, bindings=bindings, traits=traits)


def begin(w: Walk) -> None:
    """One or two inputs, each behind a layer that makes channels."""
    batch = w.choose([1, 2, "batch", "batch"])
    for number in range(w.choose([1, 1, 2])):
        kind = w.choose(["image", "rows", "vector", "tokens"])
        name = f"in{number}"
        if kind == "image":
            at = blocks.conv(
                w, At(w.b.input(name, (batch, 3, 4, 4)), (batch, 3, 4, 4)), w.integer(4, 8), kernel=3
            )
        elif kind == "tokens":
            width = w.integer(4, 8)
            tokens = w.b.input(name, (batch, 4), ir.DataType.INT64)
            w.highs[name] = 2
            at = At(w.op("Gather", w.weight(5, width), tokens, axis=0), (batch, 4, width), 1.0)
        else:
            shape = (batch, 3, 5) if kind == "rows" else (batch, 6)
            at = blocks.linear(w, At(w.b.input(name, shape), shape), w.integer(4, 8))
        w.values.append(at)


def finish(w: Walk) -> list[ir.Value]:
    """Everything that nothing uses yet becomes an output, behind a layer that sums over its channels."""
    outputs: list[ir.Value] = []
    small: list[ir.Value] = []
    for number, at in enumerate(w.unused()):
        if number and w.chance(0.06):
            outputs.append(w.op("Identity", at.value))
        elif number < 2:
            outputs.append(answer(w, at).value)
        else:
            at = answer(w, at)
            small.append(w.given("ReduceMean", at.value, axes=list(range(at.rank)), keepdims=0))
    if len(small) > 1:
        small = [w.op("Sum", *small)]
    if w.chance(0.12):  # somebody outside reads what the graph goes on with
        inner = w.choose(w.values).value
        outputs += [inner] if inner not in outputs and inner.producer() is not None else []
    return outputs + small


def answer(w: Walk, at: At) -> At:
    """A value with a few numbers per row: a product along the last axis that can be summed over."""
    if at.rank == 4 and 1 in at.free and w.chance(0.5):
        return blocks.conv(w, at, 2)
    if at.rank == 0 or (at.rank == 1 and not at.static):
        return at
    at = blocks.linear(w, at, 3)
    if at.rank > 2 and w.chance(0.6):
        shape = [int(d) for d in at.shape[1:-1]]
        weighted = w.op("Mul", at.value, w.weight(*shape, 3))
        axes = list(range(1, at.rank - 1))
        at = At(w.given("ReduceSum", weighted, axes=axes, keepdims=0), (at.shape[0], 3))
    return at


def refuse(graph: Graph, steep: bool = True) -> str | None:
    """Why a graph is of no use: invalid, not finite, all alike, or rounding decides what comes out (`steep`).

    Or onnxruntime refuses it, or computes something else, once it has optimised it.
    """
    if graph.checker:
        try:
            check(graph.model)
        except ModelError as error:
            return f"invalid: {error}"
    feed = graph.feed()
    try:
        run = results_of(graph.model)
        found = run(feed)
        moved = run({k: _near(a) for k, a in feed.items()}) if steep else found
        optimised = results_of(graph.model, optimize=True)
        # its integer kernels calculate in fewer bits than the graph says
        fast = found if steep or graph.quantised else optimised(feed)
    except AssertionError as error:
        return f"does not run: {error}"
    for name, array in found.items():
        values = array.astype(np.float64)
        top = np.abs(values).max(initial=0.0)
        if not np.isfinite(values).all() or top > 1e4:
            return f"{name} is not finite"
        if top < 1e-6 or (array.size > 1 and np.ptp(values) <= 1e-6 * top):
            return f"{name} is all alike"
        if np.abs(values - moved[name]).max() > _CONDITION * top:
            return f"{name} is steep"
    differs = difference(found, fast, graph.half)
    return None if differs is None else f"onnxruntime: optimised: {differs}"


def _near(array: Array) -> Array:
    return array * array.dtype.type(1 + 1e-5) if array.dtype.kind == "f" else array
