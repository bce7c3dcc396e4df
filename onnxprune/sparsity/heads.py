"""Whole attention heads become zero: `--pattern head`, Neural Compressor's `mha`.

A head is a unit of a group (`onnxprune.graph.heads`), whose weights lie in the layers that make it (Q, K and V) and
in the one that consumes it (O). Its score is the mean (or sum, or maximum) of a criterion's scores of all these
weights, which is the mean over the four slices where they are equally large. A head that goes is zeroed where it is
consumed, as `onnxprune prune --mode mask` does, and where it is made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxprune.allocate.schedule import levels
from onnxprune.analysis import Analysis
from onnxprune.choosing.evidence import Evidence
from onnxprune.criteria.gather import unit_rows
from onnxprune.errors import UsageError
from onnxprune.graph.build import AxisGraph
from onnxprune.graph.groups import AxisUse, Group
from onnxprune.graph.heads import head_groups
from onnxprune.model import edit
from onnxprune.patterns import REDUCTIONS, Grid, OutputChannel
from onnxprune.patterns.pattern import Array, Bools
from onnxprune.sparsity.choices import Settled, Sparsity
from onnxprune.sparsity.layers import WeightLayer, same_layers
from onnxprune.sparsity.rounds import Outcome, weights_of
from onnxprune.sparsity.scoring import Scorer
from onnxprune.sparsity.select import Scored, select
from onnxprune.statistics.learning import LearnedMasks, learn_masks
from onnxprune.surgery.keep import kept_positions, zero_slices
from onnxprune.surgery.mask import mask

NO_HEADS = "no attention head has weights in it"


@dataclass(frozen=True)
class Member:
    """A layer in which heads have weights.

    Attributes
    ----------
    layer
        The layer.
    use
        How the heads lie on an axis of its weight.
    """

    layer: WeightLayer
    use: AxisUse


@dataclass(frozen=True)
class Heads:
    """The heads of one attention.

    Attributes
    ----------
    group
        Its units.
    members
        The layers that make and consume them.
    """

    group: Group
    members: tuple[Member, ...]

    def rows(self, graph: AxisGraph, arrays: Mapping[str, Array]) -> Array:
        """All that belongs to each head, (heads, weights), of arrays (outputs, columns) by the layer's name."""
        parts = []
        for member in self.members:
            layer, use = member.layer, member.use
            array = layer.from_matrix(arrays[layer.name] * layer.consumer.factor)
            parts.append(unit_rows(array, use, graph.blocked.get(use.axis), self.group.units))
        return np.concatenate(parts, axis=1)


def find_heads(
    analysis: Analysis, layers: Sequence[WeightLayer], left: Mapping[str, str]
) -> tuple[list[Heads], list[WeightLayer], dict[str, str]]:
    """The heads of a model, the layers that they lie in, and why other layers stay dense.

    Parameters
    ----------
    layers
        Those that may become sparse. An attention goes with all of its layers, or stays.
    left
        Why others may not.

    Raises
    ------
    UsageError
        The model has no heads that could go.
    """
    by_value = {layer.consumer.weight: layer for layer in layers}
    found: list[Heads] = []
    mine: dict[str, WeightLayer] = {}
    why = dict(left)
    for group in head_groups(analysis.axis_graph, analysis.groups.values()):
        uses = [use for use in (*group.sources, *group.sinks) if _is_weight(analysis, use)]
        missing = [use for use in uses if use.axis.value not in by_value]
        members = tuple(Member(by_value[u.axis.value], u) for u in uses if u.axis.value in by_value)
        for member in members:
            if missing:
                name = str(missing[0].axis.value.name)
                why[member.layer.label] = f"its heads lie in {name} too, which stays dense"
        if members and not missing:
            found.append(Heads(group, members))
            mine.update({member.layer.name: member.layer for member in members})
    if not found:
        reasons = [f"  {name}: {text}" for name, text in why.items()]
        raise UsageError(
            "the model has no attention heads that could go: no group of units is made of heads",
            "\n".join(reasons[:8])
            or "A single head cannot go, nor can heads whose axis is not found; `onnxprune analyze` lists the "
            "groups. Take another pattern, such as 1xchannel.",
        )
    why |= {layer.label: NO_HEADS for layer in layers if layer.name not in mine and layer.label not in why}
    return found, [layer for layer in layers if layer.name in mine], why


def _is_weight(analysis: Analysis, use: AxisUse) -> bool:
    data = use.axis.value.const_value
    return (
        data is not None
        and len(data.shape) > 1
        and analysis.axis_graph.parameters[use.axis.value].kind == "weight"
    )


