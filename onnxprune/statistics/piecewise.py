"""A model run piece by piece over fixed samples.

Between two pieces the tensors that later pieces need are held, so that a layer can be changed before anything
behind it runs, and the whole costs one pass. Where they would take more memory than allowed, the next piece starts
from the inputs again, until what it leaves is small enough (deeper layers mostly are).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.calibrate.sessions import open_session, run
from onnxprune.model.nested import bodies_of, every_node, read_by
from onnxprune.model.opset import raise_opset
from onnxprune.model.taps import Tap, View, add_taps, decides, nodes_around, owners, sources
from onnxprune.statistics.probes import LEAST_OPSET

log = logging.getLogger(__name__)

Array = np.ndarray[Any, Any]
Feed = Mapping[str, Array]
Extend = Callable[[ir.Graph, Mapping[str, ir.Value]], None]
"""Adds nodes to the graph of a piece, or other weights, given its values and taps by name."""


class Piecewise:
    """Runs a model over batches up to any of its values, and goes on from there.

    Parameters
    ----------
    model
        Nodes that have not run may be changed between two pieces.
    batches
        Feeds of the graph's inputs.
    provider
        onnxruntime's.
    budget
        Bytes that may be held between two pieces.
    last
        Values that will be wanted in the end, so that they are held even if no node needs them any more.
    lean, threads
        As in `onnxprune.calibrate.sessions.open_session`.
    """

    def __init__(
        self,
        model: ir.Model,
        batches: Sequence[Feed],
        provider: str = "cpu",
        budget: float = 2**31,
        last: Sequence[ir.Value] = (),
        *,
        lean: bool = False,
        threads: int | None = None,
    ) -> None:
        self.model, self.batches, self.provider, self.budget = model, batches, provider, budget
        self._lean, self._threads = lean, threads
        self._last = tuple(last)
        self._done: set[ir.Node] = set()
        self._held: list[dict[str, Array]] | None = None
        self._owners = owners(model.graph)

    def fork(self) -> Piecewise:
        """Another one at the same place; what is held is shared."""
        other = Piecewise(
            self.model,
            self.batches,
            self.provider,
            self.budget,
            self._last,
            lean=self._lean,
            threads=self._threads,
        )
        other._done, other._held = set(self._done), self._held
        return other

    @property
    def done(self) -> frozenset[ir.Node]:
        """Nodes that do not have to run again."""
        return frozenset(self._done)

    def ahead(self, views: Iterable[View]) -> set[ir.Node]:
        """Nodes that have to run before these values are there, those in bodies included.

        Of what is in a body only what the value depends on counts, in this run of the body or in one before.
        """
        found: set[ir.Node] = set()
        made_of = sources(self.model.graph) if self._owners else {}
        queue = [view.value if isinstance(view, Tap) else view for view in views]
        queue += [value for view in views if isinstance(view, Tap) for value in self._deciding(view.body)]
        while queue:
            value = queue.pop()
            node = value.producer()
            if node is None:
                queue += made_of.pop(value, [])  # each once
                continue
            if node in found or node.graph is None or self.home(node) in self._done:
                continue
            found.add(node)
            for body in bodies_of(node):
                found.update(every_node(body))
            queue += read_by(node)
        return found

    def _needed(self, views: Iterable[View]) -> set[ir.Node]:
        """Nodes of the main graph that have to run before these values are there."""
        found: set[ir.Node] = set()
        queue = [self._maker(view) for view in views]
        while queue:
            node = queue.pop()
            if node is None or node in self._done or node in found or node.graph is not self.model.graph:
                continue
            found.add(node)
            queue += [value.producer() for value in reads(node)]
        return found

    def _maker(self, view: View) -> ir.Node | None:
        return self.home(self._owners[view.body]) if isinstance(view, Tap) else view.producer()

    def _deciding(self, body: ir.Graph) -> list[ir.Value]:
        """Values that say whether a body runs, at all levels."""
        return [value for node in nodes_around(body, self._owners) for value in decides(node)]

    def home(self, node: ir.Node) -> ir.Node:
        """The node of the main graph that a node of a body is inside of; of the main graph: itself."""
        around = nodes_around(node.graph, self._owners) if isinstance(node.graph, ir.Graph) else []
        return around[-1] if around else node

    def has_run(self, node: ir.Node) -> bool:
        """Whether changing a node comes too late."""
        return self.home(node) in self._done

    def behind(self, nodes: Collection[ir.Node], first: Collection[ir.Node]) -> set[ir.Node]:
        """Those of the nodes that are among the first or depend on them."""
        found: set[ir.Node] = set()
        for node in self.model.graph if first else ():
            if node in nodes and (node in first or any(v.producer() in found for v in reads(node))):
                found.add(node)
        return found

    def advance(
        self,
        wanted: Sequence[View],
        extend: Extend | None = None,
        more: Callable[[int], Feed] = lambda _: {},
        again: Collection[ir.Node] = (),
    ) -> Iterator[Feed]:
        """Run up to `wanted` on every batch.

        Parameters
        ----------
        wanted
            Values of the model. Nodes with a body that is looked into will run again, and `extend` has to say what
            is to be shown of it.
        extend
            Adds nodes, inputs and outputs to the piece, or gives its initializers other values.
        more
            What the inputs that `extend` added are for a batch, by its number.
        again
            Nodes that may be changed when they have run: they, and what depends on them, will run again.

        Yields
        ------
        dict
            By name: the outputs that `extend` added; where there are none the values that were wanted.
        """
        needed = self._needed(wanted)
        taps = [view for view in wanted if isinstance(view, Tap)]
        values = [view for view in wanted if not isinstance(view, Tap)]
        later = {self.home(node) for node in again} | {self.home(self._owners[tap.body]) for tap in taps}
        done = self._done | (needed - self.behind(needed, later))
        piece, outputs, live = self._piece(values, needed, done)
        piece = raise_opset(ir.Model(piece, ir_version=self.model.ir_version), LEAST_OPSET).graph
        known = add_taps(piece, taps)  # may make loops, and what they put out, once more
        known |= {str(v.name): v for v in (*piece.inputs, *piece.initializers.values())}
        known |= {str(out.name): out for node in piece for out in node.outputs}
        if extend is not None:
            extend(piece, known)
        shown = [str(v.name) for v in piece.outputs if str(v.name) not in outputs]
        names = shown or [str(v.name) for v in values]
        given = {v.name: v.dtype for v in piece.inputs}
        session = open_session(
            ir.Model(piece, ir_version=max(self.model.ir_version, 8)),
            self.provider,
            threads=self._threads,
            lean=self._lean,
        )
        kept: list[dict[str, Array]] = []
        size, holding = 0, True
        for number, feed in enumerate(self.batches):
            held = feed if self._held is None else self._held[number]
            every = {**held, **more(number)}
            fed = {n: _typed(a, given[n]) for n, a in every.items() if n in given}
            found = run(session, fed, [*outputs, *shown])
            if self._lean:
                found = {name: _own(array) for name, array in found.items()}
            found |= {name: held[name] for name in names if name in held}
            if holding:
                kept.append({n: found[n] if n in found else held[n] for n in live})
                size += sum(array.nbytes for array in kept[-1].values())
                if size > self.budget:
                    log.info("the tensors between two layers take more than %d bytes: not held", self.budget)
                    holding, kept = False, []
            yield {name: found[name] for name in names}
        self._held, self._done = (kept, done) if holding else (None, set())

    def _piece(
        self, wanted: Sequence[ir.Value], needed: set[ir.Node], done: set[ir.Node]
    ) -> tuple[ir.Graph, list[str], list[str]]:
        """The nodes that are needed as a graph, the names of its outputs, and all names to be held behind it."""
        graph = self.model.graph
        nodes = [node for node in graph if node in needed]
        made = {value for node in nodes for value in node.outputs}
        read = dict.fromkeys(value for node in nodes for value in reads(node))
        inputs = [v for v in dict.fromkeys((*read, *wanted)) if v not in made and v.const_value is None]
        ahead = {value for node in graph if node not in done for value in reads(node)} | set(self._last)
        outputs = [v for v in made if (v in ahead and v.producer() in done) or v in wanted]
        outputs.sort(key=lambda value: str(value.name))
        live = [
            str(value.name)
            for value in (*graph.inputs, *(out for node in graph if node in done for out in node.outputs))
            if value in ahead and value.const_value is None
        ]
        initializers = [v for v in dict.fromkeys((*read, *wanted)) if v.const_value is not None]
        view = ir.GraphView(
            inputs, outputs, nodes=nodes, initializers=initializers, opset_imports=graph.opset_imports
        )
        piece = view.clone()
        self._declare(piece)
        return piece, [str(v.name) for v in outputs], live

    def _declare(self, piece: ir.Graph) -> None:
        """Give the piece's inputs the types of what is held; their shapes are whatever comes."""
        first = self.batches[0] if self._held is None else self._held[0]
        for value in piece.inputs:
            dtype = value.dtype or ir.DataType.from_numpy(first[str(value.name)].dtype)
            value.type, value.shape = ir.TensorType(dtype), None
        for value in piece.outputs:
            value.shape = None


def _typed(array: Array, dtype: ir.DataType | None) -> Array:
    """What a piece made that ran in float32, for a piece that need not."""
    if array.dtype == np.float32 and dtype in (ir.DataType.FLOAT16, ir.DataType.DOUBLE):
        return array.astype(dtype.numpy())
    return array


def _own(array: Any) -> Any:
    """A copy: what onnxruntime gives lies in the session's arena, and keeps all of that alive."""
    return np.array(array) if isinstance(array, np.ndarray) else array


def reads(node: ir.Node) -> list[ir.Value]:
    """Inputs of a node, and what its bodies see from outside."""
    return [value for value in read_by(node) if value.graph is node.graph]
