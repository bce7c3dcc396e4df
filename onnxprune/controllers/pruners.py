"""Neural Compressor's pruners as objects: a round scores, selects and zeroes, and the rest makes up for it.

What differs from the original: `modules` is a model or `{name: array}`, not the modules of a framework; masks
are booleans that are true where a weight stays; one `step()` is all that a training step calls one after the
other; exactly as many weights go as asked for; and what is zero stays zero.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from onnxprune.controllers.criteria import CRITERIA, PruningCriterion, get_criterion
from onnxprune.controllers.inc import Config, read_pruner_config
from onnxprune.controllers.inc_schedules import get_scheduler
from onnxprune.controllers.modules import Array, ArrayModules, ModelModules, Modules, choose_layers
from onnxprune.controllers.registry import ClassTable
from onnxprune.errors import UsageError
from onnxprune.job import Job, Opened, open_model
from onnxprune.model import io
from onnxprune.patterns import parse_pattern
from onnxprune.patterns.pattern import Bools
from onnxprune.sparsity.select import Scored, level_of, select

Source = str | os.PathLike[str] | io.LoadedModel | Opened | Mapping[str, Array]

SOLVERS = ("auto", "mask", "sparsegpt", "obc")


class BasePruner:
    """The base of pruners, and one that prunes by itself with the criterion of its config.

    Parameters
    ----------
    config
        A dict of Neural Compressor's options, a `WeightPruningConfig`, or any object with such attributes;
        without local configs.
    modules
        Path of an .onnx file, what `onnxprune.load` returned, or `{name: array}` with arrays (outputs,
        inputs, ...). Never modified.
    data, samples, bindings, provider, memory, seed
        Of a model, as of `onnxprune.sparsify`: for criteria that look at gradients, and for the solver.
    loss
        Of which gradients are taken; as of `onnxprune.prune`.
    solver
        What makes up for the zeros of a model, where Neural Compressor trains: "mask" (nothing), "sparsegpt",
        "obc", or "auto": with data what `onnxprune.sparsify` takes, else mask.
    criteria
        Table of criteria; `CRITERIA` by default.

    Attributes
    ----------
    modules
        By name, the weights as they are now, zeros included; copies.
    config
        As it was read.
    masks
        By name, arrays of the weights' shapes: true where a weight stays.
    scores
        By name, what the criterion said last.
    pattern, scheduler, criterion
        Objects that divide weights into blocks, say how far a round goes, and score.
    current_sparsity_ratio
        Zeros that the masks make / weights of all modules.
    global_step
        Steps so far.
    start_step, end_step, pruning_frequency, target_sparsity_ratio, max_sparsity_ratio_per_op
        Of the config.
    skipped
        Layers of the model that are left alone, each with the reason.
    notes
        What a user should know about what was done or left out.

    Raises
    ------
    UsageError
        The config or the weights mean nothing.
    """

    of_heads: ClassVar[bool] = False

    def __init__(
        self,
        config: Config,
        modules: Source,
        data: Any = None,
        *,
        samples: int | None = None,
        bindings: Mapping[str, int] | None = None,
        provider: str = "auto",
        memory: float | None = None,
        seed: int = 0,
        loss: str = "auto",
        solver: str = "auto",
        criteria: ClassTable | None = None,
    ) -> None:
        if solver not in SOLVERS:
            raise UsageError(f"there is no solver {solver!r}", f"Known: {', '.join(SOLVERS)}.")
        self.config = read_pruner_config(config)
        if self.config.pattern == "head" and not self.of_heads:
            raise UsageError(
                "the pattern mha takes whole attention heads, which lie in several layers together",
                "Take HeadPruner, or get_pruner, which does.",
            )
        self.pattern = parse_pattern(self.config.pattern)
        self.notes: list[str] = [f"{name} is ignored: {why}" for name, why in self.config.ignored.items()]
        self._job = Job(
            data=data,
            samples=samples,
            bindings=dict(bindings or {}),
            provider=provider,
            memory=memory,
            seed=seed,
            loss=loss,
            attention="heads",
        )
        if solver == "auto":
            solver = "mask" if data is None or isinstance(modules, Mapping) else "auto"
        self._modules: Modules = self._opened(modules, solver)
        self.skipped = self._modules.skipped
        self.scheduler = get_scheduler(self.config)
        self.criterion: PruningCriterion = get_criterion(self.config, self._modules, criteria or CRITERIA)
        self._zeros: dict[str, Bools] = {
            name: np.zeros(grid.shape, bool) for name, grid in self._modules.grids.items()
        }
        self.global_step = 0
        self.start_step, self.end_step = self.config.start_step, self.config.end_step
        self.pruning_frequency = self.config.pruning_frequency
        self.target_sparsity_ratio = self.config.target_sparsity
        self.max_sparsity_ratio_per_op = self.config.max_sparsity_ratio_per_op
        self._check_target()
        if self.config.lock_init_sparsity:
            self._lock()

    def _opened(self, modules: Source, solver: str) -> Modules:
        if isinstance(modules, Mapping):
            made = ArrayModules(modules)
            for name, grid in list(made.grids.items()):
                why = self.pattern.refuses(grid)
                if why:
                    made.skipped[name] = f"the pattern {self.pattern.name} does not divide it: {why}"
                    del made.grids[name]
            if not made.grids:
                raise UsageError(
                    f"the pattern {self.pattern.name} divides none of the weights",
                    "\n".join(f"  {name}: {why}" for name, why in made.skipped.items()),
                )
            return made
        opened = modules
        if not isinstance(opened, Opened):
            opened = open_model(opened, self._job, calibrate=self._job.data is not None)
        self.notes += [note for note in opened.inputs.notes if note not in self.notes]
        return self._of_model(opened, solver)

    def _of_model(self, opened: Opened, solver: str) -> ModelModules:
        chosen = choose_layers(opened, self.config, self.pattern)
        return ModelModules(opened, self._job, chosen.layers, chosen.skipped, solver)

    def _check_target(self) -> None:
        if self.target_sparsity_ratio > self.pattern.most + 1e-9:
            raise UsageError(
                f"target_sparsity {self.target_sparsity_ratio:g} is above what the pattern {self.pattern.name} can "
                "reach",
                f"Ask for at most {self.pattern.most:g}, or take another pattern.",
            )

    def _lock(self) -> None:
        self._zeros = {name: self._modules.matrix(name) == 0 for name in self._modules.grids}
        self.scheduler.init_ratio = self.current_sparsity_ratio

    # -- what there is ---------------------------------------------------------------------------------------

    @property
    def modules(self) -> dict[str, Array]:
        """The weights as they are now."""
        return {name: array for name, array in self._modules.weights().items() if name in self._zeros}

    @property
    def model(self) -> ir.Model:
        """The model as it is now, a copy.

        Raises
        ------
        UsageError
            The pruner was given arrays.
        """
        if not isinstance(self._modules, ModelModules):
            raise UsageError("the pruner was given arrays, not a model", "pruner.modules has the arrays.")
        return self._modules.model

    @property
    def masks(self) -> dict[str, Bools]:
        """True where a weight stays, as the weights lie."""
        return {
            name: self._modules.laid(name, zeros.astype(np.float64)) == 0
            for name, zeros in self._zeros.items()
        }

    @property
    def scores(self) -> dict[str, Array]:
        """What the criterion said last."""
        return self.criterion.scores

    @property
    def current_sparsity_ratio(self) -> float:
        """Zeros that the masks make / weights of all modules."""
        return level_of(self._zeros)

    # -- steps -----------------------------------------------------------------------------------------------

    def check_is_pruned_step(self, step: int) -> bool:
        """Whether a round takes place at a step."""
        if not self.start_step <= step <= self.end_step:
            return False
        return (step - self.start_step) % self.pruning_frequency == 0

    def step(self, gradients: Iterable[Mapping[str, Array]] | None = None) -> bool:
        """One step: where a round is due, score, select, zero, and let the rest make up for it.

        Parameters
        ----------
        gradients
            Of the loss, batch by batch: arrays as the weights lie, by name. A model takes them on its own
            calibration samples.

        Returns
        -------
        bool
            Whether a round took place.

        Raises
        ------
        UsageError
            The criterion looks at gradients, and there are none.
        """
        due = self.check_is_pruned_step(self.global_step)
        if due:
            self.on_step_begin(self.global_step)
            self._collect(gradients)
            self.update_masks()
            self.criterion.on_after_optimizer_step()
        self.global_step += 1
        return due

    def on_step_begin(self, local_step: int) -> None:
        """Let the criterion begin a round."""
        self.criterion.on_step_begin()

    def _collect(self, gradients: Iterable[Mapping[str, Array]] | None) -> None:
        if gradients is None and not self.criterion.needs_gradients:
            return
        for batch in self._modules.gradients() if gradients is None else gradients:
            self.criterion.on_before_optimizer_step(batch)

    def update_masks(self) -> None:
        """Zero what the scores and the schedule say; see `onnxprune.sparsity.select`.

        Raises
        ------
        UsageError
            The criterion has no scores, or not of all modules.
        """
        level = self.scheduler.step()
        missing = [name for name in self._zeros if name not in self.scores]
        if missing:
            raise UsageError(
                f"the criterion has no scores of {missing[0]!r}",
                "It has to put an array of its shape into scores.",
            )
        scored = [
            Scored(name, self._modules.grids[name], self._modules.matrix(name, self.scores[name]), zeros)
            for name, zeros in self._zeros.items()
        ]
        self._zeros = select(
            scored,
            self.pattern,
            min(level, self.pattern.most),
            scope=self.config.pruning_scope,
            reduce=self.config.criterion_reduce_type,
            min_ratio=min(self.config.min_sparsity_ratio_per_op, level),
            max_ratio=self.max_sparsity_ratio_per_op,
        )
        self.mask_weights()

    def mask_weights(self) -> None:
        """Zero the weights that the masks say, and let the others make up for them."""
        self._modules.put(self._zeros)

    def get_sparsity_ratio(self) -> dict[str, float]:
        """Zeros that the masks make / weights, by name; `current_sparsity_ratio` is that of all together."""
        return {name: float(zeros.mean()) for name, zeros in self._zeros.items()}

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.config.pruning_type} {self.pattern.name}, {len(self._zeros)} modules, "
            f"step {self.global_step}, sparsity {self.current_sparsity_ratio:.3f})"
        )


class BasicPruner(BasePruner):
    """Neural Compressor's pruner for criteria of weights: `BasePruner` does all of it already."""


class PatternLockPruner(BasePruner):
    """Zeros that are there stay, and none are added: `pruning_type` "pattern_lock"."""

    def __init__(self, config: Config, modules: Source, data: Any = None, **options: Any) -> None:
        read = read_pruner_config(config)
        super().__init__(
            replace(read, pattern="1x1", criterion_type="magnitude", lock_init_sparsity=True),
            modules,
            data,
            **options,
        )

    def update_masks(self) -> None:
        """Nothing but the zeros that there are."""
        self.scheduler.step()
        self.mask_weights()
