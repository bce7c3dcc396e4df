"""NNCF's schedulers of filter pruning.

Epochs e are counted from 0 behind the warm-up, T = steps - 1, i is the initial level and t the target:

=====================  ==============================================================
baseline               `t`
exponential            `min(t, 1 - (1 - i) ((1 - t) / (1 - i))^(e / T))`
exponential_with_bias  `a exp(-k e) + b`: i at 0, 3/4 t at T/8, t at T
=====================  ==============================================================
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from onnxprune.allocate.schedule import exponential, exponential_with_bias
from onnxprune.controllers.schedules import CompressionScheduler, Leveled


@dataclass(frozen=True)
class Spans:
    """Epochs of a pruning schedule: `warm_up` ones at the initial level, then `steps` ones."""

    warm_up: int = 0
    steps: int = 100


class PruningScheduler(CompressionScheduler):
    """Of filter pruning: the initial level while warming up, then a curve, then frozen.

    Parameters
    ----------
    spans
        NNCF's `num_init_steps` and `pruning_steps`.
    """

    def __init__(
        self, controller: Leveled | None, initial_level: float, target_level: float, spans: Spans = Spans()
    ) -> None:
        super().__init__(controller, initial_level, target_level)
        self.num_warmup_epochs, self.num_pruning_epochs = spans.warm_up, spans.steps

    @property
    def freeze_epoch(self) -> int:
        """From here on nothing changes any more."""
        return self.num_warmup_epochs + self.num_pruning_epochs

    def level_at(self, epoch: int) -> float:
        """The initial level while warming up, the curve's afterwards."""
        if epoch < self.num_warmup_epochs:
            return self.initial_level
        return self._curve(min(1.0, self._progress(epoch - self.num_warmup_epochs)))

    def _progress(self, epoch: int) -> float:
        last = self.num_pruning_epochs - 1
        return epoch / last if last > 0 else 1.0

    def _curve(self, progress: float) -> float:
        raise NotImplementedError

    def epoch_step(self, next_epoch: int | None = None) -> None:
        """Begin an epoch, and freeze the controller behind the last one."""
        super().epoch_step(next_epoch)
        if self.current_epoch >= self.freeze_epoch and self._controller is not None:
            self._controller.freeze()


class BaselinePruningScheduler(PruningScheduler):
    """The target, all at once."""

    def _curve(self, progress: float) -> float:
        return self.target_level


class ExponentialPruningScheduler(PruningScheduler):
    """The same share of what is left each time."""

    def _curve(self, progress: float) -> float:
        if progress >= 1 or self.initial_level >= self.target_level:
            return self.target_level
        return min(exponential(progress, self.initial_level, self.target_level), self.target_level)


class ExponentialWithBiasPruningScheduler(PruningScheduler):
    """Three quarters of the target after an eighth of the epochs.

    Raises
    ------
    UsageError
        The initial level is not below three quarters of the target.
    """

    def __init__(
        self, controller: Leveled | None, initial_level: float, target_level: float, spans: Spans = Spans()
    ) -> None:
        super().__init__(controller, initial_level, target_level, spans)
        exponential_with_bias(0.5, initial_level, target_level)  # refuses a start that is too high

    def _curve(self, progress: float) -> float:
        if progress >= 1:
            return self.target_level
        return min(exponential_with_bias(progress, self.initial_level, self.target_level), self.target_level)


PRUNING_SCHEDULERS: Mapping[str, type[PruningScheduler]] = {
    "baseline": BaselinePruningScheduler,
    "exponential": ExponentialPruningScheduler,
    "exponential_with_bias": ExponentialWithBiasPruningScheduler,
}
