"""The proof that masked == removed, and the search for the groups that break it.

Both models run in onnxruntime on the same inputs. Weights of any float type are widened (or narrowed) to float32
for the proof, so that one tolerance serves all: max |a - b| <= 1e-4 max |a|.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.apply.keep import kept_positions
from onnxprune.apply.mask import mask
from onnxprune.apply.remove import RefitError, remove
from onnxprune.calibrate.dataset import Dataset, input_specs
from onnxprune.calibrate.sessions import open_session, run
from onnxprune.calibrate.synthetic import synthetic_dataset
from onnxprune.errors import ModelError
from onnxprune.graph.build import AxisGraph
from onnxprune.graph.groups import Group
from onnxprune.model.convert import to_float32
from onnxprune.model.detach import detach_foreign, foreign_nodes

log = logging.getLogger(__name__)

Bools = np.ndarray[Any, np.dtype[np.bool_]]
Feed = Mapping[str, np.ndarray[Any, Any]]
TOLERANCE = 1e-4
"""Largest difference, as a share of the largest output."""


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
        accepted: dict[str, Bools] = {}
        rejected: list[str] = []
        figures = self._compare({})
        if not figures.sound:
            raise ModelError(
                "the model's own output is not reproducible in onnxruntime, so nothing can be proven about it",
                "Does it draw random numbers? Remove or seed those operators.",
            )

        def add(names: Sequence[str]) -> None:
            nonlocal figures
            trial = {**accepted, **{name: keep[name] for name in names}}
            result = self._compare(trial)
            if result.sound:
                accepted.update({name: keep[name] for name in names})
                figures = result
            elif len(names) == 1:
                log.warning("group %s is kept whole: %s", names[0], result.why)
                rejected.append(names[0])
            else:
                middle = len(names) // 2
                add(names[:middle])
                add(names[middle:])

        names = [name for name, flags in keep.items() if not flags.all()]
        if names:
            add(names)
        detached = tuple(node.name or node.op_type for node in foreign_nodes(self.axis_graph.model))
        return accepted, Soundness(
            True,
            figures.max_abs_diff,
            figures.max_abs_output,
            tuple(rejected),
            detached,
            len(self.data),
            self.data.tier,
        )

    def _compare(self, keep: Mapping[str, Bools]) -> _Figures:
        self.progress(f"comparing masked and removed ({len(keep)} groups)")
        kept = kept_positions(self.groups, keep)
        masked = mask(self.axis_graph, kept)
        try:
            removed = remove(self.axis_graph, kept)
        except RefitError as error:
            return _Figures(False, 0.0, 0.0, str(error))
        expected = self._outputs(masked)
        try:
            got = self._outputs(removed)
        except ModelError as error:
            return _Figures(False, 0.0, 0.0, str(error))
        return compare_outputs(expected, got)

    def _outputs(self, model: ir.Model) -> list[dict[str, np.ndarray[Any, Any]]]:
        shapes = self.axis_graph.shapes
        dims = {value.name or "": extents for value, extents in shapes.dims.items()}
        model = to_float32(model)
        listed = {value.name for value in model.graph.inputs}
        if foreign_nodes(model):
            model = detach_foreign(model, dims)
        extra = [spec for spec in input_specs(model) if spec.name not in listed]
        session = open_session(model, self.provider)
        results = []
        made = synthetic_dataset(extra, {}, samples=len(self.data), seed=0) if extra else None
        for number in range(len(self.data)):
            feed = dict(self.data.feeds[number])
            if made is not None:
                feed.update(made.feeds[number])
            results.append(run(session, {name: _as_float32(array) for name, array in feed.items()}))
        return results


@dataclass(frozen=True)
class _Figures:
    sound: bool
    max_abs_diff: float
    max_abs_output: float
    why: str = ""


def compare_outputs(
    expected: Sequence[Feed], got: Sequence[Feed], tolerance: float = TOLERANCE
) -> _Figures:
    """Compare outputs of the masked and the removed model, sample by sample and output by output."""
    worst, largest = 0.0, 0.0
    for left, right in zip(expected, got, strict=True):
        for name, a in left.items():
            b = right[name]
            if a.shape != b.shape:
                return _Figures(False, 0.0, 0.0, f"output {name!r} has shape {b.shape} instead of {a.shape}")
            if a.dtype.kind not in "fiub":
                if not np.array_equal(a, b):
                    return _Figures(False, 0.0, 0.0, f"output {name!r} differs")
                continue
            x, y = a.astype(np.float64), b.astype(np.float64)
            finite = np.isfinite(x)
            if not np.array_equal(finite, np.isfinite(y)):
                return _Figures(False, 0.0, 0.0, f"output {name!r} is not finite in the same places")
            top = float(np.abs(x[finite]).max(initial=0.0))
            diff = float(np.abs(x[finite] - y[finite]).max(initial=0.0))
            if diff > tolerance * top:
                return _Figures(False, diff, top, f"output {name!r} differs by {diff:.3g} (largest {top:.3g})")
            worst, largest = max(worst, diff), max(largest, top)
    return _Figures(True, worst, largest)


def _as_float32(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    is_float = array.dtype.kind == "f" or array.dtype.name == "bfloat16"
    return array.astype(np.float32) if is_float else array
