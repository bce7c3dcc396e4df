"""Neural Compressor's criteria as objects, over the functions of `onnxprune.criteria.weights`.

With W the weight, G_b the gradient of the loss of batch b, G the sum of these over the batches of one round:

========================  ===================================================================================
MagnitudeCriterion        `|W|`
GradientCriterion         `|G|`
SnipCriterion             `|W G|`
SnipMomentumCriterion     `S <- 0.9 S + 1.0 |W G_b|`, from batch to batch and from round to round
SnipMomentumBlock-        the same of `|dL_b/dm|`, m one mask value for each block of the pattern
Criterion
RetrainFreeCriterion      `S <- S + (dL_b/dm)^2`: the diagonal of the Fisher information of the masks
WandaCriterion            `|W_ij| sqrt(E[x_j^2])`; not Neural Compressor's
========================  ===================================================================================

What differs from the original: there is no `framework`; gradients come from the calibration samples of a
model, or are given to `on_before_optimizer_step`; scores are arrays of the weights' shapes. Higher is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np

from onnxprune.controllers.inc import Config, PrunerConfig, read_pruner_config
from onnxprune.controllers.modules import Array, ArrayModules, Modules
from onnxprune.controllers.registry import ClassTable
from onnxprune.criteria.weights import (
    Blocks,
    WeightCriterion,
    WeightCriterionTable,
    Weights,
    default_weight_criteria,
    find_weight_criterion,
)
from onnxprune.patterns import parse_pattern


class PruningCriterion:
    """The base of criteria.

    A criterion of your own says what `on_step_begin` or `on_before_optimizer_step` make of `scores`.

    Parameters
    ----------
    modules
        `{name: array}`, or the modules of a pruner.
    config
        Of the pruner: a dict, a `WeightPruningConfig`, or what a pruner has.

    Attributes
    ----------
    scores
        By name, arrays of the weights' shapes; empty before anything was scored.
    """

    needs_gradients: ClassVar[bool] = False

    def __init__(self, modules: Modules | Mapping[str, Array], config: Config = None) -> None:
        self.modules = ArrayModules(modules) if isinstance(modules, Mapping) else modules
        self.config: PrunerConfig = read_pruner_config(config)
        self.pattern = parse_pattern(self.config.pattern)
        self.scores: dict[str, Array] = {}

    def on_step_begin(self) -> None:
        """Called when a round begins."""

    def on_before_optimizer_step(self, gradients: Mapping[str, Array] | None = None) -> None:
        """Called with the gradients of one batch, by name, as the weights lie."""

    def on_after_optimizer_step(self) -> None:
        """Called when the weights of a round have changed."""


class WeightCriterionAdapter(PruningCriterion):
    """A criterion of `onnxprune.criteria.weights` as an object.

    Attributes
    ----------
    kind
        Its name there.
    carries
        Whether what gradients left behind is carried from one round to the next.
    """

    kind: ClassVar[str] = ""
    carries: ClassVar[bool] = False

    def __init__(self, modules: Modules | Mapping[str, Array], config: Config = None) -> None:
        super().__init__(modules, config)
        self._criterion = self._found()
        self._folded: dict[str, Array] = {}
        self._blocks = {name: Blocks(self.pattern, grid) for name, grid in self.modules.grids.items()}

    def _found(self) -> WeightCriterion:
        return find_weight_criterion(self.kind, self.pattern, TABLE)

    @property
    def needs_gradients(self) -> bool:  # type: ignore[override]
        """Whether it has no scores before `on_before_optimizer_step`."""
        return self._criterion.fold is not None

    def on_step_begin(self) -> None:
        """Score, or forget the gradients of the last round where they are not carried on."""
        if self._criterion.fold is not None:
            if not self.carries:
                self._folded = {}
        elif self._criterion.inputs:
            found = self.modules.by_inputs(self._criterion)
            self.scores = {name: self.modules.laid(name, scores) for name, scores in found.items()}
        else:
            self._score()

    def on_before_optimizer_step(self, gradients: Mapping[str, Array] | None = None) -> None:
        """Take the gradients of one batch in."""
        fold = self._criterion.fold
        if fold is None or gradients is None:
            return
        for name in self.modules.grids:
            weight, gradient = self.modules.matrix(name), self.modules.gradient(name, gradients[name])
            state = self._folded.get(name, np.zeros(()))
            self._folded[name] = fold(state, weight, gradient, self._blocks[name])
        self._score()

    def _score(self) -> None:
        for name in self.modules.grids:
            seen = Weights(self.modules.matrix(name), None, self._folded.get(name))
            self.scores[name] = self.modules.laid(name, self._criterion.score(seen))


class MagnitudeCriterion(WeightCriterionAdapter):
    """The magnitude of every weight."""

    kind = "magnitude"


class GradientCriterion(WeightCriterionAdapter):
    """The magnitude of the gradient of the loss of all samples; weights are not looked at."""

    kind = "gradient"


class SnipCriterion(WeightCriterionAdapter):
    """The magnitude of weight times gradient (SNIP, https://arxiv.org/abs/1810.02340)."""

    kind = "snip"


class SnipMomentumCriterion(WeightCriterionAdapter):
    """SNIP with momentum over batches and rounds.

    Attributes
    ----------
    alpha, beta
        How much is kept of what was there, and how much is taken of what comes.
    """

    kind = "snip_momentum"
    carries = True
    alpha: float = 0.9
    beta: float = 1.0

    def _found(self) -> WeightCriterion:
        return _faded(super()._found(), lambda w, g, _: np.abs(w * g), self)


class SnipMomentumBlockCriterion(SnipMomentumCriterion):
    """The same with one score for each block of the pattern: the gradient of a mask value over the block."""

    kind = "snip_momentum_block"

    def _found(self) -> WeightCriterion:
        found = WeightCriterionAdapter._found(self)
        return _faded(found, lambda w, g, blocks: np.abs(blocks.sums(w * g)), self)


class RetrainFreeCriterion(WeightCriterionAdapter):
    """The empirical Fisher information of one mask value for each block (https://arxiv.org/abs/2204.09656).

    It accumulates over batches and rounds; weights do not move. The rearrangement that follows in the paper,
    of whole units, is that of `onnxprune.prune(criterion="retrain_free")`.

    Attributes
    ----------
    collected_grads
        By name, batch by batch: the gradient of every block's mask value.
    """

    kind = "retrain_free"
    carries = True

    def __init__(self, modules: Modules | Mapping[str, Array], config: Config = None) -> None:
        super().__init__(modules, config)
        self.collected_grads: dict[str, list[Array]] = {name: [] for name in self.modules.grids}

    def on_before_optimizer_step(self, gradients: Mapping[str, Array] | None = None) -> None:
        """Take the gradients of one batch in, and keep what they say of the masks."""
        super().on_before_optimizer_step(gradients)
        if gradients is None:
            return
        for name, grid in self.modules.grids.items():
            products = self.modules.matrix(name) * self.modules.gradient(name, gradients[name])
            self.collected_grads[name].append(self.pattern.reduce(products, grid, np.sum))


class WandaCriterion(WeightCriterionAdapter):
    """The magnitude of a weight times the root mean square of what it multiplies (Wanda)."""

    kind = "wanda"


def _faded(
    found: WeightCriterion, taken: Callable[[Array, Array, Blocks], Array], owner: SnipMomentumCriterion
) -> WeightCriterion:
    """The same criterion with the owner's factors, which may be changed at any time."""

    def fold(state: Array | float, w: Array, g: Array, blocks: Blocks) -> Array:
        return np.asarray(owner.alpha * state + owner.beta * taken(w, g, blocks))

    return WeightCriterion(
        found.name, found.function, found.source, fold=fold, scope=found.scope, in_blocks=found.in_blocks
    )


def _fisher(state: Array | float, w: Array, g: Array, blocks: Blocks) -> Array:
    return np.asarray(state + np.square(blocks.sums(w * g)))


def _as_folded(seen: Weights) -> Array:
    if seen.folded is None:
        raise ValueError("no gradients were given")
    return seen.folded


TABLE: WeightCriterionTable = default_weight_criteria() | {
    "retrain_free": WeightCriterion(
        "retrain_free", _as_folded, "Kwon et al. 2022", fold=_fisher, in_blocks=True
    )
}
"""The criteria of `onnxprune.criteria.weights`, and Fisher information of blocks."""

CRITERIA = ClassTable(
    "criterion",
    {
        "magnitude": MagnitudeCriterion,
        "gradient": GradientCriterion,
        "snip": SnipCriterion,
        "snip_momentum": SnipMomentumCriterion,
        "snip_momentum_block": SnipMomentumBlockCriterion,
        "retrain_free": RetrainFreeCriterion,
        "wanda": WandaCriterion,
    },
)
"""Criteria by the name that `criterion_type` and `pruning_type` take."""


def register_criterion(name: str, table: ClassTable | None = None) -> Callable[[type], type]:
    """A class decorator that puts a criterion into a table, by default `CRITERIA`, and gives it back."""
    return (CRITERIA if table is None else table).register(name)


def get_criterion(config: Any, modules: Any, table: ClassTable | None = None) -> PruningCriterion:
    """The criterion that a config names, made for these modules.

    Parameters
    ----------
    config
        A dict, a `WeightPruningConfig`, or what a pruner has; `criterion_type` decides, `pruning_type`
        without it.
    modules
        `{name: array}`, or the modules of a pruner.
    table
        `CRITERIA` by default.

    Raises
    ------
    UsageError
        There is no such criterion, or it does not go with the pattern.
    """
    read = read_pruner_config(config)
    found = (CRITERIA if table is None else table).find(read.criterion_type)
    return found(modules, read)  # type: ignore[no-any-return]
