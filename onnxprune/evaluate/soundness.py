"""The proof that masked == removed, and the search for the groups that break it.

Both models run in onnxruntime on the same inputs. Compared are all graph outputs, and the result of every
contraction that lost terms (cut to its kept positions), because an output that happens to be dead or
saturated would prove nothing. Weights of any float type are widened (or narrowed) to float32, so that one
tolerance serves all: max |a - b| <= 1e-4 max |a|. Where that does not hold, the rounding of float32 is measured:
how far the masked model's results move when its inputs move by one unit in the last place (ADR 9).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.calibrate.dataset import Dataset, input_specs
from onnxprune.calibrate.synthetic import synthetic_dataset
from onnxprune.errors import ModelError
from onnxprune.evaluate.pieces import Runner, open_runner, piece_ends
from onnxprune.evaluate.smaller import cut_array, cut_feed, cuts_by_name
from onnxprune.graph.axes import Axis, Bools, Kept
from onnxprune.graph.build import AxisGraph
from onnxprune.graph.groups import Group
from onnxprune.model.convert import to_float32
from onnxprune.model.detach import detach_foreign, foreign_nodes, opened
from onnxprune.surgery.keep import kept_positions
from onnxprune.surgery.mask import mask
from onnxprune.surgery.remove import RefitError, remove

log = logging.getLogger(__name__)

Feed = Mapping[str, np.ndarray[Any, Any]]
TOLERANCE = 1e-4
"""Largest difference, as a share of the largest output."""

ROUNDING = 4.0
"""How many times the measured rounding a difference may exceed the tolerance by."""

DISCRETE_TOLERANCE = 1e-3
"""Share of integers or booleans that may differ: the last digit of a float decides some argmax."""


@dataclass(frozen=True)
class Soundness:
    """What the proof found.

    Attributes
    ----------
    checked
        Whether both models ran and were compared.
    max_abs_diff, max_abs_output
        Over all outputs and inputs.
    rejected_groups
        Ids of groups that made the models differ and are therefore kept whole.
    inner
        Results of contractions inside the model that were compared besides its outputs.
    why
        For each of them, where the models differed.
    detached
        Nodes that onnxruntime cannot run: the proof covers everything around them.
    samples
        Inputs on which the models were compared.
    tier
        "real" or "synthetic" inputs.
    """

    checked: bool
    max_abs_diff: float
    max_abs_output: float
    rejected_groups: tuple[str, ...] = ()
    detached: tuple[str, ...] = ()
    samples: int = 0
    tier: str = "synthetic"
    inner: int = 0
    why: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Prover:
    """Compares masked and removed models on fixed inputs.

    Parameters
    ----------
    axis_graph
        Of the model.
    groups
        By id.
    data
        The inputs to compare on; a few samples are enough.
    provider
        Where to run.
    progress
        Called before every comparison with a line for people.
    """

    axis_graph: AxisGraph
    groups: Mapping[str, Group]
    data: Dataset
    provider: str = "cpu"
    progress: Callable[[str], None] = lambda _: None

    def prove(self, keep: Mapping[str, Bools]) -> tuple[dict[str, Bools], Soundness]:
        """Compare; where the models differ, find the guilty groups by bisection and keep those whole.

        Returns
        -------
        keep, soundness
            The part of `keep` for which masked == removed, and the figures of its comparison.
        """
        names = [name for name, flags in keep.items() if not flags.all()]
        figures = self._compare({name: keep[name] for name in names})
        accepted = {name: keep[name] for name in names}
        why: dict[str, str] = {}
        if not figures.sound:
            accepted, figures, why = self._bisect(keep, names, figures)
        detached = tuple(node.name or node.op_type for node in foreign_nodes(self.axis_graph.model))
        return accepted, Soundness(
            True,
            figures.max_abs_diff,
            figures.max_abs_output,
            tuple(why),
            detached,
            len(self.data),
            self.data.tier,
            len(self._probes(kept_positions(self.groups, accepted)).keys() - self._outputs()),
            why,
        )

    def _bisect(
        self, keep: Mapping[str, Bools], names: Sequence[str], failure: _Figures
    ) -> tuple[dict[str, Bools], _Figures, dict[str, str]]:
        """Groups that are sound together, their figures, and why the others are not."""
        figures = self._compare({}, repeat=True)
        if not figures.sound:
            raise ModelError(
                f"the model's own output differs from run to run, so nothing can be proven: {figures.why}",
                "Does it draw random numbers? Remove or seed those operators.",
            )
        accepted: dict[str, Bools] = {}
        rejected: dict[str, str] = {}

        def add(part: Sequence[str], result: _Figures) -> None:
            nonlocal figures
            if result.sound:
                accepted.update({name: keep[name] for name in part})
                figures = result
            elif len(part) == 1:
                log.info("group %s is kept whole: %s", part[0], result.why)
                rejected[part[0]] = result.why
            else:
                middle = len(part) // 2
                for half in (part[:middle], part[middle:]):
                    add(half, self._compare({**accepted, **{name: keep[name] for name in half}}))

        add(names, failure)
        return accepted, figures, rejected

    def _compare(self, keep: Mapping[str, Bools], *, repeat: bool = False) -> _Figures:
        self.progress(f"comparing masked and removed ({len(keep)} groups)")
        try:
            return self._run_both(keep, repeat)
        except RefitError as error:
            return _Figures(False, 0.0, 0.0, str(error))
        except Exception as error:
            if not keep:  # the model as it is
                raise
            log.info("masking or removing failed", exc_info=True)
            return _Figures(False, 0.0, 0.0, f"{type(error).__name__}: {error}")

    def _run_both(self, keep: Mapping[str, Bools], repeat: bool) -> _Figures:
        """Compare the two models; with `repeat`, a model with itself in another session and another run."""
        kept = kept_positions(self.groups, keep)
        probes = self._probes(kept)
        removed = self._shown(remove(self.axis_graph, kept), probes, kept)
        masked = self._shown(mask(self.axis_graph, kept), probes, {})
        ends = piece_ends(self.axis_graph.model)
        expected, got = (open_runner(model, self.provider, ends=ends) for model in (masked, removed))
        cuts = cuts_by_name(kept)  # a foreign operator that a rule knows has smaller inputs and outputs, too
        feeds = list(self._feeds(masked))
        smaller = [{n: cut_array(a, cuts.get(opened(n), {})) for n, a in feed.items()} for feed in feeds]
        inner, worst = probes.keys() - self._outputs(), _Figures(True, 0.0, 0.0)
        for _ in got.results(smaller) if repeat else ():
            pass
        bits = zip(expected.results(feeds), got.results(smaller), strict=True)
        pairs = (pair for bit in bits for pair in zip(*bit, strict=True))
        for (number, whole), (_, small) in pairs:
            cut = cut_feed(whole, cuts)
            result = compare_outputs([cut], [small], inner=inner)
            if not result.sound and not repeat:
                rounding = _rounding(expected, feeds[number], tuple(whole))
                result = compare_outputs([cut], [small], inner=inner, rounding=rounding)
            if not result.sound:
                return result
            worst = worst.joined(result)
        return worst

    def _outputs(self) -> set[str]:
        return {str(value.name) for value in self.axis_graph.model.graph.outputs}

    def _probes(self, kept: Kept) -> dict[str, dict[int, Bools]]:
        """What is compared besides the graph's outputs: the result of every contraction that lost terms.

        An output that happens to be zero or saturated on the inputs at hand would prove nothing.
        """
        probes: dict[str, dict[int, Bools]] = {}
        for sink in self.axis_graph.sinks:
            value = sink.where.output()
            if sink.axis in kept and value.type is not None:
                rank = sink.where.rank(value)
                probes[str(value.name)] = {
                    dim: kept[Axis(value, dim)] for dim in range(rank) if Axis(value, dim) in kept
                }
        return probes

    def _shown(self, model: ir.Model, probes: Mapping[str, object], kept: Kept) -> ir.Model:
        """The model in float32, without foreign operators, and with the probes among its outputs."""
        dims = {
            value.name or "": tuple(
                int(kept[Axis(value, dim)].sum()) if Axis(value, dim) in kept else extent
                for dim, extent in enumerate(extents)
            )
            for value, extents in self.axis_graph.shapes.dims.items()
        }
        model = to_float32(model)
        if foreign_nodes(model):
            model = detach_foreign(model, dims)
        shown = {value.name for value in model.graph.outputs}
        for node in model.graph:
            for value in node.outputs:
                if value.name in probes and value.name not in shown:
                    model.graph.outputs.append(value)
        return model

    def _feeds(self, model: ir.Model) -> Iterator[dict[str, np.ndarray[Any, Any]]]:
        """The samples, with something for the inputs that detached operators have left open."""
        listed = {value.name for value in self.axis_graph.model.graph.inputs}
        extra = [spec for spec in input_specs(model) if spec.name not in listed]
        made = synthetic_dataset(extra, {}, samples=len(self.data), seed=0) if extra else None
        for number in range(len(self.data)):
            feed = dict(self.data.feeds[number])
            if made is not None:
                feed.update(made.feeds[number])
            yield {name: as_float32(array) for name, array in feed.items()}


@dataclass(frozen=True)
class _Figures:
    sound: bool
    max_abs_diff: float
    max_abs_output: float
    why: str = ""

    def joined(self, other: _Figures) -> _Figures:
        return _Figures(
            self.sound and other.sound,
            max(self.max_abs_diff, other.max_abs_diff),
            max(self.max_abs_output, other.max_abs_output),
            self.why or other.why,
        )


def _rounding(runner: Runner, feed: Feed, names: Sequence[str] | None = None) -> dict[str, float]:
    """By name, how far results move when the float inputs move by one unit in the last place; none for noise."""
    rng = np.random.default_rng(0)
    moved = {
        name: np.nextafter(a, rng.choice([-np.inf, np.inf], a.shape).astype(a.dtype))
        if a.dtype.kind == "f"
        else a
        for name, a in feed.items()
    }
    before, again, after = (runner.run(each, names) for each in (feed, feed, moved))
    return {
        name: float(np.abs(after[name].astype(np.float64) - a).max(initial=0.0))
        for name, a in before.items()
        if a.dtype.kind == "f" and np.array_equal(a, again[name]) and np.isfinite([a, after[name]]).all()
    }


def compare_outputs(
    expected: Sequence[Feed],
    got: Sequence[Feed],
    tolerance: float = TOLERANCE,
    inner: Collection[str] = (),
    rounding: Mapping[str, float] | None = None,
) -> _Figures:
    """Compare tensors of the masked and the removed model, sample by sample.

    Parameters
    ----------
    inner
        Names that are no graph outputs: they must agree too, but do not enter the figures.
    rounding
        By name, how far rounding alone moves a tensor.
    """
    figures = _Figures(True, 0.0, 0.0)
    for left, right in zip(expected, got, strict=True):
        for name, a in left.items():
            allowance = ROUNDING * (rounding or {}).get(name, 0.0)
            result = _compare_tensor(name, a, right[name], tolerance, allowance)
            if not result.sound:
                return result
            if name not in inner:
                figures = figures.joined(result)
    return figures


def _compare_tensor(
    name: str, a: np.ndarray[Any, Any], b: np.ndarray[Any, Any], tolerance: float, allowance: float
) -> _Figures:
    if a.shape != b.shape:
        return _Figures(False, 0.0, 0.0, f"{name!r} has shape {b.shape} instead of {a.shape}")
    if a.dtype.kind != "f":
        differing = int(np.sum(a != b))
        sound = differing <= DISCRETE_TOLERANCE * a.size
        return _Figures(
            sound, 0.0, 0.0, "" if sound else f"{name!r} differs in {differing} of {a.size} places"
        )
    x, y = a.astype(np.float64), b.astype(np.float64)
    finite = np.isfinite(x)
    if not np.array_equal(x[~finite], y[~finite], equal_nan=True) or not np.isfinite(y[finite]).all():
        return _Figures(False, 0.0, 0.0, f"{name!r} is not finite in the same places")
    top = float(np.abs(x[finite]).max(initial=0.0))
    diff = float(np.abs(x[finite] - y[finite]).max(initial=0.0))
    if diff > tolerance * top + allowance:
        return _Figures(False, diff, top, f"{name!r} differs by {diff:.3g} (largest {top:.3g})")
    return _Figures(True, diff, top)


def as_float32(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """A float array as float32, any other as it is."""
    is_float = array.dtype.kind == "f" or array.dtype.name == "bfloat16"
    return array.astype(np.float32) if is_float else array


def compare_models(before: ir.Model, after: ir.Model, data: Dataset, provider: str = "cpu") -> Soundness:
    """Compare all outputs of two models with one interface, with the tolerance of the proof.

    Parameters
    ----------
    before, after
        Normalised; onnxruntime knows all their operators.
    data
        The inputs to compare on.
    provider
        Where to run.

    Returns
    -------
    Soundness
        `why` is empty where they agree, and has one entry, "outputs", where they do not.
    """
    first, second = (open_runner(to_float32(model), provider) for model in (before, after))
    worst = _Figures(True, 0.0, 0.0)
    for number in range(len(data)):
        feed = {name: as_float32(array) for name, array in data.feeds[number].items()}
        expected, got = first.run(feed), second.run(feed)
        result = compare_outputs([expected], [got])
        if not result.sound:
            result = compare_outputs([expected], [got], rounding=_rounding(first, feed))
        if not result.sound and not compare_outputs([expected], [first.run(feed)]).sound:
            raise ModelError(
                f"the model's own output differs from run to run, so nothing can be proven: {result.why}",
                "Does it draw random numbers? Remove or seed those operators.",
            )
        worst = worst.joined(result)
    why = {} if worst.sound else {"outputs": worst.why}
    diff, top = worst.max_abs_diff, worst.max_abs_output
    return Soundness(True, diff, top, samples=len(data), tier=data.tier, why=why)
