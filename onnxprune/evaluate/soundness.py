"""The proof that masked == removed, and the search for the groups that break it.

Both models run in onnxruntime on the same inputs. Compared are all graph outputs, and the result of every
contraction that lost terms (cut to its kept positions), because an output that happens to be dead or
saturated would prove nothing. Weights of any float type are widened (or narrowed) to float32, so that one
tolerance serves all: max |a - b| <= 1e-4 max |a|. Where that does not hold, the rounding of float32 is measured:
how far the masked model's results move when its inputs or its weights move by one unit in the last place (ADR 9).

A model with quantised activations runs in the arithmetic of what will be written: sums of integers are exact, so
the results agree bit for bit. Where onnxruntime has no integer kernel, a last digit may decide which way an
activation is rounded; then both models are compared without that rounding (ADR 25).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.calibrate.dataset import Dataset, input_specs
from onnxprune.calibrate.ortvalues import as_float32
from onnxprune.calibrate.synthetic import synthetic_dataset
from onnxprune.errors import ModelError
from onnxprune.evaluate.agreement import Figures, compare_outputs
from onnxprune.evaluate.forced import forced_runs
from onnxprune.evaluate.pieces import open_runner, piece_ends
from onnxprune.evaluate.quantized import stored_probes, torn_weights
from onnxprune.evaluate.rounding import Rounding
from onnxprune.evaluate.smaller import cut_feed, cuts_by_name
from onnxprune.graph.axes import Axis, Blocked, Bools, Kept, extent_left
from onnxprune.graph.build import AxisGraph
from onnxprune.graph.groups import Group
from onnxprune.model.convert import other_floats, to_float32
from onnxprune.model.detach import described, detach_foreign, foreign_nodes, opened
from onnxprune.model.finalize import as_stored
from onnxprune.model.forcing import force
from onnxprune.model.stored import with_floats
from onnxprune.model.unrounded import is_quantized, without_rounding
from onnxprune.surgery.keep import kept_positions
from onnxprune.surgery.mask import mask
from onnxprune.surgery.remove import RefitError, remove

log = logging.getLogger(__name__)

Probes = dict[str, dict[int, Bools]]
"""Values that are compared inside a model, by name: which positions of which axes stay."""


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
        For each rejected group, where the models differed.
    form
        How a model of quantised activations was compared: "integer", in the arithmetic of what is written, or
        "unrounded", without the rounding of activations, where that agrees and the integers do not. Empty
        for others.
    equal
        Whether outputs and inner results agree bit for bit.
    torn
        Quantised weights that have to be rounded again because blocks with a common scale lost some of their
        positions: they were compared before that.
    detached
        Nodes that onnxruntime cannot run: the proof covers everything around them.
    branches
        Branches of Ifs that were compared in models that cannot but take them, whatever the samples take.
    loops
        Loops of unknown length that were compared in models in which they run twice.
    unforced
        Models of these kinds that do not run on the samples, and why: of what they force, only what the samples
        take was compared.
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
    branches: int = 0
    loops: int = 0
    unforced: tuple[str, ...] = ()
    form: str = ""
    equal: bool = False
    torn: tuple[str, ...] = ()


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
        detached = tuple(described(node) for node in foreign_nodes(self.axis_graph.model))
        return accepted, Soundness(
            True,
            figures.max_abs_diff,
            figures.max_abs_output,
            tuple(why),
            detached,
            len(self.data),
            self.data.tier,
            len(figures.inner),
            why,
            len(figures.branches),
            len(figures.loops),
            tuple(dict.fromkeys(figures.unforced)),
            figures.form,
            figures.equal,
            figures.torn,
        )

    def _bisect(
        self, keep: Mapping[str, Bools], names: Sequence[str], failure: Figures
    ) -> tuple[dict[str, Bools], Figures, dict[str, str]]:
        """Groups that are sound together, their figures, and why the others are not."""
        figures = self._compare({}, repeat=True)
        if not figures.sound:
            raise ModelError(
                f"the model's own output differs from run to run, so nothing can be proven: {figures.why}",
                "Does it draw random numbers? Remove or seed those operators.",
            )
        accepted: dict[str, Bools] = {}
        rejected: dict[str, str] = {}

        def add(part: Sequence[str], result: Figures) -> None:
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

    def _compare(self, keep: Mapping[str, Bools], *, repeat: bool = False) -> Figures:
        self.progress(f"comparing masked and removed ({len(keep)} groups)")
        try:
            return self._run_both(keep, repeat)
        except RefitError as error:
            return Figures(False, 0.0, 0.0, str(error))
        except Exception as error:
            if not keep:  # the model as it is
                raise
            log.info("masking or removing failed", exc_info=True)
            return Figures(False, 0.0, 0.0, f"{type(error).__name__}: {error}")

    def _run_both(self, keep: Mapping[str, Bools], repeat: bool) -> Figures:
        """Compare the two models; with `repeat`, a model with itself in another session and another run."""
        kept = kept_positions(self.groups, keep)
        removed, masked = remove(self.axis_graph, kept), mask(self.axis_graph, kept)
        worst = self._run_pair(masked, removed, kept, repeat)
        unforced = []
        for forced in forced_runs(self.axis_graph, kept) if worst.sound else ():
            one, other = (force(model, forced) for model in (masked, removed))
            why = self._refused(one)
            if why is not None:
                unforced.append(f"{forced}: {why}")
                continue
            result = self._run_pair(one, other, kept, repeat)
            branches = worst.branches | set(forced.taken.items())
            worst = replace(worst.joined(result), branches=branches, loops=worst.loops | forced.loops)
        return replace(worst, unforced=tuple(unforced))

    def _refused(self, masked: ir.Model) -> str | None:
        """Why a model whose Ifs were forced does not run, if it does not: a branch may not fit the inputs."""
        try:
            shown = self._shown(masked, {}, {})
            runner = open_runner(shown, self.provider)
            for feed in self._feeds(shown):
                runner.run(feed)
        except ModelError as error:
            log.info("a branch that was forced does not run", exc_info=True)
            return error.what.splitlines()[0]
        return None

    def _run_pair(self, masked: ir.Model, removed: ir.Model, kept: Kept, repeat: bool) -> Figures:
        probes = self._probes(kept)
        torn = torn_weights(masked, removed)
        if is_quantized(self.axis_graph.model):
            forms = as_stored(masked, torn), as_stored(removed, torn)
            result = self._run_forms(*forms, stored_probes(self.axis_graph, kept), kept, repeat)
            if result.sound or repeat:
                return replace(result, form="integer", torn=torn)
            log.info("the integers of masked and removed differ: %s", result.why)
            masked, removed = without_rounding(masked), without_rounding(removed)
        forms = with_floats(masked, torn), with_floats(removed, torn)
        result = self._run_forms(*forms, probes, kept, repeat)
        return replace(result, form="unrounded" if is_quantized(self.axis_graph.model) else "", torn=torn)

    def _run_forms(
        self, masked: ir.Model, removed: ir.Model, probes: Probes, kept: Kept, repeat: bool
    ) -> Figures:
        """Compare two models in the form in which they are."""
        removed, masked = self._shown(removed, probes, kept), self._shown(masked, probes, {})
        ends = piece_ends(self.axis_graph.model)
        expected, got = (
            open_runner(model, self.provider, ends=ends, saturating=False) for model in (masked, removed)
        )
        rounding = Rounding(expected, masked, self.provider, weights=True)
        cuts = cuts_by_name(kept)  # a foreign operator that a rule knows has smaller inputs and outputs, too
        divided: dict[str, dict[int, Blocked]] = {}
        for axis, blocked in self.axis_graph.blocked.items():
            divided.setdefault(str(axis.value.name), {})[axis.dim] = blocked
        feeds = list(self._feeds(masked))
        smaller = [
            cut_feed(feed, {name: cuts[whole] for name in feed if (whole := opened(name)) in cuts})
            for feed in feeds
        ]
        inner, worst = probes.keys() - self._outputs(), Figures(True, 0.0, 0.0, equal=True)
        for _ in got.results(smaller) if repeat else ():
            pass
        bits = zip(expected.results(feeds), got.results(smaller), strict=True)
        pairs = (pair for bit in bits for pair in zip(*bit, strict=True))
        for (number, every), (_, small) in pairs:
            cut = cut_feed(every, cuts, divided)
            result = compare_outputs([cut], [small], inner=inner)
            if not result.sound and not repeat:
                moved = rounding.of(feeds[number], tuple(every))
                result = compare_outputs([cut], [small], inner=inner, rounding=moved)
            if not result.sound:
                return result
            worst = replace(worst.joined(result), inner=worst.inner | (inner & small.keys()))
        return worst

    def _outputs(self) -> set[str]:
        """What the graph shows, and what operators read that onnxruntime cannot run: the last that is seen."""
        model = self.axis_graph.model
        read = [v for node in foreign_nodes(model) for v in node.inputs if v is not None]
        return {str(value.name) for value in (*model.graph.outputs, *read)}

    def _probes(self, kept: Kept) -> Probes:
        """What is compared besides the graph's outputs: the result of every contraction that lost terms."""
        probes: Probes = {}
        for sink in self.axis_graph.sinks:
            value = sink.where.outputs[0]
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
                extent if left is None else left
                for dim, extent in enumerate(extents)
                for left in (extent_left(Axis(value, dim), kept, self.axis_graph.blocked),)
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
        `why` is empty where they agree, and has one entry, "outputs", where they do not. Models with quantised
        activations are compared as in the proof.
    """
    if not is_quantized(before):
        return _compared(before, after, data, provider)
    found = _compared(as_stored(before), as_stored(after), data, provider)
    if found.why:
        log.info("the integers differ: %s", found.why)
        found = _compared(without_rounding(before), without_rounding(after), data, provider)
        return replace(found, form="unrounded")
    return replace(found, form="integer")


def _compared(before: ir.Model, after: ir.Model, data: Dataset, provider: str) -> Soundness:
    """Compare two models in the form in which they are."""
    narrow = bool(other_floats(before))
    before, after = to_float32(before), to_float32(after)
    first, second = (open_runner(model, provider, saturating=False) for model in (before, after))
    rounding = Rounding(
        first, before, provider, weights=not narrow
    )  # what is folded is stored in half precision
    worst = Figures(True, 0.0, 0.0)
    for number in range(len(data)):
        feed = {name: as_float32(array) for name, array in data.feeds[number].items()}
        expected, got = first.run(feed), second.run(feed)
        result = compare_outputs([expected], [got])
        if not result.sound:
            result = compare_outputs([expected], [got], rounding=rounding.of(feed))
        if not result.sound and not compare_outputs([expected], [first.run(feed)]).sound:
            raise ModelError(
                f"the model's own output differs from run to run, so nothing can be proven: {result.why}",
                "Does it draw random numbers? Remove or seed those operators.",
            )
        worst = worst.joined(result)
    why = {} if worst.sound else {"outputs": worst.why}
    diff, top = worst.max_abs_diff, worst.max_abs_output
    return Soundness(True, diff, top, samples=len(data), tier=data.tier, why=why)
