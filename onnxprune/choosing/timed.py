"""The target `latency`: predict run times, solve, measure what comes out, correct the prediction, solve again.

The prediction (`onnxprune.allocate.latency`) comes from single layers and from the whole model at a few widths.
What was solved with it is cut and measured beside the original, before anything is repaired: repairs change
weights, not shapes. Where the measured share is off, the prediction is corrected by it and the target is solved
again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir

from onnxprune.allocate.ladder import Ladder, build_ladder
from onnxprune.allocate.latency import LatencyModel, Table
from onnxprune.allocate.solve import Allocation
from onnxprune.analysis import Analysis
from onnxprune.calibrate.dataset import Dataset, Feed
from onnxprune.calibrate.timing import Ran, Share, Stopwatch
from onnxprune.choosing.choices import Choices
from onnxprune.choosing.layers import Layer, cut_layers, elements, find_layers
from onnxprune.choosing.planning import allocate, check_reached
from onnxprune.choosing.scoring import Scored, most_of_a_group
from onnxprune.errors import ModelError, OnnxPruneError, UnsupportedError
from onnxprune.graph.axes import Bools
from onnxprune.model.binding import symbol
from onnxprune.model.convert import other_floats
from onnxprune.model.detach import foreign_nodes
from onnxprune.model.finalize import finalize
from onnxprune.repair.write import with_biases
from onnxprune.report.tables import plural
from onnxprune.select import excluded_groups
from onnxprune.surgery.keep import kept_positions
from onnxprune.surgery.remove import RefitError, remove

ROUNDS = 5
"""How often the target is solved and the result measured."""

MARGIN = 0.01
"""The prediction is to stay below the target by this share of it: the last measurement is noisy, too."""

SLACK = 0.02
"""So far below the target may the measured share be before the target is solved again."""

LEVELS = (1 / 4, 1 / 2, 3 / 4, 1.0)
"""Shares of what can go, at which the whole model is measured for the coefficients."""

PATIENCE = 20.0
"""Seconds of measuring layers after which each point is measured once instead of three times."""

Tick = Callable[[int, int], None]


@dataclass(frozen=True)
class Trial:
    """An allocation, and how long the model takes that it leads to.

    Attributes
    ----------
    predicted
        The share of the run time that was expected when it was solved.
    share
        What was measured.
    """

    allocation: Allocation
    predicted: float
    share: Share


@dataclass(frozen=True)
class Timing:
    """What a run knows about run times.

    Attributes
    ----------
    watch, feed
        How times are measured, and on which inputs.
    repairs
        Whether layers will be repaired, which gives biases to those that have none.
    fixed
        The predicted share of the run time that lies in nodes that never get smaller.
    notes
        For the report.
    trials
        What was solved and measured, in order.
    settled_on
        The one that counts; None where nothing was solved yet.
    """

    watch: Stopwatch
    feed: Feed = field(repr=False)
    repairs: bool = False
    fixed: float = 0.0
    notes: tuple[str, ...] = ()
    trials: tuple[Trial, ...] = ()
    settled_on: Trial | None = None

    @property
    def chosen(self) -> Trial:
        """The trial that counts; ValueError where nothing was solved yet."""
        if self.settled_on is None:
            raise ValueError("nothing was solved yet")
        return self.settled_on

    def beside(self, original: ir.Model, cut: ir.Model) -> Share:
        """How long a model takes beside the original."""
        return self.watch.share((original, self.feed), (cut, self.feed))


def one_feed(model: ir.Model, samples: Dataset, bindings: Mapping[str, int]) -> Feed:
    """The first sample, repeated or cropped to the sizes of the symbolic dims that MACs are counted at."""
    feed = dict(samples.feeds[0])
    for value in model.graph.inputs:
        array = feed.get(str(value.name))
        if array is None or value.shape is None:
            continue
        for axis, dim in enumerate(value.shape):
            size = dim if isinstance(dim, int) else bindings.get(symbol(value, axis), array.shape[axis])
            if array.shape[axis] not in (size, 0):
                array = np.take(array, np.arange(size) % array.shape[axis], axis=axis)
        feed[str(value.name)] = array
    return feed


def with_times(
    analysis: Analysis, choices: Choices, watch: Stopwatch, feed: Feed, repairs: bool, progress: Tick
) -> tuple[Analysis, Timing]:
    """The same analysis with costs that predict the run time.

    Parameters
    ----------
    repairs
        Whether layers will be repaired when they have been cut.
    progress
        Called with (layers timed, layers in all).

    Raises
    ------
    UnsupportedError
        onnxruntime cannot run the model as it is.
    """
    if foreign := foreign_nodes(analysis.source.ir):
        names = ", ".join(sorted({node.op_type for node in foreign}))
        raise UnsupportedError(
            f"onnxruntime cannot run {names}, so no run time can be measured",
            "Take --macs instead of --latency.",
        )
    ladders = _ladders(analysis, choices)
    tables, missing = _tables(find_layers(analysis, ladders), analysis, watch, progress)
    model = LatencyModel(tuple(tables), elements(analysis))
    keeps: list[dict[str, Bools]] = [{}]
    for level in LEVELS if ladders else ():
        drops = {ladder.group.id: ladder.settle(round(level * ladder.height)) for ladder in ladders}
        keeps.append({lad.group.id: lad.keep(drops[lad.group.id]) for lad in ladders if drops[lad.group.id]})
    try:
        models = ((cut_model(analysis, keep) if keep else analysis.source.ir, feed) for keep in keeps)
        times = watch.times(models, rounds=7, slice_s=0.06)
    except RefitError:  # a rule is wrong: the proof will find out for which group
        keeps = keeps[:1]
        times = watch.times([(analysis.source.ir, feed)], rounds=7, slice_s=0.06)
    except ModelError as error:
        raise UnsupportedError(
            f"no run time can be measured: {error.what}", "Take --macs instead of --latency."
        ) from error
    extents = [analysis.costs.extents(keep) for keep in keeps]
    model = model.calibrated(extents, np.median(times, axis=1))
    whole = model.total(extents[0])
    notes: tuple[str, ...] = (
        f"the run time is predicted from {plural(len(tables), 'layer')} measured alone and "
        f"{plural(len(keeps), 'whole model')}",
    )
    if missing:
        notes = (*notes, f"{plural(missing, 'layer')} could not be run alone: taken as a part of all others")
    notes = (*notes, *on_cpu(analysis.source.ir, watch))
    analysis = replace(analysis, costs=analysis.costs.timed(model))
    return analysis, Timing(watch, feed, repairs, model.constant / whole if whole else 1.0, notes)


def on_cpu(model: ir.Model, watch: Stopwatch) -> tuple[str, ...]:
    """That a run time of float16 on the CPU is mostly one of float32."""
    if "float16" not in other_floats(model).split() or not watch.on_cpu:
        return ()
    return (
        "on the CPU onnxruntime computes most of float16 in float32, between conversions: hardware for float16 "
        "takes another share of the time",
    )


def solved(
    analysis: Analysis,
    scored: Scored,
    choices: Choices,
    best_effort: bool,
    timing: Timing | None = None,
    progress: Tick = lambda _done, _total: None,
) -> tuple[Analysis, Allocation, Timing | None]:
    """Solve for any target; where it is the run time, as `settled` does.

    Raises
    ------
    TargetError
        The target is out of reach and `best_effort` is off.
    """
    if timing is not None:
        return settled(analysis, scored, choices, timing, best_effort, progress)
    allocation = allocate(analysis, scored, choices)
    if not best_effort:
        check_reached(analysis, scored, allocation, choices)
    return analysis, allocation, None


def settled(
    analysis: Analysis,
    scored: Scored,
    choices: Choices,
    timing: Timing,
    best_effort: bool,
    progress: Tick = lambda _done, _total: None,
) -> tuple[Analysis, Allocation, Timing]:
    """Solve until the measured share meets the target, at most `ROUNDS` times.

    Returns
    -------
    Analysis
        With the prediction as it was corrected last.
    Allocation
        Of those that met the target by measurement the one that keeps most; where none did, the fastest.
    Timing
        With its trials.

    Raises
    ------
    TargetError
        The target is out of reach: what the prediction takes for the fastest plan was measured, too.
    """
    target, original = choices.target, analysis.source.ir
    margin = MARGIN if target.value < 1 else 0.0
    aim = replace(choices, target=replace(target, value=target.value * (1 - margin)))
    first, trials = analysis, list[Trial]()
    for number in range(ROUNDS):
        progress(number, ROUNDS)
        allocation = allocate(analysis, scored, aim)
        if any(_same(allocation, trial.allocation) for trial in trials):
            break
        try:
            share = timing.beside(original, cut_model(analysis, allocation.keep, timing.repairs))
        except RefitError:  # a rule is wrong: the proof will find out for which group, and it is solved again
            trials = [Trial(allocation, allocation.achieved, Share(0.0, 0.0, allocation.achieved, 0.0))]
            break
        trials.append(Trial(allocation, allocation.achieved, share))
        least = min(trial.share.value for trial in trials)
        if not target.met_by(allocation.achieved) and least > target.value + share.noise:
            if not best_effort:
                reached = replace(allocation, met=False, reachable=min(least, 1.0))
                check_reached(analysis, scored, reached, choices, timing.fixed)
            break
        if target.value - max(SLACK, 2 * share.noise) <= share.value <= target.value:
            break
        analysis, timing = _corrected(first, trials, target.value, timing)
    good = [trial for trial in trials if trial.share.value <= target.value]
    if good:
        chosen = max(good, key=lambda trial: trial.share.value)
    else:
        chosen = min(trials, key=lambda trial: trial.share.value)
    met = chosen.share.value <= target.value + chosen.share.noise
    allocation = replace(chosen.allocation, achieved=chosen.share.value, met=met)
    return analysis, allocation, replace(timing, trials=(*timing.trials, *trials), settled_on=chosen)


def cut_model(analysis: Analysis, keep: Mapping[str, Bools], biases: bool = False) -> ir.Model:
    """The model without the units that go, as it is written, but not repaired; `biases`: as large as if it were."""
    cut = remove(analysis.axis_graph, kept_positions(analysis.groups, keep))
    return finalize(with_biases(cut) if biases and keep else cut)


def _same(one: Allocation, other: Allocation) -> bool:
    return {name: int(flags.sum()) for name, flags in one.keep.items()} == {
        name: int(flags.sum()) for name, flags in other.keep.items()
    }


def _corrected(
    analysis: Analysis, trials: Sequence[Trial], target: float, timing: Timing
) -> tuple[Analysis, Timing]:
    """The first prediction, corrected by the two measurements between which the target lies.

    By prediction they are next to each other: times have steps, and the one that keeps most of those that met the
    target need not be the slowest of them.
    """
    model = analysis.costs.latency
    if not isinstance(model, LatencyModel):
        raise ValueError("nobody measured run times")
    shares = [1.0, *(trial.share.value for trial in trials)]
    extents = [analysis.costs.extents(keep) for keep in ({}, *(trial.allocation.keep for trial in trials))]
    points = sorted(zip(map(model.total, extents), shares, extents, strict=True), key=lambda point: -point[0])
    met = next((n for n, (_, share, _) in enumerate(points) if share <= target), None)
    if met is None:  # so far all are too slow: the line from the original through the fastest
        above, below = points[0], min(points, key=lambda point: point[1])
    else:
        above, below = points[max(met - 1, 0)], points[met]
    seconds = trials[0].share.before
    model = model.corrected(above[2], below[2], (above[1] * seconds, below[1] * seconds))
    whole = model.total(extents[0])
    fixed = min(max(model.constant / whole, 0.0), 1.0) if whole > 0 else 1.0
    return replace(analysis, costs=analysis.costs.timed(model)), replace(timing, fixed=fixed)


def _ladders(analysis: Analysis, choices: Choices) -> list[Ladder]:
    """How far each group may be cut, whatever the order of its units."""
    excluded = excluded_groups(
        analysis.axis_graph, analysis.groups, ignore=choices.ignore, only=choices.only, preset=choices.preset
    )
    ladders = [
        build_ladder(
            group,
            np.zeros(group.units),
            round_to=choices.rounding(group.units * group.width),
            min_channels=choices.min_channels,
            max_ratio=most_of_a_group(choices),
        )
        for name, group in analysis.groups.items()
        if name not in excluded
    ]
    return [ladder for ladder in ladders if ladder.most]


def _tables(
    layers: Sequence[Layer], analysis: Analysis, watch: Stopwatch, progress: Tick
) -> tuple[list[Table], int]:
    """One table per layer, and for how many there is none; equal layers are measured once."""
    distinct = {layer.key: layer for layer in reversed(layers)}
    seconds: dict[object, np.ndarray] = {}
    idle = float(watch.times([_idle()], rounds=5, slice_s=0.01).min())
    started = time.perf_counter()
    for number, (key, layer) in enumerate(distinct.items()):
        progress(number, len(distinct))
        rounds = 3 if time.perf_counter() - started < PATIENCE else 1
        try:
            found = watch.times(cut_layers(analysis, layer), rounds=rounds, slice_s=0.005).min(axis=1)
        except (RefitError, OnnxPruneError):
            continue
        seconds[key] = np.maximum(found - idle, 0.05 * found)
    tables = [layer.table(seconds[layer.key]) for layer in layers if layer.key in seconds]
    return tables, len(layers) - len(tables)


def _idle() -> Ran:
    """A model that does nothing: what a run costs besides its layers."""
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([1]))
    node = ir.node("Neg", [x])
    y = node.outputs[0]
    y.name, y.type, y.shape = "y", x.type, x.shape
    graph = ir.Graph([x], [y], nodes=[node], name="idle", opset_imports={"": 17})
    return ir.Model(graph, ir_version=8), {"x": np.zeros(1, np.float32)}
