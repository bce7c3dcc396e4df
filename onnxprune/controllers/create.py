"""NNCF's entry points: `create_compressed_model`, and the accuracy-aware search."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from onnxprune.controllers.composite import CompositeCompressionController
from onnxprune.controllers.controller import CompressedModel, CompressionController, Source
from onnxprune.controllers.filters import FilterPruningController
from onnxprune.controllers.learned import MovementSparsityController, RBSparsityController
from onnxprune.controllers.magnitude import ConstSparsityController, MagnitudeSparsityController
from onnxprune.controllers.nncf import (
    CONST,
    MAGNITUDE,
    MOVEMENT,
    PRUNING,
    RB,
    AlgorithmConfig,
    Config,
    pruning_config,
    read_config,
)
from onnxprune.controllers.options import TRAINING, Options
from onnxprune.controllers.sparse_config import sparsity_config
from onnxprune.controllers.sparsity import BaseSparsityAlgoController
from onnxprune.errors import TargetError, UsageError
from onnxprune.job import Job

SPARSITY: Mapping[str, type[BaseSparsityAlgoController]] = {
    MAGNITUDE: MagnitudeSparsityController,
    CONST: ConstSparsityController,
    RB: RBSparsityController,
    MOVEMENT: MovementSparsityController,
}

Controller = CompressionController | CompositeCompressionController


def create_compressed_model(
    model: Source,
    config: Config,
    data: Any = None,
    *,
    samples: int | None = None,
    preprocess: Any = None,
    bindings: Mapping[str, int] | None = None,
    provider: str = "auto",
    memory: float | None = None,
    seed: int = 0,
    compensate: str = "auto",
    solver: str = "auto",
    progress: Any = None,
) -> tuple[Controller, CompressedModel]:
    """NNCF's `create_compressed_model` for an ONNX model.

    Parameters
    ----------
    model
        Path of an .onnx file, or what `onnxprune.load` returned. Never modified.
    config
        NNCF's config, a dict or a JSON file. Of several algorithms, filter pruning goes first.
    data, samples, preprocess, bindings, provider, memory, seed, progress
        As of `onnxprune.prune`.
    compensate
        How layers behind filters that are gone are repaired; as of `onnxprune.prune`.
    solver
        What makes up for zeros; as of `BaseSparsityAlgoController`.

    Returns
    -------
    controller, model
        As NNCF gives them. The model follows the controller: `model.ir` is the graph at the present level.

    Raises
    ------
    UsageError, TargetError, ModelError
        Options that mean nothing, a level that cannot be reached, a model that cannot be read.
    """
    read = read_config(config)
    job = Job(
        data=data,
        samples=samples,
        preprocess=preprocess,
        bindings=dict(bindings or {}),
        provider=provider,
        memory=memory,
        seed=seed,
        compensate=compensate,
        progress=progress,
    )
    sections = sorted(read.algorithms, key=lambda each: each.name != PRUNING)
    names = [each.name for each in sections]
    if len(set(names)) < len(names):
        raise UsageError("the config has an algorithm twice", "Give one section for each.")
    made = [_controller(model, each, job, solver) for each in sections]
    for name, why in read.ignored.items():
        made[0].ignored[name] = why
        made[0].note(f"{name} is ignored: {why}")
    if read.accuracy_aware is not None:
        made[0].note(
            "accuracy_aware_training is for create_accuracy_aware_training_loop(config, controller), which asks "
            "for a function that measures accuracy"
        )
    if len(made) == 1:
        return made[0], CompressedModel(made[0])
    if names != [each.name for each in read.algorithms]:
        made[0].note("filter_pruning is applied before the other algorithms")
    both = CompositeCompressionController(made)
    return both, CompressedModel(both)


def _controller(model: Source, section: AlgorithmConfig, job: Job, solver: str) -> CompressionController:
    if section.name == PRUNING:
        return FilterPruningController.of(model, pruning_config(section), job)
    return SPARSITY[section.name].of(model, sparsity_config(section), job, solver)


@dataclass(frozen=True)
class Trial:
    """One level that was tried, and the accuracy at it."""

    level: float
    accuracy: float
    holds: bool


class AdaptiveCompressionLoop:
    """NNCF's accuracy-aware search: the highest level at which accuracy has not fallen too far.

    The level goes up by a step while accuracy holds; where it does not, it goes back, and the step is halved;
    below the least step the search ends. Without training, an epoch is one evaluation.

    Parameters
    ----------
    config
        NNCF's config with a section `accuracy_aware_training`, or that section.
    controller
        Of one algorithm; mutated by `run`.

    Attributes
    ----------
    trials
        In order.
    ignored
        Options that mean nothing here, each with the reason.

    Raises
    ------
    UsageError
        Neither of the degradations is given, both are, or an option is unknown.
    """

    def __init__(self, config: Mapping[str, Any], controller: CompressionController) -> None:
        section = config.get("accuracy_aware_training", config)
        o = Options(section, "accuracy_aware_training")
        params = o.inner("params")
        o.choice("mode", "adaptive_compression_level", ("adaptive_compression_level", "early_exit"))
        if ("maximal_relative_accuracy_degradation" in params) == (
            "maximal_absolute_accuracy_degradation" in params
        ):
            raise UsageError(
                "accuracy_aware_training needs maximal_relative_accuracy_degradation or "
                "maximal_absolute_accuracy_degradation",
                "Give one of them: the first in percent of the original's accuracy, the other in its own unit.",
            )
        self._relative = params.take("maximal_relative_accuracy_degradation")
        self._absolute = params.number("maximal_absolute_accuracy_degradation", 0.0)
        self._step = params.number("initial_compression_rate_step", 0.1, 1e-6, 1.0)
        self._factor = params.number("compression_rate_step_reduction_factor", 0.5, 1e-6, 1.0, below=True)
        self._least = params.number("minimal_compression_rate_step", 0.025, 1e-6, 1.0)
        params.ignore(
            dict.fromkeys(
                (
                    "initial_training_phase_epochs",
                    "patience_epochs",
                    "lr_reduction_factor",
                    "maximal_total_epochs",
                ),
                TRAINING,
            )
        )
        o.absorb(params)
        self.ignored = o.finish()
        self.controller = controller
        self.trials: list[Trial] = []

    def run(self, validate_fn: Callable[[Any], float], uncompressed_accuracy: float | None = None) -> float:
        """Search, and leave the controller at the level that was found.

        Parameters
        ----------
        validate_fn
            `ir.Model -> accuracy`, higher = better.
        uncompressed_accuracy
            Of the original; by default it is measured.

        Returns
        -------
        float
            The level that was found; 0 where even the first step costs too much.
        """
        if uncompressed_accuracy is None:
            uncompressed_accuracy = float(validate_fn(self.controller.source.ir))
        lost = self._absolute if self._relative is None else uncompressed_accuracy * self._relative / 100
        self.controller.frozen = False  # the search decides from here on, not the scheduler
        best, step = 0.0, self._step
        while step >= self._least - 1e-12:
            level = best + step
            if level < 1 - 1e-9 and self._holds(level, uncompressed_accuracy - lost, validate_fn):
                best = level
            else:
                step *= self._factor
        self.controller.set_level(best)
        return best

    def _holds(self, level: float, floor: float, validate_fn: Callable[[Any], float]) -> bool:
        try:
            self.controller.set_level(level)
        except TargetError as error:
            self.controller.note(f"{error.what}")
            return False
        accuracy = float(validate_fn(self.controller.strip(True)))
        self.trials.append(Trial(level, accuracy, accuracy >= floor))
        return accuracy >= floor


def create_accuracy_aware_training_loop(
    nncf_config: Mapping[str, Any], compression_ctrl: CompressionController
) -> AdaptiveCompressionLoop:
    """NNCF's name for making the search; see `AdaptiveCompressionLoop`."""
    return AdaptiveCompressionLoop(nncf_config, compression_ctrl)
