"""What every controller is: a handle on one model, which holds a level and makes models at that level.

Nothing here chooses or removes anything: controllers keep what was asked for, and call the functions that
`onnxprune prune` and `onnxprune sparsify` call. The original model is never modified; what a controller gives
away is a copy.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir

from onnxprune.analysis import analyze
from onnxprune.choosing.evidence import Evidence
from onnxprune.controllers.schedules import CompressionScheduler, StubCompressionScheduler
from onnxprune.controllers.stage import CompressionStage, StripFormat, strip_format
from onnxprune.errors import UsageError
from onnxprune.evaluate.validate import compare
from onnxprune.job import Job, Opened, open_model
from onnxprune.measuring import as_runnable
from onnxprune.model import io

log = logging.getLogger(__name__)

Cut = Callable[[str, "np.ndarray[Any, Any]"], "np.ndarray[Any, Any]"]

Source = str | os.PathLike[str] | io.LoadedModel

_BATCH = 32


class CompressionLoss:
    """How far a compressed model's outputs are from the original's, as NNCF's `CompressionLoss`.

    `sum (y - y')^2 / sum y^2`, averaged over the float outputs, on the samples that are measured on. No
    gradient.
    """

    def __init__(self, measure: Callable[[], float]) -> None:
        self._measure = measure

    def calculate(self) -> float:
        """Run both models, and compare.

        Raises
        ------
        UsageError
            The controller has no data, or onnxruntime cannot run the model.
        """
        return self._measure()

    def __call__(self) -> float:
        """As `calculate`."""
        return self.calculate()


class Handle(Protocol):
    """What a model that follows a controller asks of it."""

    @property
    def model(self) -> ir.Model:
        """The model as it is now."""
        ...

    @property
    def source(self) -> io.LoadedModel:
        """The original."""
        ...


class CompressedModel:
    """The model of a controller, as it is at the moment: what `create_compressed_model` gives with it.

    It follows the controller: after `set_pruning_level` or an epoch of the scheduler it is another model.
    """

    def __init__(self, controller: Handle) -> None:
        self.controller = controller

    @property
    def ir(self) -> ir.Model:
        """The graph as it is now; a copy that may be kept."""
        return self.controller.model

    def save(self, path: str | os.PathLike[str], *, force: bool = False) -> Path:
        """Write it as it is: shapes are those of the original, until `strip` was called in place."""
        return save_model(self.ir, path, self.controller.source, force=force)

    def __repr__(self) -> str:
        return f"CompressedModel({self.controller!r})"


def save_model(
    model: ir.Model, path: str | os.PathLike[str], source: io.LoadedModel, *, force: bool = False
) -> Path:
    """Write a model whole or not at all; where the original had external data, so has this."""
    sources = (source.path, *source.data_files)
    io.save(model, path, external=bool(source.data_files), force=force, sources=sources)
    return Path(path)


class CompressionController:
    """The base of all controllers.

    Parameters
    ----------
    model
        Path of an .onnx file, or what `onnxprune.load` returned. Never modified.
    job
        Data, and how it is used.
    ignored
        Options that mean nothing here, each with the reason.

    Attributes
    ----------
    opened
        The model, analysed, and the samples.
    ignored
        As given.
    notes
        What a user should know about what was done or left out, in order.
    frozen
        Whether the scheduler has no say any more.
    revision
        Grows whenever the model changes.
    """

    name = ""

    def __init__(self, model: Source, job: Job, ignored: Mapping[str, str] | None = None) -> None:
        self.job = job
        self.ignored = dict(ignored or {})
        self.notes: list[str] = [f"{name} is ignored: {why}" for name, why in self.ignored.items()]
        self.frozen = False
        self.opened = open_model(model, job, calibrate=job.data is not None)
        self._scheduler: CompressionScheduler = StubCompressionScheduler()
        self._target = 0.0
        self._evidence: Evidence | None = None
        self._model: ir.Model | None = None
        self._stripped = False
        self.revision = 0
        for note in self.opened.inputs.notes:
            self.note(note)

    # -- what subclasses say ---------------------------------------------------------------------------------

    @property
    def level(self) -> float:
        """What was reached."""
        raise NotImplementedError

    @property
    def requested(self) -> float:
        """What was asked for."""
        raise NotImplementedError

    def set_level(self, level: float) -> None:
        """Compress to a level; the controller is mutated."""
        raise NotImplementedError

    def statistics(self, quickly_collected_only: bool = False) -> Any:
        """Figures in NNCF's words."""
        raise NotImplementedError

    def _built(self) -> ir.Model:
        """The model at the present level, shapes as in the original."""
        raise NotImplementedError

    def _exported(self) -> ir.Model:
        """The same with the masks baked in wherever that changes nothing."""
        return self._built()

    def _removed(self) -> ir.Model:
        """The model at the present level without what is gone."""
        return self._built()

    # -- what all can do -------------------------------------------------------------------------------------

    @property
    def source(self) -> io.LoadedModel:
        """The original."""
        return self.opened.analysis.source

    @property
    def model(self) -> ir.Model:
        """The compressed model as it is now, a copy: the original's shapes, until it was stripped in place."""
        if self._model is None:
            self._model = self._built()
        return self._model.clone()

    @property
    def scheduler(self) -> CompressionScheduler:
        """What says how far each round goes."""
        return self._scheduler

    @property
    def loss(self) -> CompressionLoss:
        """How far the compressed model's outputs are from the original's."""
        return CompressionLoss(self._distance)

    def disable_scheduler(self) -> None:
        """Put a dummy in the scheduler's place, which changes nothing; the level stays as it is."""
        self._scheduler = StubCompressionScheduler(self.requested)

    def freeze(self) -> None:
        """Let the level stay as it is: later calls of the scheduler change nothing."""
        self.frozen = True

    def compression_stage(self) -> CompressionStage:
        """Whether nothing, something, or all that the target asks for is gone."""
        if self.level <= 0:
            return CompressionStage.UNCOMPRESSED
        if self.requested >= self._target - 1e-9:
            return CompressionStage.FULLY_COMPRESSED
        return CompressionStage.PARTIALLY_COMPRESSED

    def prepare_for_export(self) -> ir.Model:
        """Bake the masks into the weights: `model` has these zeros from now on, and the same outputs."""
        if not self._stripped:
            self._model = self._exported()
        return self.model

    def strip(self, do_copy: bool = True, strip_format: StripFormat | str = StripFormat.NATIVE) -> ir.Model:
        """The model without what the masks took out; see `strip_model`."""
        return self.strip_model(None, do_copy, strip_format)

    def strip_model(
        self,
        model: CompressedModel | None = None,
        do_copy: bool = False,
        strip_format: StripFormat | str = StripFormat.NATIVE,
    ) -> ir.Model:
        """The model in the form in which it is used. Filters that are gone are cut out; zeros of weights stay.

        Parameters
        ----------
        model
            What `create_compressed_model` gave; None: this controller's.
        do_copy
            Leave the controller's model as it is. Otherwise `model` is the stripped one from now on, until
            another level is set.
        strip_format
            `StripFormat.NATIVE`, or `IN_PLACE` to keep all shapes.

        Raises
        ------
        UsageError
            The model is that of another controller.
        """
        if model is not None and getattr(model, "controller", None) is not self:
            raise UsageError(
                "strip_model was given a model that is not this controller's",
                "Give the model that came with the controller, or call controller.strip().",
            )
        found = self._removed() if _removes(strip_format) else self._exported()
        if not do_copy:
            self._model, self._stripped = found, True
        return found.clone()

    def export_model(
        self,
        path: str | os.PathLike[str],
        *,
        strip_format: StripFormat | str = StripFormat.NATIVE,
        force: bool = False,
    ) -> Path:
        """Strip a copy and write it, whole or not at all.

        Parameters
        ----------
        path
            Of the new file.
        force
            Replace an existing one; never the original.
        """
        return save_model(self.strip(True, strip_format), path, self.source, force=force)

    def get_state(self) -> dict[str, Any]:
        """Plain values from which `load_state` goes on."""
        return {"scheduler": self._scheduler.get_state(), "level": self.requested}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from where `get_state` was asked: the scheduler counts on, and the level is set again."""
        if set(state) != {"scheduler", "level"}:
            raise UsageError("this is no state of a controller", "Give what get_state returned.")
        self._scheduler.load_state(state["scheduler"])
        self.set_level(state["level"])

    # -- shared by subclasses --------------------------------------------------------------------------------

    def note(self, text: str) -> None:
        """Remember something that a user should know, once."""
        if text not in self.notes:
            log.info("%s: %s", self.name, text)
            self.notes.append(text)

    def rebase(self, source: io.LoadedModel, cut: Cut | None = None) -> None:
        """Start from another form of the same model, at the same level; used where algorithms are combined.

        Parameters
        ----------
        cut
            What other algorithms have left of an array of an initializer's shape, by the initializer's name.
        """
        self.opened = replace_model(self.opened, source, self.job)
        self._evidence = None
        self._changed()

    def _changed(self) -> None:
        self._model, self._stripped = None, False
        self.revision += 1

    def _seen(self) -> Evidence | None:
        """What the samples say; None without data, or where onnxruntime cannot run the model."""
        if self._evidence is None and self.job.data is not None:
            self._evidence = self.opened.evidence(self.job)
            if self._evidence is None:
                self.note(
                    "onnxruntime cannot run the model as it is, so nothing was learned from the samples"
                )
            elif self.opened.inputs.division:
                self.note(self.opened.inputs.division)
        return self._evidence

    def _distance(self) -> float:
        return self.distance_to(self.model)

    def distance_to(self, model: ir.Model) -> float:
        """How far a model's outputs are from the original's; see `CompressionLoss`.

        Raises
        ------
        UsageError
            There is no data, or onnxruntime cannot run the model.
        """
        if self.job.data is None:
            raise UsageError(
                "the compression loss compares outputs on samples, and the controller has no data",
                'Give data=..., or data="synthetic" to generate samples.',
            )
        run = as_runnable([self.source.ir, model], self.opened.inputs.data, self.job.provider)
        if run is None:
            raise UsageError(
                "onnxruntime cannot run the model, so there is no compression loss", "Take other operators."
            )
        original, mine = run.models
        found = compare(original, mine, run.data, self.job.provider, _BATCH)
        ratios = [10 ** (-each.sqnr_db / 10) for each in found.outputs if each.sqnr_db is not None]
        if not ratios:
            raise UsageError("no output of the model holds floats", "The loss compares floats.")
        return float(sum(ratios) / len(ratios))


def _removes(given: StripFormat | str) -> bool:
    return strip_format(given).removes


def replace_model(opened: Opened, source: io.LoadedModel, job: Job) -> Opened:
    """The same samples with another model, which is analysed."""
    old = opened.analysis
    analysis = analyze(
        source,
        bindings=opened.inputs.bindings,
        rules=job.rules,
        allow_inexact=job.allow_inexact,
        attention=old.attention,
    )
    return replace(opened, analysis=analysis)
