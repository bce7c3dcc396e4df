"""Several of NNCF's algorithms on one model."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from onnxprune.controllers.controller import CompressionController, CompressionLoss, save_model
from onnxprune.controllers.filters import FilterPruningController
from onnxprune.controllers.schedules import CompressionScheduler
from onnxprune.controllers.stage import CompressionStage, StripFormat, strip_format
from onnxprune.errors import UnsupportedError, UsageError


class CompositeScheduler(CompressionScheduler):
    """Drives the schedulers that the controllers have at the moment, all alike."""

    def __init__(self, controllers: Sequence[CompressionController]) -> None:
        super().__init__(None, 0.0, 0.0)
        self._controllers = tuple(controllers)

    @property
    def schedulers(self) -> tuple[CompressionScheduler, ...]:
        """One for each algorithm."""
        return tuple(each.scheduler for each in self._controllers)

    def level_at(self, epoch: int) -> float:
        """The highest level that one of them asks for."""
        return max((each.level_at(epoch) for each in self.schedulers), default=0.0)

    def step(self, next_step: int | None = None) -> None:
        """Begin a step of every scheduler."""
        super().step(next_step)
        for each in self.schedulers:
            each.step(next_step)

    def epoch_step(self, next_epoch: int | None = None) -> None:
        """Begin an epoch of every scheduler."""
        super().epoch_step(next_epoch)
        for each in self.schedulers:
            each.epoch_step(next_epoch)

    def get_state(self) -> dict[str, Any]:
        """With those of all schedulers."""
        return {**super().get_state(), "schedulers": [each.get_state() for each in self.schedulers]}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from where `get_state` was asked."""
        self.current_step, self.current_epoch = state["current_step"], state["current_epoch"]
        for each, one in zip(self.schedulers, state["schedulers"], strict=True):
            each.load_state(one)


class CompositeCompressionController:
    """NNCF's controller of a config with several algorithms; they are applied one after the other.

    Each works on the model that those before it made, filters that are gone really gone. Levels of sparsity
    are shares of what is left then. Zeros that const sparsity keeps are those of the original.

    Attributes
    ----------
    child_controllers
        In the order of the config.
    """

    def __init__(self, controllers: Sequence[CompressionController]) -> None:
        self.child_controllers = tuple(controllers)
        self._original = controllers[0].source
        self._scheduler = CompositeScheduler(self.child_controllers)
        self._seen: tuple[int, ...] = ()
        self._model: ir.Model | None = None

    @property
    def source(self) -> Any:
        """The original."""
        return self._original

    @property
    def scheduler(self) -> CompositeScheduler:
        """All schedulers together."""
        return self._scheduler

    @property
    def ignored(self) -> dict[str, str]:
        """Options of all algorithms that mean nothing here, each with the reason."""
        return {f"{c.name}: {k}": why for c in self.child_controllers for k, why in c.ignored.items()}

    @property
    def notes(self) -> list[str]:
        """What a user should know, of all algorithms."""
        return list(dict.fromkeys(note for each in self.child_controllers for note in each.notes))

    @property
    def loss(self) -> CompressionLoss:
        """How far the outputs are from the original's when all algorithms were applied."""
        return CompressionLoss(self._distance)

    @property
    def compression_rate(self) -> float:
        """The highest of the algorithms'."""
        return max(each.level for each in self.child_controllers)

    def compression_stage(self) -> CompressionStage:
        """What all agree on, else partially compressed."""
        stages = [each.compression_stage() for each in self.child_controllers]
        total = stages[0]
        for stage in stages[1:]:
            total = total + stage
        return total

    def disable_scheduler(self) -> None:
        """Of every algorithm."""
        for each in self.child_controllers:
            each.disable_scheduler()

    def statistics(self, quickly_collected_only: bool = False) -> dict[str, Any]:
        """Of every algorithm, by its name, each brought up to date first."""
        _ = self.model
        return {each.name: each.statistics(quickly_collected_only) for each in self.child_controllers}

    @property
    def model(self) -> ir.Model:
        """The model with all algorithms applied, a copy."""
        if self._model is None or self._seen != self._revisions():
            made, cut = self.child_controllers[0].strip(True), None
            first = self.child_controllers[0]
            if isinstance(first, FilterPruningController):
                cut = first.cut
            for each in self.child_controllers[1:]:
                each.rebase(replace(self._original, ir=made), cut)
                made = each.strip(True)
            self._model, self._seen = made, self._revisions()
        return self._model.clone()

    def _revisions(self) -> tuple[int, ...]:
        return tuple(each.revision for each in self.child_controllers)

    def get_state(self) -> dict[str, Any]:
        """Plain values from which `load_state` goes on."""
        counts = {
            "current_step": self._scheduler.current_step,
            "current_epoch": self._scheduler.current_epoch,
        }
        return {**counts, "algorithms": {each.name: each.get_state() for each in self.child_controllers}}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from where `get_state` was asked.

        Raises
        ------
        UsageError
            The state is that of other algorithms.
        """
        states = state.get("algorithms")
        if not isinstance(states, Mapping) or set(states) != {each.name for each in self.child_controllers}:
            raise UsageError("this is no state of these algorithms", "Give what get_state returned.")
        self._scheduler.current_step = state["current_step"]
        self._scheduler.current_epoch = state["current_epoch"]
        for each in self.child_controllers:
            each.load_state(states[each.name])

    def prepare_for_export(self) -> ir.Model:
        """The same as `model`: all masks are in it."""
        return self.model

    def strip(self, do_copy: bool = True, strip_format: StripFormat | str = StripFormat.NATIVE) -> ir.Model:
        """The model with all algorithms applied; filters that are gone are cut out."""
        return self.strip_model(None, do_copy, strip_format)

    def strip_model(
        self, model: Any = None, do_copy: bool = False, strip_format: StripFormat | str = StripFormat.NATIVE
    ) -> ir.Model:
        """As `strip`."""
        _native(strip_format)
        return self.model

    def export_model(self, path: str | os.PathLike[str], *, force: bool = False) -> Path:
        """Write the model with all algorithms applied, whole or not at all."""
        return save_model(self.model, path, self._original, force=force)

    def _distance(self) -> float:
        return self.child_controllers[0].distance_to(self.model)

    def __repr__(self) -> str:
        return f"CompositeCompressionController({', '.join(map(repr, self.child_controllers))})"


def _native(given: StripFormat | str) -> None:
    if not strip_format(given).removes:
        raise UnsupportedError(
            "several algorithms together cannot keep the shapes of filters that are gone",
            "Take StripFormat.NATIVE, or one algorithm at a time.",
        )
