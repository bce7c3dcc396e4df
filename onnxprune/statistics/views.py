"""Where layers are seen, those in bodies of If, Loop and Scan among them: what each run sees are further rows.

How often a body runs, and whether at all, depends on the samples. So one pass over them counts the rows that each
layer in a body has in every batch; from there on its batches have sizes of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxprune.calibrate.sessions import open_session, run
from onnxprune.graph.build import AxisGraph
from onnxprune.model.taps import Tap, View, add_taps
from onnxprune.statistics.batches import Batches
from onnxprune.statistics.gates import Gates, R
from onnxprune.statistics.norms import LinearMap
from onnxprune.statistics.probes import Drawn, Geometry

NEVER = "no sample takes the way that it is on"
UNKNOWN = "the shape of what it sees inside the body of another node is not known"


@dataclass(frozen=True)
class Sight:
    """A layer's rows in every batch.

    Attributes
    ----------
    place
        Where the rows of one sample are; for a layer in a body, of one row of its matrix or one image.
    sizes
        Per batch: how many of these there are.
    """

    place: Geometry
    sizes: tuple[int, ...]

    def draw(self, rng: np.random.Generator, share: float, batch: int) -> Drawn:
        """Choose about `share` of the positions in a batch; where there are none, that of a row of zeros."""
        return self.place.draw(rng, share, max(self.sizes[batch], 1))

    def shown(self, drawn: Drawn, batch: int) -> int:
        """How many rows are shown at the drawn positions, those of zeros included."""
        return self.place.drawn_rows(drawn, max(self.sizes[batch], 1))

    def rows(self, drawn: Drawn, batch: int) -> int:
        """How many rows a batch gives at the drawn positions."""
        return self.shown(drawn, batch) if self.sizes[batch] else 0


def is_inside(layer: LinearMap) -> bool:
    """Whether a layer is in a body: weights are initializers of the main graph."""
    return layer.node.graph is not layer.weight.graph


def view_of(layer: LinearMap, value: ir.Value) -> View:
    """A value as a layer sees it or makes it: as often as the layer runs."""
    graph = layer.node.graph
    if not is_inside(layer) or not isinstance(graph, ir.Graph):
        return value
    split = isinstance(layer, Gates) and layer.slot == R and value is layer.x and layer.groups > 1
    return Tap(value, graph, (0, 2, 1, 3) if split else ())


def name_of(view: View) -> str:
    """Under which name `onnxprune.statistics.piecewise` gives it to what looks at it."""
    return str(view.name)


def why_unseen(axis_graph: AxisGraph, layer: LinearMap) -> str:
    """Why no session shows what a layer sees; "" where one does."""
    if not is_inside(layer):
        return ""
    why = axis_graph.unshown.get(layer.node, "")
    dims = axis_graph.shapes.dims
    values = (layer.x, layer.y) if layer.convolves else (layer.x,)
    known = all(None not in dims.get(value, (None,)) for value in values)
    return why or ("" if known else UNKNOWN)


def geometry(axis_graph: AxisGraph, consumer: LinearMap, unit: int) -> Geometry:
    """Where a layer's rows are, by the shapes with which the model was analysed; they hold for `unit` samples.

    Of a layer in a body: where those of one row or image are.
    """
    if is_inside(consumer) and not consumer.convolves:
        return Geometry(consumer, (consumer.groups, consumer.columns), (1, consumer.outputs), flat=True)
    dims = axis_graph.shapes.dims
    x, y = (tuple(d or 1 for d in dims[value]) for value in (consumer.x, consumer.y))
    if is_inside(consumer):
        return Geometry(consumer, (1, *x[1:]), (1, *y[1:]), flat=True)
    return Geometry(consumer, x, y, unit)


def sights(
    axis_graph: AxisGraph, layers: Sequence[LinearMap], batches: Batches, provider: str = "cpu"
) -> list[Sight]:
    """How many rows layers have in every batch; one pass over the samples where some are in bodies.

    Parameters
    ----------
    axis_graph
        Of the model; not mutated.
    layers
        Of this model.
    """
    counted = _counted(axis_graph, [layer for layer in layers if is_inside(layer)], batches, provider)
    found = []
    for layer in layers:
        place = geometry(axis_graph, layer, batches.unit)
        sizes = batches.sizes
        if is_inside(layer):
            each = int(np.prod(place.x_dims, dtype=np.int64))
            sizes = tuple(count // each for count in counted[name_of(view_of(layer, layer.x))])
        found.append(Sight(place, sizes))
    return found


def _counted(
    axis_graph: AxisGraph, layers: Sequence[LinearMap], batches: Batches, provider: str
) -> dict[str, list[int]]:
    """Elements that taps have in every batch, by their names."""
    taps = [view for layer in layers if isinstance(view := view_of(layer, layer.x), Tap)]
    if not taps:
        return {}
    model = axis_graph.model.clone()
    graph = model.graph
    graph.outputs.clear()
    names = {}
    for name, value in add_taps(graph, taps).items():
        node = ir.node("Size", [value], name=f"{value.name}/count")
        (out,) = node.outputs
        out.name, out.type, out.shape = f"{value.name}/size", ir.TensorType(ir.DataType.INT64), ir.Shape([])
        graph.append(node)
        graph.outputs.append(out)
        names[str(out.name)] = name
    session = open_session(model, provider)
    found: dict[str, list[int]] = {name: [] for name in names.values()}
    for feed in batches:
        for key, count in run(session, feed, list(names)).items():
            found[names[key]].append(int(count))
    return found
