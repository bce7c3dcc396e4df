"""Neural Compressor's schedules as objects.

Round i of n asks for the share `r_i`, with r_0 what was zero before and R the target, at most what a layer
may lose: exp `1 - (1 - r_0) ((1 - R) / (1 - r_0))^(i / n)`, linear `r_0 + (R - r_0) i / n`, cos `r_0 + (R -
r_0) (1 - cos(pi/2 i / n))`, cube `r_0 + (R - r_0) (i / n)^3`. One shot asks for R at once.
"""

from __future__ import annotations

from typing import Any

from onnxprune.allocate.schedule import find_schedule
from onnxprune.controllers.inc import PrunerConfig
from onnxprune.controllers.resumable import Resumable


class PruningScheduler(Resumable):
    """The base: counts rounds.

    Parameters
    ----------
    config
        Of the pruner.

    Attributes
    ----------
    completed
        Rounds that have been asked for.
    rounds
        n: the last round that reaches the target; there are n + 1 of them, as the first asks for what there
        is.
    init_ratio
        r_0.
    """

    def __init__(self, config: PrunerConfig) -> None:
        self.config = config
        self.completed = 0
        self.init_ratio = 0.0
        self.rounds = (config.end_step - config.start_step) // config.pruning_frequency

    @property
    def target(self) -> float:
        """R: the target, at most what a layer may lose."""
        return min(self.config.target_sparsity, self.config.max_sparsity_ratio_per_op)

    @property
    def current_level(self) -> float:
        """What the last round asked for; before the first, what there was."""
        if not self.completed:
            return self.init_ratio
        return self.level_at(self.completed - 1)

    def level_at(self, number: int) -> float:
        """What a round asks for, counted from 0."""
        return self.update_sparsity_ratio(self.target, number, self.rounds, None, self.init_ratio)

    def step(self) -> float:
        """Begin a round, and say what it asks for."""
        self.completed += 1
        return self.current_level

    def epoch_step(self) -> float:
        """As `step`."""
        return self.step()

    def update_sparsity_ratio(
        self,
        target_ratio: float,
        current_prune_step: int,
        total_prune_steps: int,
        masks: Any = None,
        init_ratio: float = 0.0,
    ) -> float:
        """What a round asks for, under Neural Compressor's name; masks are not looked at."""
        raise NotImplementedError

    def get_state(self) -> dict[str, Any]:
        """Plain values from which `load_state` goes on."""
        return {"completed": self.completed, "init_ratio": self.init_ratio}


class OneshotScheduler(PruningScheduler):
    """The target at once."""

    def update_sparsity_ratio(
        self,
        target_ratio: float,
        current_prune_step: int,
        total_prune_steps: int,
        masks: Any = None,
        init_ratio: float = 0.0,
    ) -> float:
        """The target, at most what a layer may lose."""
        return min(target_ratio, self.config.max_sparsity_ratio_per_op)


class IterativeScheduler(PruningScheduler):
    """Round by round along the curve `sparsity_decay_type`."""

    def update_sparsity_ratio(
        self,
        target_ratio: float,
        current_prune_step: int,
        total_prune_steps: int,
        masks: Any = None,
        init_ratio: float = 0.0,
    ) -> float:
        """The curve's share."""
        most = min(target_ratio, self.config.max_sparsity_ratio_per_op)
        if total_prune_steps < 1 or current_prune_step >= total_prune_steps or init_ratio >= most:
            return most
        if current_prune_step <= 0:
            return init_ratio
        curve = find_schedule(self.config.sparsity_decay_type).function
        return min(float(curve(current_prune_step / total_prune_steps, init_ratio, most)), most)


def get_scheduler(config: PrunerConfig) -> PruningScheduler:
    """One shot where start and end are the same step, else iterative."""
    one_shot = config.start_step == config.end_step
    return OneshotScheduler(config) if one_shot else IterativeScheduler(config)
