"""One step of slimming after the other: a model in, a model with less in it out.

Constants are folded and duplicates merged by rewriting weights so that consumers multiply the units by zero; then
they go as all units of zeros do, by the same proven surgery.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir

from onnxprune.analysis import Analysis
from onnxprune.errors import ModelError
from onnxprune.evaluate.quantized import torn_weights
from onnxprune.evaluate.soundness import Prover
from onnxprune.graph.axes import Bools
from onnxprune.graph.groups import Group
from onnxprune.inspection.removable import allowed
from onnxprune.model.finalize import finalize
from onnxprune.model.nested import every_node
from onnxprune.report.slimmed import Left, SlimGroup
from onnxprune.slimming.branches import bypass, cut_branches
from onnxprune.slimming.fold import fold_units
from onnxprune.slimming.follow import find_constants, mask_slot
from onnxprune.slimming.known import Constants
from onnxprune.slimming.merge import find_duplicates, merge_units
from onnxprune.slimming.same import find_likeness
from onnxprune.slimming.units import Found, UnitFinder
from onnxprune.surgery.keep import kept_positions
from onnxprune.surgery.remove import remove

MAX_STEPS = 100
"""Steps after which a model is taken as it is; every one makes it smaller or makes the next one do so."""

Key = tuple[str, ...]
"""What tells groups apart whose numbers change: the layer's name and the weights that consume the units."""


