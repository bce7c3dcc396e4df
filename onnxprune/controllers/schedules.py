"""Schedulers as objects: the base of NNCF's, a dummy that changes nothing, and those of sparsity.

The curves are those of `onnxprune.allocate.schedule`. NNCF counts epochs e from 0. With i the initial level,
t the target, and p = e / target epoch, at most 1:

====================  =====================================================================================
polynomial            concave `t - (t - i) (1 - p)^power`, convex `i + (t - i) p^power`
exponential           `1 - (1 - i) ((1 - t) / (1 - i))^p`
adaptive              a step up after `patience` epochs in which the model was as sparse as asked for
multistep             the level behind the last of the steps that has passed
====================  =====================================================================================

An epoch here is a round: the level is set, and the model recalibrated, once.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from onnxprune.allocate.schedule import exponential, polynomial
from onnxprune.controllers.resumable import Resumable
from onnxprune.errors import UsageError


class Leveled(Protocol):
    """What a scheduler drives."""

    def set_level(self, level: float) -> None:
        """Compress to a level."""
        ...

    def freeze(self) -> None:
        """Let the level stay as it is from now on."""
        ...

    @property
    def level(self) -> float:
        """What was reached."""
        ...


class CompressionScheduler(Resumable):
    """Counts steps and epochs; the base of all schedulers, and by itself one that changes nothing.

    Parameters
    ----------
    controller
        What is driven; mutated by `epoch_step` and `step`.
    initial_level, target_level
        Where the schedule starts, and where it ends.

    Attributes
    ----------
    current_step, current_epoch
        -1 before the first.
    """

    def __init__(self, controller: Leveled | None, initial_level: float, target_level: float) -> None:
        self._controller = controller
        self.initial_level, self.target_level = float(initial_level), float(target_level)
        self.current_step = -1
        self.current_epoch = -1

    @property
    def current_level(self) -> float:
        """What the schedule asks of the current epoch; before the first one, the initial level."""
        return self.initial_level if self.current_epoch < 0 else self.level_at(self.current_epoch)

    @property
    def current_pruning_level(self) -> float:
        """`current_level`, as NNCF's schedulers of filter pruning call it."""
        return self.current_level

    @property
    def current_sparsity_level(self) -> float:
        """`current_level`, as NNCF's schedulers of sparsity call it."""
        return self.current_level

    def level_at(self, epoch: int) -> float:
        """What the schedule asks of an epoch, counted from 0."""
        raise NotImplementedError

    def step(self, next_step: int | None = None) -> None:
        """Begin a step. Nothing here happens within epochs, so only the number is kept.

        Parameters
        ----------
        next_step
            Its number; by default one more than the last.
        """
        self.current_step = self.current_step + 1 if next_step is None else next_step

    def epoch_step(self, next_epoch: int | None = None) -> None:
        """Begin an epoch: the controller is mutated to the level that the schedule asks of it.

        Parameters
        ----------
        next_epoch
            Its number; by default one more than the last.
        """
        self.current_epoch = self.current_epoch + 1 if next_epoch is None else next_epoch
        self._set()

    def _set(self) -> None:
        if self._controller is not None:
            self._controller.set_level(self.current_level)

    def get_state(self) -> dict[str, Any]:
        """Plain values from which `load_state` goes on."""
        return {"current_step": self.current_step, "current_epoch": self.current_epoch}


class StubCompressionScheduler(CompressionScheduler):
    """A dummy that changes nothing: what `disable_scheduler` leaves, and what per-layer levels go with.

    Parameters
    ----------
    level
        What is reported as the current and the target level.
    """

    def __init__(self, level: float = 0.0) -> None:
        super().__init__(None, level, level)

    def level_at(self, epoch: int) -> float:
        """The level that was there."""
        return self.target_level


class SparsityScheduler(CompressionScheduler):
    """Of sparsity: a curve up to a target epoch; frozen from another epoch on.

    Parameters
    ----------
    target_epoch, freeze_epoch
        NNCF's `sparsity_target_epoch` and `sparsity_freeze_epoch`.
    """

    def __init__(
        self,
        controller: Leveled | None,
        initial_level: float,
        target_level: float,
        target_epoch: int = 90,
        freeze_epoch: int = 100,
    ) -> None:
        super().__init__(controller, initial_level, target_level)
        self.target_epoch, self.freeze_epoch = target_epoch, freeze_epoch

    def epoch_step(self, next_epoch: int | None = None) -> None:
        """Begin an epoch, and freeze the controller from the last one on."""
        super().epoch_step(next_epoch)
        if self.current_epoch >= self.freeze_epoch and self._controller is not None:
            self._controller.freeze()

    def _progress(self, epoch: float) -> float:
        return min(1.0, epoch / self.target_epoch) if self.target_epoch > 0 else 1.0


