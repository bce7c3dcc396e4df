"""`check_model`: masked == removed on a whole model, for every group alone and all together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxprune.errors import ModelError, Reason
from onnxprune.graph.axes import Axis, Bools, Kept
from onnxprune.graph.build import AxisGraph, build_axis_graph
from onnxprune.graph.explain import nearest_barriers
from onnxprune.graph.groups import Group, Partition, partition
from onnxprune.model.check import check
from onnxprune.model.normalize import normalize
from onnxprune.model.serialize import to_bytes
from onnxprune.model.shapes import infer_shapes
from onnxprune.model.tables import fold_tables
from onnxprune.rules import RuleTable, default_rules
from onnxprune.surgery.keep import kept_positions
from onnxprune.surgery.mask import mask
from onnxprune.surgery.remove import RefitError, remove
from onnxprune.testing.feeds import Array, execute, make_feeds
from onnxprune.testing.groups import check_groups
from onnxprune.testing.order import shuffled, signature

TOLERANCE = 1e-4
"""Largest difference between masked and removed in fp32, as a share of the largest output."""

_INLINE = 1 << 40
_LISTED_BELOW = 4


@dataclass(frozen=True)
class Checked:
    """What was checked, for further assertions.

    Attributes
    ----------
    axis_graph, partition
        Of the normalised model.
    """

    axis_graph: AxisGraph
    partition: Partition

    @property
    def groups(self) -> tuple[Group, ...]:
        """The groups in use."""
        return self.partition.groups

    def prunable(self) -> set[str]:
        """Names `value[dim]` of all axes that can lose positions, in whichever alternative."""
        return {
            use.axis.name
            for group in (*self.partition.groups, *self.partition.alternatives)
            for use in group.axes
        }

    def reason(self, name: str) -> Reason | None:
        """Why the axis `value[dim]` is blocked: the reason of the nearest barrier, or None."""
        axes = {axis.name: axis for axis in self.axis_graph.graph if isinstance(axis, Axis)}
        if name not in axes:
            raise AssertionError(f"the axis graph has no axis {name}: it has {', '.join(sorted(axes))}")
        barrier = nearest_barriers(self.axis_graph.graph).get(axes[name])
        return None if barrier is None else barrier.reason


def check_model(
    model: ir.Model,
    *,
    bindings: Mapping[str, int] | None = None,
    rules: RuleTable | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    highs: Mapping[str, int] | None = None,
    feeds: Mapping[str, Array] | None = None,
    tolerance: float = TOLERANCE,
    checker: bool = True,
    alive: bool = True,
) -> Checked:
    """Check the rules on a whole model: every group alone and all together, in several draws.

    Parameters
    ----------
    model
        Small; not mutated.
    bindings
        Sizes of symbolic dims by name.
    rules
        The table; `default_rules()` by default.
    seeds
        Of the draws of units to drop.
    highs
        For integer inputs by name: the number of values, counted from 0 (2 where nothing is said).
    feeds
        Inputs by name, where drawn ones would not do.
    tolerance
        Largest difference between masked and removed, as a share of the largest output.
    checker
        Ask onnx's checker; False for models that it refuses and onnxruntime runs.
    alive
        Demand that no output is all zero and that masking changes some; False for models drawn at random.

    Returns
    -------
    Checked
        The axis graph and the groups.

    Raises
    ------
    AssertionError
        Something is wrong; the message says what, where and for which units.
    """
    if checker:
        _accepted(model, "the model itself")
    normal = normalize(model)
    table = default_rules() if rules is None else rules
    shapes = infer_shapes(normal, bindings, table.infer)
    if fold_tables(normal, shapes):
        shapes = infer_shapes(normal, bindings, table.infer)
    axis_graph = build_axis_graph(normal, shapes, table)
    checked = Checked(axis_graph, partition(axis_graph))
    check_groups(checked.groups)
    _check_again(checked, table, bindings)
    _check_nothing(checked)
    runs = [_Run(feed, outputs) for feed, outputs in _runs(checked, highs or {}, feeds or {})]
    _check_values(runs[0].outputs, alive)
    moved = [_check_plan(checked, plan, runs, tolerance, checker) for plan in _plans(checked, seeds)]
    contracted = {sink.axis for sink in axis_graph.sinks}
    reach = {use.axis for group in checked.groups for use in group.axes}
    if alive and reach & contracted and not any(moved):
        raise AssertionError("masking changes no output: equality of masked and removed would prove nothing")
    for seed in seeds:
        _check_order(checked, table, bindings, runs[0].feed, tolerance, seed)
    return checked


@dataclass(frozen=True)
class _Run:
    """Inputs, and what the whole model makes of them."""

    feed: Mapping[str, Array]
    outputs: Mapping[str, Array]


def _runs(
    checked: Checked, highs: Mapping[str, int], feeds: Mapping[str, Array]
) -> Iterator[tuple[Mapping[str, Array], Mapping[str, Array]]]:
    """One run at the sizes of the analysis, and more at others where symbolic dims allow it."""
    model, sizes = checked.axis_graph.model, checked.axis_graph.shapes.bindings
    feed = {**make_feeds(model, highs, sizes), **feeds}
    yield feed, execute(model, feed)
    if not sizes or feeds:
        return
    for others in ({name: 2 * n for name, n in sizes.items()}, {name: n + 1 for name, n in sizes.items()}):
        feed = make_feeds(model, highs, others)
        try:
            outputs = execute(model, feed)
        except AssertionError:  # it does not fit that
            continue
        yield feed, outputs


# --- plans -----------------------------------------------------------------------------------------------


def _plans(checked: Checked, seeds: Sequence[int]) -> Iterator[dict[str, Bools]]:
    """All groups in use at several levels, each group alone, and each alternative."""
    groups = checked.groups
    if not groups:
        return
    for seed in seeds:
        rng = np.random.default_rng(seed)
        yield {group.id: draw_keep(group, rng) for group in groups}
    rng = np.random.default_rng(0)
    yield {group.id: draw_keep(group, rng, least=True) for group in groups}
    for group in groups if len(groups) > 1 else ():
        yield {group.id: draw_keep(group, rng)}
    for cut in sorted({group.cut for group in checked.partition.alternatives}):
        rivals = [group for group in checked.partition.alternatives if group.cut == cut]
        yield {group.id: draw_keep(group, rng) for group in rivals}


def draw_keep(group: Group, rng: np.random.Generator, *, least: bool = False) -> Bools:
    """Draw which units of a group stay: at least one, not all, equally many in each block.

    Parameters
    ----------
    group
        A group.
    rng
        Source of randomness.
    least
        Keep a single unit per block.
    """
    blocks = np.zeros(group.units, np.int64) if group.blocks is None else group.blocks
    size = int((blocks == 0).sum())
    count = 1 if least else int(rng.integers(1, size))
    keep = np.zeros(group.units, bool)
    for block in range(int(blocks.max()) + 1):
        keep[rng.permutation(np.flatnonzero(blocks == block))[:count]] = True
    return keep


def _kept(checked: Checked, plan: Mapping[str, Bools]) -> Kept:
    every = {group.id: group for group in (*checked.partition.groups, *checked.partition.alternatives)}
    return kept_positions(every, plan)


def _tell(plan: Mapping[str, Bools]) -> str:
    return ", ".join(f"{name} keeps {np.flatnonzero(flags).tolist()}" for name, flags in plan.items())


# --- assertions ------------------------------------------------------------------------------------------


def _check_again(checked: Checked, table: RuleTable, bindings: Mapping[str, int] | None) -> None:
    """A copy of the model gives the same groups under the same ids, unit by unit."""
    copy = checked.axis_graph.model.clone()
    again = partition(build_axis_graph(copy, infer_shapes(copy, bindings, table.infer), table))
    first, second = (
        [
            (g.id, g.name, g.alternatives, None if g.blocks is None else g.blocks.tolist())
            + tuple((use.axis.name, use.unit.tolist()) for use in g.axes)
            for g in (*parts.groups, *parts.alternatives)
        ]
        for parts in (checked.partition, again)
    )
    if first != second:
        raise AssertionError(f"the same model gives other groups: {checked.groups} and {again.groups}")


def _check_nothing(checked: Checked) -> None:
    model = checked.axis_graph.model
    whole = {group.id: np.ones(group.units, bool) for group in checked.groups}
    before = to_bytes(model, external_above=_INLINE)[0]
    for act in (mask, remove):
        if to_bytes(act(checked.axis_graph, _kept(checked, whole)), external_above=_INLINE)[0] != before:
            raise AssertionError(f"{act.__name__} of nothing changes the model")


def _check_plan(
    checked: Checked, plan: Mapping[str, Bools], runs: Sequence[_Run], tolerance: float, checker: bool
) -> bool:
    """Masked == removed; returns whether masking changes the output."""
    axis_graph, kept, told = checked.axis_graph, _kept(checked, plan), f"({_tell(plan)})"
    model = axis_graph.model
    before = to_bytes(model, external_above=_INLINE)[0]
    masked = mask(axis_graph, kept)
    try:
        removed = remove(axis_graph, kept)
    except RefitError as error:
        raise AssertionError(f"removal fails at {error} {told}") from error
    if to_bytes(model, external_above=_INLINE)[0] != before:
        raise AssertionError(f"masking or removing changes the model that it was given {told}")
    _check_parts(model, removed, masked, told)
    if checker:
        _accepted(masked, f"the masked model {told}")
        _accepted(removed, f"the removed model {told}")
    moved = False
    for one in runs:
        expected = execute(masked, one.feed)
        _same(expected, execute(removed, one.feed), tolerance, f"masked and removed differ {told}")
        moved |= any(_distance(array, one.outputs[name]) > tolerance for name, array in expected.items())
    _check_shapes(removed, runs[0].feed, axis_graph)
    return moved


def _check_parts(model: ir.Model, removed: ir.Model, masked: ir.Model, told: str) -> None:
    """The interface stays, nothing but extents changes, and weights get smaller only where they are cut."""
    for other in (removed, masked):
        if other.opset_imports != model.opset_imports:
            raise AssertionError(f"opset imports change {told}")
        for ours, theirs in (
            (model.graph.inputs, other.graph.inputs),
            (model.graph.outputs, other.graph.outputs),
        ):
            if [(v.name, v.dtype, v.shape) for v in ours] != [(v.name, v.dtype, v.shape) for v in theirs]:
                raise AssertionError(f"inputs or outputs change {told}")
        names = {str(node.name): node.op_type for node in other.graph}
        lost = [n.name for n in model.graph if n.name and names.get(n.name) != n.op_type]
        if lost:
            raise AssertionError(f"nodes {lost} are lost {told}")
    if _elements(masked, model) != _elements(model, model):
        raise AssertionError(f"masking changes the size of weights {told}")
    if _elements(removed, model) >= _elements(model, model):
        raise AssertionError(f"removal makes no weight smaller {told}")


def _elements(model: ir.Model, like: ir.Model) -> int:
    """Elements of the initializers that `like` has, too."""
    values = model.graph.initializers
    return sum(
        data.size
        for name in like.graph.initializers
        if name in values and (data := values[name].const_value) is not None
    )


def _check_shapes(removed: ir.Model, feed: Mapping[str, Array], whole: AxisGraph) -> None:
    """All inferred extents, and all declared ones, are those that onnxruntime makes."""
    model = removed.clone()
    shapes = infer_shapes(model, whole.shapes.bindings, whole.rules.infer)
    outputs = set(model.graph.outputs)
    for node in model.graph:
        for value in node.outputs:
            if value.name and value.type is not None and value not in outputs:
                model.graph.outputs.append(value)
    found = execute(model, feed)
    for value in model.graph.outputs:
        real = found[str(value.name)].shape
        inferred = shapes.dims.get(value)
        declared = None if value.shape is None else tuple(value.shape)
        for what, extents in (("inferred", inferred), ("declared", declared)):
            if extents is not None and (
                len(extents) != len(real)
                or any(isinstance(e, int) and e != r for e, r in zip(extents, real, strict=True))
            ):
                raise AssertionError(f"{value.name!r} is {what} as {extents}, onnxruntime makes {real}")


def _check_order(
    checked: Checked,
    table: RuleTable,
    bindings: Mapping[str, int] | None,
    feed: Mapping[str, Array],
    tolerance: float,
    seed: int,
) -> None:
    """Another topological order gives the same groups and the same cut model."""
    other = shuffled(checked.axis_graph.model, np.random.default_rng(seed))
    axis_graph = build_axis_graph(other, infer_shapes(other, bindings, table.infer), table)
    again = Checked(axis_graph, partition(axis_graph))
    for mine, theirs, what in (
        (checked.partition.groups, again.partition.groups, "groups"),
        (checked.partition.alternatives, again.partition.alternatives, "alternatives"),
    ):
        ours = {signature(group)[0]: group for group in mine}
        found = {signature(group)[0]: group for group in theirs}
        if ours.keys() != found.keys():
            raise AssertionError(f"another order of the nodes gives other {what}: {mine} and {theirs}")
        rng = np.random.default_rng(seed)
        for key in sorted(ours) if what == "groups" else ():
            flags = draw_keep(ours[key], rng)
            plan = {ours[key].id: flags}
            twin = np.zeros_like(flags)
            twin[signature(found[key])[1]] = flags[signature(ours[key])[1]]
            first = remove(checked.axis_graph, _kept(checked, plan))
            second = remove(again.axis_graph, _kept(again, {found[key].id: twin}))
            _same(
                execute(first, feed),
                execute(second, feed),
                tolerance,
                f"another order of the nodes differs ({_tell(plan)})",
            )


def _check_values(outputs: Mapping[str, Array], alive: bool) -> None:
    for name, array in outputs.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise AssertionError(f"output {name!r} of the model is not finite: {array}")
        if alive and not np.any(array):
            raise AssertionError(f"output {name!r} of the model is all zero, so nothing can be compared")


def _same(expected: Mapping[str, Array], got: Mapping[str, Array], tolerance: float, what: str) -> None:
    for name, array in expected.items():
        other = got[name]
        if array.shape != other.shape or array.dtype != other.dtype:
            raise AssertionError(
                f"{what}: {name!r} is {other.dtype}{other.shape} instead of {array.dtype}{array.shape}"
            )
        if (distance := _distance(array, other)) > tolerance:
            raise AssertionError(f"{what}: {name!r} by {distance:.3g} of its largest value")


def _distance(a: Array, b: Array) -> float:
    """Largest difference as a share of the largest value; infinite where one is not finite."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    largest = float(np.abs(a).max(initial=0.0))
    difference = float(np.abs(a - b).max(initial=0.0))
    if not np.isfinite(difference):
        return float("inf")
    return difference / largest if largest else float(difference > 0)


def _accepted(model: ir.Model, what: str) -> None:
    if model.ir_version < _LISTED_BELOW:  # the normal form lists no initializers, which older files have to
        model = model.clone()
        model.ir_version = _LISTED_BELOW
    try:
        check(model)
    except ModelError as error:
        raise AssertionError(f"{what} is not valid: {error}") from error