@dataclass
class Slimming:
    """A model on its way, and what has gone so far.

    Attributes
    ----------
    analysis
        Of the model as it is now.
    model
        The same, in the form in which it is written.
    analyse
        Takes a model apart again.
    prover
        Compares masked and removed.
    folds
        Whether weights may be rewritten: constants folded, duplicates merged.
    gone
        Units that went, by group.
    whole
        Names of weights whose units stay.
    drops
        Whether sums with zero go.
    branches, masks, left
        As in `SlimReport`.
    """

    analysis: Analysis
    model: ir.Model
    analyse: Callable[[ir.Model], Analysis]
    prover: Callable[[Analysis, Mapping[str, Group]], Prover]
    folds: bool = True
    whole: frozenset[str] = frozenset()
    drops: bool = True
    gone: dict[Key, SlimGroup] = field(default_factory=dict)
    branches: list[str] = field(default_factory=list)
    masks: int = 0
    left: list[Left] = field(default_factory=list)
    _pending: defaultdict[Key, dict[str, int]] = field(default_factory=lambda: defaultdict(dict))
    _rejected: dict[Key, tuple[int, str]] = field(default_factory=dict)

    def run(self) -> None:
        """Take steps until nothing more is found."""
        for _ in range(MAX_STEPS):
            try:
                if not self._step():
                    return
            except _NoWeights as stop:
                self.left = [Left("the model", 0, "zero", f"without them, {stop.__cause__}")]
                return

    def _step(self) -> bool:
        """Make the model smaller in one way; whether there was one."""
        graph = self.analysis.axis_graph
        constants = find_constants(graph)
        cut = cut_branches(graph, constants) if self.folds and self.drops else None
        if cut is not None:
            self._take(finalize(cut[0]))
            self.branches += cut[1]
            return True
        finder = UnitFinder(graph, constants)
        found = {group.id: finder.find(group) for group in self._groups()}
        self.left = []
        return self._cut(finder, found) or (
            self.folds and (self._fold(finder, found) or self._merge(finder, found))
        )

    def _groups(self) -> Iterator[Group]:
        parts = self.analysis.partition
        for group in (*parts.groups, *parts.alternatives):
            if _key(group) not in self._rejected and not is_whole(group, self.whole):
                yield group

    def _take(self, model: ir.Model) -> None:
        try:
            self.analysis = self.analyse(model)
        except ModelError as error:
            raise _NoWeights from error
        self.model = model

    # --- units of zeros ----------------------------------------------------------------------------------

    def _cut(self, finder: UnitFinder, found: Mapping[str, Found]) -> bool:
        """Cut out units of zeros."""
        keep: dict[str, Bools] = {}
        groups: dict[str, Group] = {}
        for group in self._groups():
            zero = found[group.id].zero
            goes = allowed(group, zero)
            if goes.any() and not any(rival in keep for rival in group.alternatives):
                keep[group.id], groups[group.id] = ~goes, group
            elif zero.any() and group.id in self.analysis.groups and not goes.all():
                held = int((zero & ~goes).sum())
                self.left.append(Left(group.name, held, "zero", _held(group)))
        self._keep_blocks(groups, keep)
        if not keep:
            return False
        accepted, soundness = self.prover(self.analysis, groups).prove(keep)
        for name, why in soundness.why.items():
            self._rejected[_key(groups[name])] = (int((~keep[name]).sum()), why)
        if not accepted:
            return bool(soundness.why)
        model, masks = self._without(finder.constants, groups, accepted)
        self._take(model)
        self._count(groups, accepted)
        self.masks += masks
        return True

    def _keep_blocks(self, groups: Mapping[str, Group], keep: dict[str, Bools]) -> None:
        """Leave out groups whose weights would be rounded again, because blocks with a common scale lose some.

        Parameters
        ----------
        keep
            Mutated.
        """

        def torn(names: Collection[str]) -> bool:
            part = {name: groups[name] for name in names}
            kept = kept_positions(part, {name: keep[name] for name in names})
            return bool(torn_weights(remove(self.analysis.axis_graph, kept)))

        if not keep or not torn(keep):
            return
        for name in [name for name in keep if torn([name])]:
            units = int((~keep.pop(name)).sum())
            why = "weights that share a scale with theirs would be rounded again"
            self.left.append(Left(groups[name].name, units, "zero", why))

    def _without(
        self, constants: Constants, groups: Mapping[str, Group], keep: Mapping[str, Bools]
    ) -> tuple[ir.Model, int]:
        graph = self.analysis.axis_graph
        masks = {
            str(op.output().name): slot
            for op in graph.ops
            if (slot := mask_slot(op.node, constants)) is not None
        }
        model = remove(graph, kept_positions(groups, keep))
        gone = 0
        for node in tuple(every_node(model.graph)):
            slot = masks.get(str(node.outputs[0].name)) if node.outputs else None
            array = None if slot is None else node.inputs[slot].const_value  # type: ignore[union-attr]
            part = node.graph
            ones = array is not None and bool((np.asarray(array.numpy()) == 1).all())
            if slot is not None and ones and isinstance(part, ir.Graph):
                bypass(part, node, 1 - slot)
                gone += 1
        return finalize(model), gone

    def _count(self, groups: Mapping[str, Group], keep: Mapping[str, Bools]) -> None:
        for name, flags in keep.items():
            group, key = groups[name], _key(groups[name])
            dropped = int((~flags).sum())
            before = self.gone.get(key, SlimGroup(group.name, group.units))
            made = self._pending.pop(key, {})
            constant = min(made.get("constant", 0), dropped)
            duplicate = min(made.get("duplicate", 0), dropped - constant)
            self.gone[key] = replace(
                before,
                zero=before.zero + dropped - constant - duplicate,
                constant=before.constant + constant,
                duplicate=before.duplicate + duplicate,
            )

    # --- units that others can do the work of --------------------------------------------------------------

    def _fold(self, finder: UnitFinder, found: Mapping[str, Found]) -> bool:
        """Fold constant units into biases."""
        folded = []
        for group in self.analysis.partition.groups:
            if group.id not in found:
                continue
            zero, constant = found[group.id].zero, found[group.id].constant
            for why, count in found[group.id].left.items():
                self.left.append(Left(group.name, count, "constant", why))
            goes = allowed(group, zero | constant) & constant
            held = int((constant & ~goes).sum())
            if held:
                self.left.append(Left(group.name, held, "constant", _held(group)))
            if goes.any():
                folded.append((group, goes))
                self._pending[_key(group)]["constant"] = int(goes.sum())
        if folded:
            self._take(finalize(fold_units(finder, folded)))
        return bool(folded)

    def _merge(self, finder: UnitFinder, found: Mapping[str, Found]) -> bool:
        """Merge units that are multiples of each other."""
        likeness = find_likeness(self.analysis.axis_graph, finder.constants)
        merges = []
        for group in self.analysis.partition.groups if likeness.found else ():
            if group.id not in found:
                continue
            zero = found[group.id].zero
            first, why = find_duplicates(finder, likeness, group, zero)
            again = first != np.arange(group.units)
            goes = allowed(group, zero | again) & again & (not why)
            held = int((again & ~goes).sum())
            if held:
                self.left.append(Left(group.name, held, "duplicate", why or _held(group)))
            if goes.any():
                merges.append((group, goes, first))
                self._pending[_key(group)]["duplicate"] = int(goes.sum())
        if merges:
            self._take(finalize(merge_units(finder, likeness, merges)))
        return bool(merges)

    @property
    def rejected(self) -> list[Left]:
        """Groups that the proof rejected."""
        return [
            Left(key[0], units, "zero", f"masked != removed: {why}")
            for key, (units, why) in self._rejected.items()
        ]


class _NoWeights(Exception):
    """Nothing would be left to take apart."""


def is_whole(group: Group, weights: Collection[str]) -> bool:
    """Whether one of these weights makes the group's units."""
    return bool(weights) and any(str(use.axis.value.name) in weights for use in group.sources)


def _key(group: Group) -> Key:
    return (group.name, *(use.axis.name for use in group.sinks))


def _held(group: Group) -> str:
    if group.blocks is None:
        return "a layer keeps one unit at least"
    return f"each of {group.block_count} blocks keeps equally many units, and one at least"
