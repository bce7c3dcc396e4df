"""Gradients on calibration samples: of masks over units, per sample, and of the weights that make units, per batch.

Forward and backward are one graph (`onnxprune.gradients`), which onnxruntime runs batch by batch. Rows of samples
that ran together are compared once with rows of samples that ran alone. Where they differ (a graph in which samples
lie somewhere in the middle of an axis, or are normalised together), all run alone.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.calibrate.dataset import Dataset, Feed
from onnxprune.calibrate.sessions import open_session, run
from onnxprune.criteria.gather import scored_weights, unit_rows
from onnxprune.criteria.unit_gradients import MaskGradients, WeightGradients
from onnxprune.errors import DataError
from onnxprune.gradients.backward import build_backward
from onnxprune.gradients.feeds import as_inputs
from onnxprune.gradients.masks import Masked, unit_masks
from onnxprune.gradients.objective import Draws, Objective, choose_objective
from onnxprune.gradients.prepare import prepare
from onnxprune.gradients.wrt import Target, gradient_name
from onnxprune.graph.axes import Index
from onnxprune.graph.build import AxisGraph
from onnxprune.graph.groups import Group

log = logging.getLogger(__name__)

Array = np.ndarray[Any, Any]
Progress = Callable[[int, int], None]

CHECKED = 2
"""Samples that run together and alone."""

_CLOSE = 1e-3
"""Share of the largest gradient by which rows of the same sample may differ."""

_TINY = 1e-30

LEAST_IR = 8
"""The least IR version of a graph with gradients."""


@dataclass(frozen=True, eq=False)
class Differentiation:
    """A loss on samples, and how it is run.

    Parameters
    ----------
    axis_graph
        Of the model.
    data
        The samples.
    loss
        One of `onnxprune.gradients.objective.LOSSES`.
    size
        Samples per batch.
    at_once
        At most this many run at once; a batch is then the sum over several runs.
    provider
        onnxruntime's.
    seed
        For labels and signs that are drawn.
    progress
        Called with (samples done, samples in all).
    """

    axis_graph: AxisGraph
    data: Dataset
    loss: str = "auto"
    size: int = 32
    at_once: int = 32
    provider: str = "cpu"
    seed: int = 0
    progress: Progress = lambda _done, _total: None

    def objective(self) -> Objective:
        """The loss that goes with model and data; see `choose_objective`."""
        model, shapes = self.axis_graph.model, self.axis_graph.shapes
        return choose_objective(model, shapes, self.loss, self.data.labels, next(self.data.batches(1), None))

    def masks(self, groups: Iterable[Group]) -> dict[str, MaskGradients]:
        """Gradients of masks over units, by group id; groups that nothing sums over have none.

        Raises
        ------
        GradientError
            An operator between a mask and the loss has no gradient.
        DataError
            Gradients are not finite.
        """
        masked, running = self.masked(groups)
        if running is None:
            return {}
        size = self.together if masked.by_sample else self._alone
        rows: dict[str, list[Array]] = {name: [] for name, masks in masked.masks.items() if masks}
        runs: list[int] = []
        for found in running.over(self.data, size, self.progress):
            parts = _by_group(masked, found)
            runs.append(len(next(iter(parts.values()))))
            for name, part in parts.items():
                rows[name].append(part)
        batch = np.repeat(np.arange(len(runs)) // max(1, self.size // size), runs)
        return {name: _mask_gradients(name, np.concatenate(parts), batch) for name, parts in rows.items()}

    @property
    def together(self) -> int:
        """Samples of a run: a divisor of those of a batch."""
        if not self.data.batchable:
            return self._alone
        return max(n for n in range(1, self.size + 1) if self.size % n == 0 and n <= max(1, self.at_once))

    @property
    def _alone(self) -> int:
        """The fewest samples of a run."""
        return 1 if self.data.batchable else self.data.rows

    def masked(self, groups: Iterable[Group]) -> tuple[Masked, Running | None]:
        """Masks whose rows are samples where these can be told apart, and their graph; None without any mask."""
        groups = list(groups)
        several = self.together > 1
        masked = unit_masks(self.axis_graph, groups, by_sample=several)
        if not masked.targets:
            return masked, None
        running = self.running(masked.model, masked.targets)
        if several and not self._separable(masked, running):
            log.info("samples that run together do not have gradients of their own: each runs alone")
            masked = unit_masks(self.axis_graph, groups, by_sample=False)
            running = self.running(masked.model, masked.targets)
        return masked, running

    def weights(self, groups: Iterable[Group]) -> dict[str, list[WeightGradients]]:
        """Gradients of the weights that make units, by group id.

        Raises
        ------
        GradientError, DataError
            As of `masks`.
        """
        graph = self.axis_graph
        members = [(group, use) for group in groups for use in scored_weights(graph, group)]
        names = list(dict.fromkeys(str(use.axis.value.name) for _, use in members))
        if not names:
            return {}
        values: list[Array] = []
        totals: list[Array] = []
        norms: list[float] = []
        saliency: list[list[Array]] = [[] for _ in members]
        change: list[list[Array]] = [[] for _ in members]
        for group, use in members:
            data = use.axis.value.const_value
            array = np.asarray(data.numpy()).astype(np.float64)  # type: ignore[union-attr]
            values.append(unit_rows(array, use, graph.blocked.get(use.axis), group.units))
            norms.append(float(np.linalg.norm(array)))
            totals.append(np.zeros(values[-1].shape))
        for found in self.by_batch(names):
            for n, (group, use) in enumerate(members):
                array = found[str(use.axis.value.name)]
                rows = unit_rows(array, use, graph.blocked.get(use.axis), group.units)
                totals[n] += rows
                products = values[n] * rows
                change[n].append(products.sum(axis=1))
                saliency[n].append(np.abs(products).sum(axis=1))
        collected: dict[str, list[WeightGradients]] = {}
        for n, (group, _) in enumerate(members):
            one = WeightGradients(
                values[n], totals[n], np.stack(saliency[n], axis=1), norms[n], np.stack(change[n], axis=1)
            )
            collected.setdefault(group.id, []).append(one)
        return collected

    def by_batch(self, names: Sequence[str]) -> Iterator[dict[str, Array]]:
        """Gradients of weights, by name, float64, summed over the runs of each batch.

        Raises
        ------
        GradientError, DataError
            As of `masks`.
        """
        running = self.running(self.axis_graph.model, names)
        runs, sums = max(1, self.size // self.together), dict[str, Array]()
        for number, found in enumerate(running.over(self.data, self.together, self.progress)):
            if number % runs == 0 and sums:
                yield sums
                sums = {}
            for name in names:
                array = found[gradient_name(name)].astype(np.float64)
                _check_finite(array, name)
                sums[name] = sums[name] + array if name in sums else array
        if sums:
            yield sums

    def running(
        self,
        model: ir.Model,
        targets: Sequence[Target],
        *,
        fed: Sequence[str] = (),
        objective: Objective | None = None,
    ) -> Running:
        """Build and open the graph of gradients with respect to some targets.

        Parameters
        ----------
        model
            The axis graph's, or a copy with masks.
        targets
            Names or masks.
        fed
            Initializers that become inputs, so that every run may have other weights (`Running.at`).
        objective
            The loss; None: that of `objective()`.
        """
        graph, objective = self.axis_graph, objective or self.objective()
        built = build_backward(
            model, objective.loss, targets, rules=graph.rules, bindings=graph.shapes.bindings
        )
        as_inputs(built, fed)
        names = [gradient_name(target) for target in targets]
        return Running.open(built, graph.model, objective, names, self.provider, self.seed)

    def _separable(self, masked: Masked, running: Running) -> bool:
        """Whether the first samples have the same gradients together and alone, as far as they can run alone."""
        if any(mask.sample_axis is None for mask in masked.targets):
            return False
        if not self.data.batchable or len(self.data) == 1:
            return True
        first = self.data.take(range(min(CHECKED, len(self.data))))
        together, alone = (
            [_by_group(masked, found) for found in running.over(first, size)] for size in (CHECKED, 1)
        )
        if any(len(part) != len(first) // len(together) for parts in together for part in parts.values()):
            return False
        for name in together[0]:
            one, other = (np.concatenate([parts[name] for parts in side]) for side in (together, alone))
            if not np.isfinite(one).all():
                return True  # nobody's gradients are any good
            limit = _CLOSE * max(float(np.abs(one).max()), _TINY)
            if one.shape != other.shape or not np.allclose(one, other, rtol=0, atol=limit):
                return False
        return True


def bytes_at_once(axis_graph: AxisGraph) -> float:
    """What activations and their gradients take together, at the batch size that the model was analysed with."""
    dims = axis_graph.shapes.dims
    made = (dims.get(output, ()) for node in axis_graph.model.graph for output in node.outputs)
    return 2.0 * np.dtype(np.float32).itemsize * sum(math.prod(d or 1 for d in extents) for extents in made)


@dataclass(frozen=True, eq=False)
class Running:
    """A graph of gradients that is open.

    Attributes
    ----------
    session
        Of the graph.
    dense
        Of the model alone, where the loss follows from its outputs.
    objective
        Makes what the loss is fed with.
    names
        Outputs that are wanted.
    seed
        Of what is drawn; the same samples get the same labels and signs, however many run at once.
    """

    session: Any
    dense: Any
    objective: Objective
    names: Sequence[str]
    seed: int

    @classmethod
    def open(
        cls,
        built: ir.Model,
        model: ir.Model,
        objective: Objective,
        names: Sequence[str],
        provider: str,
        seed: int,
    ) -> Running:
        """Open what `build_backward` made of a model."""
        built.ir_version = max(built.ir_version, LEAST_IR)
        dense = open_session(prepare(model), provider) if objective.needs_outputs else None
        return cls(open_session(built, provider, lean=True), dense, objective, names, seed)

    def over(self, data: Dataset, size: int, progress: Progress | None = None) -> Iterator[Feed]:
        """Gradients of every batch."""
        draws = Draws(self.seed)
        done = 0
        for feed, labels in data.labelled_batches(size):
            yield self.at(feed, labels, draws)
            done += data.size_of(feed)
            if progress is not None:
                progress(done, len(data))

    def at(self, feed: Feed, labels: Array | None, draws: Draws, fed: Feed | None = None) -> Feed:
        """Gradients of one batch.

        Parameters
        ----------
        draws
            Random numbers for labels and signs.
        fed
            What else the graph takes: masks, or weights. The loss follows from the outputs of the model without.
        """
        outputs = run(self.dense, as_taken(feed, self.dense)) if self.dense is not None else {}
        given = {**feed, **self.objective.feed(outputs, labels, draws), **(fed or {})}
        return run(self.session, as_taken(given, self.session), self.names)


def _by_group(masked: Masked, found: Mapping[str, Array]) -> dict[str, Array]:
    """(rows, units) by group: the sum over a group's masks; one row where one of them has only one."""
    sums: dict[str, Array] = {}
    for name, masks in masked.masks.items():
        parts = [found[gradient_name(mask)].astype(np.float64) for mask in masks]
        if len({len(part) for part in parts}) > 1:
            parts = [part.sum(axis=0, keepdims=True) for part in parts]
        if parts:
            sums[name] = np.sum(parts, axis=0)
    return sums


def _mask_gradients(name: str, rows: Array, batch: Index) -> MaskGradients:
    _check_finite(rows, f"a mask over the units of {name}")
    sums = np.zeros((int(batch.max()) + 1, rows.shape[1]))
    np.add.at(sums, batch, rows)
    return MaskGradients(rows.T, sums.T)


def _check_finite(array: Array, what: str) -> None:
    if not np.isfinite(array).all():
        raise DataError(
            f"the gradient of {what} is not finite on the calibration samples",
            "Leave out samples with NaN or infinities, and check the preprocessing; or take a criterion without "
            "gradients.",
        )


def as_taken(feed: Mapping[str, Array], session: Any) -> dict[str, Array]:
    """Only what the graph takes; floats of other types as float32, in which gradients are computed."""
    types = {each.name: each.type for each in session.get_inputs()}
    return {
        name: array.astype(np.float32) if types[name] == "tensor(float)" else array
        for name, array in feed.items()
        if name in types
    }