class PolynomialSparsityScheduler(SparsityScheduler):
    """NNCF's polynomial decay.

    Parameters
    ----------
    power, concave
        Of the curve.
    steps_per_epoch
        With it, the level also moves within epochs, at every `step` (`update_per_optimizer_step`).
    """

    def __init__(
        self,
        controller: Leveled | None,
        initial_level: float,
        target_level: float,
        target_epoch: int = 90,
        freeze_epoch: int = 100,
        *,
        power: float = 0.9,
        concave: bool = True,
        steps_per_epoch: int | None = None,
    ) -> None:
        super().__init__(controller, initial_level, target_level, target_epoch, freeze_epoch)
        self.power, self.concave, self.steps_per_epoch = power, concave, steps_per_epoch
        self.steps_in_epoch = 0

    def level_at(self, epoch: int) -> float:
        """The curve's."""
        within = self.steps_in_epoch / self.steps_per_epoch if self.steps_per_epoch else 0.0
        progress = self._progress(epoch + min(within, 1.0))
        return polynomial(
            progress, self.initial_level, self.target_level, power=self.power, concave=self.concave
        )

    def epoch_step(self, next_epoch: int | None = None) -> None:
        """Begin an epoch."""
        self.steps_in_epoch = 0
        super().epoch_step(next_epoch)

    def step(self, next_step: int | None = None) -> None:
        """Begin a step; where the level moves within epochs, the controller is mutated."""
        super().step(next_step)
        if self.steps_per_epoch and self.current_epoch >= 0:
            self._set()
            self.steps_in_epoch += 1

    def get_state(self) -> dict[str, Any]:
        """With the steps of the current epoch."""
        return {**super().get_state(), "steps_in_epoch": self.steps_in_epoch}


class ExponentialSparsityScheduler(SparsityScheduler):
    """The same share of what is left each time."""

    def level_at(self, epoch: int) -> float:
        """The curve's."""
        progress = self._progress(epoch)
        if progress >= 1 or self.initial_level >= self.target_level:
            return self.target_level
        return min(exponential(progress, self.initial_level, self.target_level), self.target_level)


class AdaptiveSparsityScheduler(SparsityScheduler):
    """One decay step up after `patience` epochs in which the model was as sparse as asked for.

    Parameters
    ----------
    decay_step, eps
        How far a step goes, and by how much the model may fall short of what was asked for (NNCF's `step`,
        `eps`).
    patience
        Epochs that have to be good before the next step.
    """

    def __init__(
        self,
        controller: Leveled | None,
        initial_level: float,
        target_level: float,
        target_epoch: int = 90,
        freeze_epoch: int = 100,
        *,
        decay_step: float = 0.05,
        eps: float = 0.03,
        patience: int = 1,
    ) -> None:
        super().__init__(controller, initial_level, target_level, target_epoch, freeze_epoch)
        self.decay_step, self.eps, self.patience = decay_step, eps, patience
        self.num_bad_epochs = 0
        self.asked = self.initial_level

    def level_at(self, epoch: int) -> float:
        """What is asked for now; a level of another epoch cannot be known."""
        return min(self.asked, self.target_level)

    def epoch_step(self, next_epoch: int | None = None) -> None:
        """Begin an epoch: count whether the last level was reached, and step up where it was often enough."""
        if self._controller is not None and self._controller.level >= self.asked - self.eps:
            self.num_bad_epochs += 1
        if self.num_bad_epochs >= self.patience:
            self.num_bad_epochs = 0
            self.asked = min(self.asked + self.decay_step, self.target_level)
        super().epoch_step(next_epoch)

    def get_state(self) -> dict[str, Any]:
        """With what was asked for, and for how long it has been reached."""
        return {**super().get_state(), "num_bad_epochs": self.num_bad_epochs, "asked": self.asked}


class MultiStepSparsityScheduler(SparsityScheduler):
    """A table: level k holds from step k on.

    Parameters
    ----------
    steps
        Epochs, ascending.
    levels
        One more than steps: the first holds before the first step.

    Raises
    ------
    UsageError
        The lengths do not fit, or the levels are out of range.
    """

    def __init__(
        self,
        controller: Leveled | None,
        steps: Sequence[int] = (90,),
        levels: Sequence[float] = (0.1, 0.5),
        freeze_epoch: int = 100,
    ) -> None:
        if len(levels) != len(steps) + 1:
            raise UsageError(
                f"multistep_sparsity_levels has {len(levels)} levels for {len(steps)} multistep_steps",
                "Give one level more than steps: the first holds before the first step.",
            )
        if any(not 0 <= level < 1 for level in levels):
            raise UsageError(f"multistep_sparsity_levels are {list(levels)}", "Give levels in [0, 1).")
        super().__init__(controller, levels[0], levels[-1], 0, freeze_epoch)
        self.steps, self.levels = tuple(sorted(steps)), tuple(float(level) for level in levels)

    def level_at(self, epoch: int) -> float:
        """The table's."""
        return self.levels[bisect_right(self.steps, epoch)]


SPARSITY_SCHEDULERS: Mapping[str, type[SparsityScheduler]] = {
    "polynomial": PolynomialSparsityScheduler,
    "exponential": ExponentialSparsityScheduler,
    "adaptive": AdaptiveSparsityScheduler,
    "multistep": MultiStepSparsityScheduler,
}
