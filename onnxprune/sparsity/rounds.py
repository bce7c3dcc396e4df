"""Round after round: how far each goes, which weights it takes, what makes up for them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir

from onnxprune.allocate.schedule import levels
from onnxprune.analysis import Analysis
from onnxprune.choosing.evidence import Evidence
from onnxprune.model import edit
from onnxprune.patterns import Head, Pattern
from onnxprune.patterns.pattern import Bools
from onnxprune.sparsity.allocation import levels_by_loss
from onnxprune.sparsity.choices import CONST, Settled, Sparsity
from onnxprune.sparsity.layers import WeightLayer, same_layers
from onnxprune.sparsity.movement import Moved, learn_movement
from onnxprune.sparsity.scoring import Scorer
from onnxprune.sparsity.select import select
from onnxprune.sparsity.sequence import LayerSolution, Solver, Work
from onnxprune.sparsity.solving import Order
from onnxprune.sparsity.structure import resolve
from onnxprune.statistics.learning import LearnedMasks
from onnxprune.surgery.clone import clone_model

Zeros = Mapping[str, Bools]


@dataclass(frozen=True)
class Outcome:
    """A model that became sparse.

    Attributes
    ----------
    model
        The copy.
    zeros
        By the weight's name, flags (outputs, columns).
    solutions
        What the solver did; empty without one.
    levels
        What each round was asked for.
    learned
        Masks that were learned in the last round, or importance; None where none were.
    heads
        By the name of a group of attention heads, which of them are zero, and how many there are.
    """

    model: ir.Model
    zeros: Zeros
    solutions: Mapping[str, LayerSolution]
    levels: tuple[float, ...]
    learned: LearnedMasks | Moved | None = None
    heads: Mapping[str, tuple[tuple[int, ...], int]] = field(default_factory=dict)

    @property
    def statistics(self) -> dict[str, float]:
        """What a criterion that learns found, for the report."""
        return {} if self.learned is None else self.learned.statistics

    def notes(self, pattern: Pattern) -> list[str]:
        """What people should know about how zeros were chosen."""
        lines = []
        if self.learned is not None:
            lines.append(self.learned.sentence("heads" if isinstance(pattern, Head) else "weights"))
        for name, (which, units) in self.heads.items():
            listed = ", ".join(map(str, which)) or "none"
            lines.append(f"heads of {name} that are zero: {listed} of 0 to {units - 1}")
        return lines


def zeros_of(layers: Sequence[WeightLayer]) -> dict[str, Bools]:
    """Weights that are zero now."""
    return {layer.name: layer.matrix() == 0 for layer in layers}


def make_sparse(
    analysis: Analysis,
    layers: Sequence[WeightLayer],
    sparsity: Sparsity,
    settled: Settled,
    evidence: Evidence | None,
) -> Outcome:
    """Make a copy of the model sparse.

    Parameters
    ----------
    layers
        Of the original, all divided by the pattern.
    evidence
        What the samples say, where they are looked at.
    """
    graph, pattern = analysis.axis_graph, sparsity.shape
    sparse = clone_model(graph.model).model
    mine = same_layers(sparse, layers)
    locks = sparsity.lock or sparsity.criterion == CONST
    zeros: dict[str, Bools] = (
        zeros_of(mine) if locks else {layer.name: np.zeros(layer.grid.shape, bool) for layer in mine}
    )
    solutions: dict[str, LayerSolution] = {}
    if sparsity.criterion == CONST:
        return Outcome(sparse, zeros, solutions, ())
    criterion = settled.criterion
    scorer = None if criterion is None else Scorer(layers, pattern, criterion, evidence)
    steps = levels(sparsity.schedule, sparsity.rounds, 0.0, sparsity.level)
    moved = _moved(analysis, layers, sparsity, settled, evidence, zeros) if sparsity.staged else None
    for level in steps if moved is None else steps[-1:]:
        chosen = None if moved is None else dict(moved.zeros)
        if scorer is not None and moved is None:
            with weights_of(graph.model, sparse):
                scored = scorer.score(zeros, level)
            chosen = select(
                scored,
                pattern,
                level,
                scope=settled.scope,
                reduce=sparsity.reduce,
                min_ratio=min(sparsity.min_ratio, level),
                max_ratio=sparsity.max_ratio,
            )
        if settled.solver == "mask":
            zeros = dict(chosen or zeros)
            for layer in mine:
                layer.set(np.where(zeros[layer.name], 0.0, layer.matrix()))
            continue
        if evidence is None:
            raise ValueError("a solver looks at samples")
        solver = Solver(
            settled.solver,
            pattern,
            evidence.batches,
            evidence.provider,
            evidence.budget,
            evidence.seed,
            evidence.tick("solving"),
        )
        shares = dict.fromkeys(zeros, level)
        if chosen is None and settled.scope == "global" and level < pattern.most:
            shares = levels_by_loss(
                layers,
                pattern,
                level,
                evidence,
                gone=zeros,
                min_ratio=min(sparsity.min_ratio, level),
                max_ratio=sparsity.max_ratio,
                progress=evidence.tick("spreading zeros"),
            )
        works = [
            Work(
                original,
                layer,
                Order(shares[layer.name], None if chosen is None else chosen[layer.name], zeros[layer.name]),
            )
            for original, layer in zip(layers, mine, strict=True)
        ]
        found = solver.solve(graph, sparse, works)
        zeros = {name: flags for name, (flags, _) in found.items()}
        solutions = {name: solution for name, (_, solution) in found.items()}
        mine = same_layers(sparse, layers)
    return Outcome(sparse, zeros, solutions, steps, moved or (None if scorer is None else scorer.learned))


def _moved(
    analysis: Analysis,
    layers: Sequence[WeightLayer],
    sparsity: Sparsity,
    settled: Settled,
    evidence: Evidence | None,
    gone: Zeros,
) -> Moved:
    """What movement leads to, resolved to whole units where that is asked for."""
    if evidence is None:
        raise ValueError("importance accumulates on samples")
    moved = learn_movement(layers, sparsity.shape, evidence.differentiation, sparsity, settled.scope, gone)
    if not sparsity.structured:
        return moved
    zeros, units = resolve(analysis, layers, moved.zeros)
    names = {name: analysis.groups[name].name or name for name in units}
    counts = {names[name]: (int(flags.sum()), len(flags)) for name, flags in units.items()}
    return replace(moved, zeros=zeros, structured=counts)


@contextmanager
def weights_of(model: ir.Model, other: ir.Model) -> Iterator[None]:
    """Let a model have the weights of a changed copy, for as long as the context lasts."""
    theirs = other.graph.initializers
    values = [value for name, value in model.graph.initializers.items() if name in theirs]
    before = [value.const_value for value in values]
    try:
        for value in values:
            tensor = theirs[str(value.name)].const_value
            if tensor is not None and tensor is not value.const_value:
                edit.set_tensor(value, tensor)
        yield
    finally:
        for value, old in zip(values, before, strict=True):
            if old is not None and old is not value.const_value:
                edit.set_tensor(value, old)
