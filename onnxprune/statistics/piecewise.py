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
from onnxprune.model.nested import read_by
from onnxprune.model.opset import raise_opset

log = logging.getLogger(__name__)

_LEAST_OPSET = 9
"""What is added to pieces needs Where."""

Array = np.ndarray[Any, Any]
Feed = Mapping[str, Array]
Extend = Callable[[ir.Graph, Mapping[str, ir.Value]], None]
"""Adds nodes to the graph of a piece, or other weights, given its values by name."""


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

    def ahead(self, values: Iterable[ir.Value]) -> set[ir.Node]:
        """Nodes that have to run before these values are there."""
        found: set[ir.Node] = set()
        queue = [value.producer() for value in values]
        while queue:
            node = queue.pop()
            if node is None or node in self._done or node in found or node.graph is not self.model.graph:
                continue
            found.add(node)
            queue += [value.producer() for value in reads(node)]
        return found

    def has_run(self, node: ir.Node) -> bool:
        """Whether changing a node comes too late."""
        return node in self._done

    def behind(self, nodes: Collection[ir.Node], first: Collection[ir.Node]) -> set[ir.Node]:
        """Those of the nodes that are among the first or depend on them."""
        found: set[ir.Node] = set()
        for node in self.model.graph if first else ():
            if node in nodes and (node in first or any(v.producer() in found for v in reads(node))):
                found.add(node)
        return found

    def advance(
        self,
        wanted: Sequence[ir.Value],
        extend: Extend | None = None,
        more: Callable[[int], Feed] = lambda _: {},
        again: Collection[ir.Node] = (),
    ) -> Iterator[Feed]:
        """Run up to `wanted` on every batch.

        Parameters
        ----------
        wanted
            Values of the model.
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
        needed = self.ahead(wanted)
        done = self._done | (needed - self.behind(needed, again))
        piece, outputs, live = self._piece(wanted, needed, done)
        piece = raise_opset(ir.Model(piece, ir_version=self.model.ir_version), _LEAST_OPSET).graph
        known = {str(v.name): v for v in (*piece.inputs, *piece.initializers.values())}
        known |= {str(out.name): out for node in piece for out in node.outputs}
        if extend is not None:
            extend(piece, known)
        shown = [str(v.name) for v in piece.outputs if str(v.name) not in outputs]
        names = shown or [str(v.name) for v in wanted]
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
