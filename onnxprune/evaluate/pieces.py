"""Running a model for its outputs: as a whole, or, where its weights are many, piece by piece.

onnxruntime packs copies of the weights that it multiplies by, and masked, cut or widened weights are arrays of
their own: a proof on whole models takes several times their size. Of a huge model only the nodes between two
places are in a session at a time, with their weights and the tensors that go in; the results are those of the
whole model, because every node runs once, on what the nodes before it made.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir

from onnxprune.calibrate.dataset import Feed
from onnxprune.calibrate.sessions import check_outputs, open_session, run
from onnxprune.model.normalize import normalize
from onnxprune.statistics.piecewise import Piecewise, reads

Array = np.ndarray[Any, Any]

WHOLE = 256 << 20
"""Bytes of weights, in float32, up to which a model is run as a whole."""

PIECE = 64 << 20
"""Bytes of weights in one piece, unless a single node has more."""


class Runner(Protocol):
    """A model that can be run."""

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs that are tensors."""
        ...

    def run(self, feed: Mapping[str, Array], names: Sequence[str] | None = None) -> Feed:
        """All outputs that are tensors, or those of these names."""
        ...

    def results(self, feeds: Sequence[Mapping[str, Array]]) -> Iterator[list[tuple[int, Feed]]]:
        """Outputs bit by bit, each with the number of its feed; models with the same `ends` give the same names."""
        ...


def open_runner(
    model: ir.Model,
    provider: str = "cpu",
    *,
    threads: int | None = None,
    ends: Sequence[str] | None = None,
    saturating: bool = True,
) -> Runner:
    """Open a model for running; a huge one opens no session yet.

    Parameters
    ----------
    model
        Not mutated, and not to be changed while the runner lives.
    provider, threads
        As in `open_session`.
    ends
        Where pieces end (see `piece_ends`), so that two models have the same ones; by default those of the model.
        Empty: run it as a whole.
    saturating
        As in `open_session`, for models that are run as a whole.

    Raises
    ------
    UsageError, ModelError
        As `open_session`, for a huge model when it runs.
    """
    if model.functions and is_huge(model):
        model = normalize(model)
    ends = piece_ends(model) if ends is None else ends
    return InPieces(model, provider, ends, threads) if ends else Whole(model, provider, threads, saturating)


def is_huge(model: ir.Model) -> bool:
    """Whether a model has more than `WHOLE` bytes of weights in float32."""
    return sum(map(_bytes, model.graph.initializers.values())) > WHOLE


def piece_ends(model: ir.Model) -> tuple[str, ...]:
    """Names of values (the first output of a node) after which a huge model can be divided; empty for others.

    A piece has at most `PIECE` bytes of weights in float32, where its nodes have. Between two pieces there are only
    tensors: sequences and optional values stay inside one.
    """
    if not is_huge(model):
        return ()
    last: dict[ir.Value, int] = {}
    order = list(model.graph)
    for number, node in enumerate(order):
        last.update(dict.fromkeys(reads(node), number))
    ends: list[str] = []
    inside: set[ir.Value] = set()
    others: set[ir.Value] = set()  # alive, and no tensors
    for number, node in enumerate(order):
        added = {value for value in reads(node) if value.const_value is not None} - inside
        if added and inside and not others and sum(map(_bytes, inside | added)) > PIECE:
            end = order[number - 1].outputs
            if end and end[0].name:
                ends.append(end[0].name)
                inside, added = set(), added | {v for v in reads(node) if v.const_value is not None}
        inside |= added
        others = {value for value in others if last.get(value, -1) > number}
        others |= {
            value
            for value in node.outputs
            if not isinstance(value.type, ir.TensorType | None) and last.get(value, -1) > number
        }
    return tuple(ends)


def _bytes(value: ir.Value) -> int:
    tensor = value.const_value
    if tensor is None:
        return 0
    return tensor.size * 4 if tensor.dtype.is_floating_point() else tensor.nbytes


class Whole:
    """A model in one session."""

    def __init__(
        self, model: ir.Model, provider: str, threads: int | None = None, saturating: bool = True
    ) -> None:
        self._session = open_session(model, provider, threads=threads, saturating=saturating)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs that are tensors."""
        return tuple(o.name for o in self._session.get_outputs() if o.type.startswith("tensor("))

    def run(self, feed: Mapping[str, Array], names: Sequence[str] | None = None) -> Feed:
        """All outputs that are tensors, or those of these names."""
        return run(self._session, feed, names)

    def results(self, feeds: Sequence[Mapping[str, Array]]) -> Iterator[list[tuple[int, Feed]]]:
        """All outputs, feed by feed."""
        for number, feed in enumerate(feeds):
            yield [(number, self.run(feed))]


class InPieces:
    """A model of which one piece at a time is in a session.

    Parameters
    ----------
    model
        Not mutated.
    provider, threads
        As in `open_session`.
    ends
        Where pieces end.
    """

    def __init__(
        self, model: ir.Model, provider: str, ends: Sequence[str], threads: int | None = None
    ) -> None:
        self._model, self._provider, self._threads = model, provider, threads
        self._wanted = _divided(model.graph, frozenset(ends))

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs that are tensors."""
        shown = (v for v in self._model.graph.outputs if isinstance(v.type, ir.TensorType | None))
        return tuple(str(value.name) for value in shown)

    def run(self, feed: Mapping[str, Array], names: Sequence[str] | None = None) -> Feed:
        """All outputs that are tensors, or those of these names."""
        names = self.outputs if names is None else names
        check_outputs(names, self.outputs)
        found: Feed = {}
        for [(_, part)] in self.results([feed]):
            found.update({name: array for name, array in part.items() if name in names})
            if len(found) == len(names):
                break
        return {name: found[name] for name in names}

    def results(self, feeds: Sequence[Mapping[str, Array]]) -> Iterator[list[tuple[int, Feed]]]:
        """Piece after piece, for each feed the outputs that the piece makes; no session is open meanwhile."""
        graph, shown = self._model.graph, set(self.outputs)
        runner = Piecewise(self._model, feeds, self._provider, float("inf"), lean=True, threads=self._threads)
        for wanted in self._wanted:
            made = runner.advance(wanted) if wanted else ({} for _ in feeds)
            yield [
                (number, {name: array for name, array in found.items() if name in shown})
                for number, found in enumerate(made)
            ]
        given = {str(v.name): v.const_value for v in graph.outputs if v.producer() is None}
        if given:  # outputs that no node makes
            yield [
                (n, {name: feed[name] if t is None else np.asarray(t.numpy()) for name, t in given.items()})
                for n, feed in enumerate(feeds)
            ]


def _divided(graph: ir.Graph, ends: frozenset[str]) -> list[list[ir.Value]]:
    """Per piece, what later pieces and callers want of it."""
    pieces: list[list[ir.Value]] = [[]]
    piece_of: dict[ir.Value, int] = {}
    wanted: set[ir.Value] = {value for value in graph.outputs if value.producer() is not None}
    for node in graph:
        number = len(pieces) - 1
        wanted.update(value for value in reads(node) if piece_of.get(value, number) < number)
        piece_of.update(dict.fromkeys(node.outputs, number))
        if node.outputs and node.outputs[0].name in ends:
            pieces.append([])
    for value, number in piece_of.items():
        if value in wanted:
            pieces[number].append(value)
    return pieces