def make_heads_sparse(
    analysis: Analysis,
    heads: Sequence[Heads],
    layers: Sequence[WeightLayer],
    sparsity: Sparsity,
    settled: Settled,
    evidence: Evidence | None,
) -> Outcome:
    """Make heads of a copy of the model zero.

    Parameters
    ----------
    heads, layers
        As of `find_heads`.
    evidence
        What the samples say, where they are looked at.
    """
    graph, groups = analysis.axis_graph, analysis.groups
    gone: dict[str, Bools] = {
        each.group.id: _empty(graph, each, layers) if sparsity.lock else np.zeros(each.group.units, bool)
        for each in heads
    }
    steps = levels(sparsity.schedule, sparsity.rounds, 0.0, sparsity.level)
    scorer = (
        None if settled.criterion is None else Scorer(layers, sparsity.shape, settled.criterion, evidence)
    )
    sparse = zeroed(graph, groups, gone)
    learned: LearnedMasks | None = None
    for level in steps:
        with weights_of(graph.model, sparse):
            scores, learned = _scores(graph, heads, scorer, sparsity, evidence, level)
        scored = [_as_rows(each, scores[each.group.id], gone[each.group.id]) for each in heads]
        flags = select(
            scored,
            OutputChannel(),
            level,
            scope="local" if settled.scope == "row" else settled.scope,
            min_ratio=min(sparsity.min_ratio, level),
            max_ratio=sparsity.max_ratio,
        )
        gone = {name: rows[:, 0] for name, rows in flags.items()}
        sparse = zeroed(graph, groups, gone)
    zeros = {layer.name: layer.matrix() == 0 for layer in same_layers(sparse, layers)}
    named = {
        each.group.name or each.group.id: (
            tuple(np.flatnonzero(gone[each.group.id]).tolist()),
            each.group.units,
        )
        for each in heads
    }
    return Outcome(sparse, zeros, {}, steps, learned=learned, heads=named)


def _scores(
    graph: AxisGraph,
    heads: Sequence[Heads],
    scorer: Scorer | None,
    sparsity: Sparsity,
    evidence: Evidence | None,
    level: float,
) -> tuple[dict[str, Array], LearnedMasks | None]:
    """Scores of all heads, by group id, higher = keep."""
    if scorer is None:
        raise ValueError("heads go by a criterion")
    if scorer.criterion.learns:
        if evidence is None:
            raise ValueError("masks learn from samples")
        learned = learn_masks(evidence.differentiation, [each.group for each in heads], level)
        return dict(learned.logits), learned
    each_weight = {each.name: each.scores for each in scorer.score({}, level)}
    how = REDUCTIONS[sparsity.reduce]
    return {each.group.id: how(each.rows(graph, each_weight), axis=1) for each in heads}, None


def _as_rows(heads: Heads, scores: Array, gone: Bools) -> Scored:
    """Heads as the rows of a matrix that has as many entries as they have weights."""
    units = heads.group.units
    size = sum(
        member.layer.grid.size * int((member.use.unit >= 0).sum()) // len(member.use.unit)
        for member in heads.members
    )
    grid = Grid(units, size // units)
    return Scored(
        heads.group.id,
        grid,
        np.repeat(np.asarray(scores, np.float64)[:, None], grid.columns, axis=1),
        np.repeat(gone[:, None], grid.columns, axis=1),
    )


def _empty(graph: AxisGraph, heads: Heads, layers: Sequence[WeightLayer]) -> Bools:
    """Heads that are zero already where they are consumed."""
    sinks = {use.axis for use in heads.group.sinks}
    mine = [member for member in heads.members if member.use.axis in sinks]
    if not mine:
        return np.zeros(heads.group.units, bool)
    arrays = {layer.name: (layer.matrix() != 0).astype(np.float64) for layer in layers}
    return np.asarray(Heads(heads.group, tuple(mine)).rows(graph, arrays).max(axis=1) == 0)


def zeroed(graph: AxisGraph, groups: Mapping[str, Group], gone: Mapping[str, Bools]) -> ir.Model:
    """A copy of the model in which units are zero where they are consumed, and where they are made.

    Parameters
    ----------
    gone
        One flag per unit, by group id.
    """
    kept = kept_positions(groups, {name: ~flags for name, flags in gone.items()})
    model = mask(graph, kept)
    for name, flags in gone.items():
        for use in groups[name].sources:
            value = model.graph.initializers[str(use.axis.value.name)]
            if flags.any() and value.const_value is not None:
                stays = np.where(use.unit >= 0, ~flags[np.maximum(use.unit, 0)], True)
                blocked = graph.blocked.get(use.axis)
                edit.set_array(value, zero_slices(value.const_value.numpy(), use.axis.dim, stays, blocked))
    return model
