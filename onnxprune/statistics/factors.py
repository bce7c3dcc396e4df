"""Moments of both factors of products, head by head, in few passes over the samples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import onnx_ir as ir

from onnxprune.calibrate.sessions import open_session, run
from onnxprune.errors import DataError
from onnxprune.graph.axes import Index
from onnxprune.graph.build import AxisGraph
from onnxprune.statistics.batches import Batches, Feed
from onnxprune.statistics.collect import FEWEST, ROWS, divide
from onnxprune.statistics.moments import Matrix, Moments
from onnxprune.statistics.probes import Added, Array, choose
from onnxprune.statistics.products import Product

Seen = tuple[Moments, Moments]
"""Of both factors of a product; the heads are the groups."""


class ProductProbe(Added):
    """Adds nodes to a graph that collect the rows of one factor of a product.

    Parameters
    ----------
    graph
        Mutated.
    product
        The product; its values may belong to another graph with the same names.
    slot
        Which factor.
    name
        Prefix of the names of what is added.
    """

    def __init__(self, graph: ir.Graph, product: Product, slot: int, name: str) -> None:
        dtype = product.axes[slot].value.dtype
        super().__init__(graph, name, dtype is not None and dtype != ir.DataType.FLOAT)
        self.product, self.slot = product, slot

    def rows(self, value: ir.Value, dims: int) -> ir.Value:
        """Rows of the factor at the drawn places: (matrices per sample, rows, dims), float32."""
        matrices, count = self.product.places[self.slot]
        shape = (-1, matrices, count, dims) if self.slot == 0 else (-1, matrices, dims, count)
        apart = self.op("Reshape", value, self._ints(*shape))
        turned = self.op("Transpose", apart, perm=[1, 0, 2, 3] if self.slot == 0 else [1, 0, 3, 2])
        flat = self.op("Reshape", turned, self._ints(matrices, -1, dims))
        places = self.given("places", ir.DataType.INT64, 1)
        return self._float(self.op("Gather", flat, places, axis=1))

    def feed(self, places: Index) -> dict[str, Array]:
        """What the inputs that were added have to be for one batch."""
        every: dict[str, Array] = {"places": places, "ones": np.ones((1, 1, len(places)), np.float32)}
        return {f"{self.name}/{key}": every[key] for key in self._inputs if key in every}

    def read(self, found: Feed, rows: int) -> Moments:
        """Moments per head from the outputs that `moments` named."""
        total, gram = (found[f"{self.name}/{key}"].astype(np.float64) for key in ("total", "gram"))
        heads = self.product.heads[self.slot]
        count = float(rows * heads.shape[1])
        return Moments(count, total[heads, 0].sum(axis=1), gram[heads].sum(axis=1))


def draw(rng: np.random.Generator, product: Product, samples: int, batch: int) -> tuple[Index, Index]:
    """Rows of both factors that are looked at in one batch, of `samples` in all; always the same share."""
    want = max(ROWS * product.dims, FEWEST)
    places = []
    for total, heads, every in zip(product.rows(batch), product.heads, product.rows(samples), strict=True):
        share = min(1.0, want / max(every * heads.shape[1], 1))
        count = min(total, max(1, round(share * total)))
        places.append(choose(rng, total, count))
    return places[0], places[1]


def product_statistics(
    axis_graph: AxisGraph,
    products: Iterable[Product],
    batches: Batches,
    *,
    provider: str = "cpu",
    budget: float = 2**30,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> dict[ir.Node, Seen]:
    """Moments of both factors of each product, per head, by its node.

    Parameters
    ----------
    axis_graph
        Of the model; not mutated.
    batches
        Feeds of the model's inputs.
    budget
        Bytes of float64 matrices that one pass may take; more products take more passes.
    """
    passes = divide(products, _bytes, budget)
    found: dict[ir.Node, Seen] = {}
    for number, part in enumerate(passes):
        found |= _one_pass(axis_graph, part, batches, provider, seed)
        if progress is not None:
            progress(number + 1, len(passes))
    return found


def _bytes(product: Product) -> float:
    return sum(16.0 * matrices for matrices, _ in product.places) * product.dims**2


def _one_pass(
    axis_graph: AxisGraph, products: Sequence[Product], batches: Batches, provider: str, seed: int
) -> dict[ir.Node, Seen]:
    rng = np.random.default_rng(seed)
    model = axis_graph.model.clone()
    graph = model.graph
    known = {str(v.name): v for v in graph.inputs} | {str(o.name): o for n in graph for o in n.outputs}
    graph.outputs.clear()
    probes: list[list[ProductProbe]] = []
    names: list[str] = []
    for n, product in enumerate(products):
        pair = [ProductProbe(graph, product, slot, f"probe{n}/{slot}") for slot in (0, 1)]
        for probe, axis in zip(pair, product.axes, strict=True):
            names += probe.moments(probe.rows(known[str(axis.value.name)], product.dims))
        probes.append(pair)
    model.ir_version = max(model.ir_version, 8)
    session = open_session(model, provider)
    sums: dict[ir.Node, Seen] = {}
    for feed, size in zip(batches, batches.sizes, strict=True):
        drawn = [draw(rng, product, batches.samples, size) for product in products]
        more = {
            name: array
            for pair, places in zip(probes, drawn, strict=True)
            for probe, mine in zip(pair, places, strict=True)
            for name, array in probe.feed(mine).items()
        }
        got = run(session, {**feed, **more}, names)
        for pair, places in zip(probes, drawn, strict=True):
            left, right = (probe.read(got, len(mine)) for probe, mine in zip(pair, places, strict=True))
            node = pair[0].product.node
            sums[node] = (sums[node][0] + left, sums[node][1] + right) if node in sums else (left, right)
    for product in products:
        if not all(np.isfinite(moments.gram).all() for moments in sums[product.node]):
            raise DataError(
                f"the factors of {product.label} are not finite on the calibration samples",
                "Leave out samples with NaN or infinities, and check the preprocessing.",
            )
    return sums


def sides(product: Product, seen: Seen) -> tuple[tuple[Matrix, Matrix], tuple[Matrix, Matrix]]:
    """Of the mixed factor and of the other: the second moment that counts, and the one that a refit sees.

    The mixed factor's layer has a bias, which makes up for its mean; all keys may be shifted alike where a softmax
    follows.
    """
    found = []
    for slot, moments in enumerate(seen):
        second = moments.gram / max(moments.count, 1.0)
        second = (second + second.transpose(0, 2, 1)) / 2
        around = moments.covariance
        counts = around if product.around[slot] else second
        found.append((counts, around if slot == product.mixed else counts))
    return (found[0], found[1]) if product.mixed == 0 else (found[1], found[0])
