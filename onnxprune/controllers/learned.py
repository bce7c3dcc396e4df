"""RB and movement sparsity with NNCF's names: learned on calibration samples, with frozen weights."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from onnxprune.choosing.evidence import Evidence
from onnxprune.controllers.nncf import MOVEMENT, RB
from onnxprune.controllers.schedules import CompressionScheduler
from onnxprune.controllers.sparse_config import LOCAL
from onnxprune.controllers.sparsity import BaseSparsityAlgoController
from onnxprune.criteria.binary import sigmoid
from onnxprune.errors import UnsupportedError, UsageError
from onnxprune.patterns import Element
from onnxprune.patterns.pattern import Bools
from onnxprune.report.statistics import MovementSparsityStatistics, RBSparsityStatistics
from onnxprune.sparsity.choices import Sparsity
from onnxprune.sparsity.movement import LOWEST, Moved, learn_movement
from onnxprune.sparsity.rb import learn_logits
from onnxprune.sparsity.select import Scored, select
from onnxprune.sparsity.structure import resolve


class RBSparsityController(BaseSparsityAlgoController):
    """NNCF's regularised binary sparsity: logits of masks are learned for every level.

    The weights whose masks are least probable go, exactly as many as asked for. NNCF's inference mask,
    `sigmoid(s) > 0.5`, has the same order and stops wherever the loss has led: `inference_level` says where.
    In local mode every layer has the same level.

    Attributes
    ----------
    loss
        Of outputs, as everywhere; `density_loss` is the regularisation.
    """

    name = RB

    def _begin(self) -> None:
        _need_data(self, "masks are learned")
        self._logits: dict[str, Any] = {}
        super()._begin()

    def _chosen(self) -> dict[str, Bools]:
        if not self._asked:
            self._logits = {}
            return {layer.name: np.zeros(layer.grid.shape, bool) for layer in self._layers}
        found = learn_logits(self._layers, Element(), _seen(self).differentiation, self._asked)
        self._logits = dict(found.logits)
        self.note(found.sentence("weights"))
        scored = [Scored(layer.name, layer.grid, self._logits[layer.name]) for layer in self._layers]
        scope = "local" if self.config.mode == LOCAL else "global"
        return select(scored, Element(), self._asked, scope=scope)

    @property
    def mean_sparse_prob(self) -> float:
        """`1 - mean(sigmoid(s))` over the weights: how probable it is that one is zeroed."""
        _ = self.zeros
        if not self._logits:
            return 0.0
        size = sum(logits.size for logits in self._logits.values())
        return float(1.0 - sum(float(sigmoid(logits).sum()) for logits in self._logits.values()) / size)

    @property
    def inference_level(self) -> float:
        """Share of the weights that NNCF's inference mask, `sigmoid(s) > 0.5`, makes zero."""
        _ = self.zeros
        size = sum(layer.grid.size for layer in self._layers)
        return sum(int((logits <= 0).sum()) for logits in self._logits.values()) / size

    @property
    def density_loss(self) -> float:
        """`((expected density - (1 - level)) / 0.05)^2`."""
        return float((((1.0 - self.mean_sparse_prob) - (1.0 - self._asked)) / 0.05) ** 2)

    def statistics(self, quickly_collected_only: bool = False) -> RBSparsityStatistics:
        """How sparse the model is; masks are learned first where they were not yet."""
        return RBSparsityStatistics(self._model_statistics(), self._asked, self.mean_sparse_prob)


class MovementPolynomialThresholdScheduler(CompressionScheduler):
    """NNCF's schedule of movement sparsity: nothing, then a threshold that rises with a power, then frozen.

    Parameters
    ----------
    warmup_start_epoch, warmup_end_epoch
        Between these the threshold rises.
    final_threshold
        Of the importance.
    power
        Of the curve.
    """

    def __init__(
        self,
        controller: MovementSparsityController | None,
        warmup_start_epoch: int,
        warmup_end_epoch: int,
        final_threshold: float,
        power: float,
    ) -> None:
        super().__init__(controller, 0.0, 1.0)
        self._movement = controller
        self.warmup_start_epoch, self.warmup_end_epoch = warmup_start_epoch, warmup_end_epoch
        self.final_importance_threshold, self.power = final_threshold, power

    def level_at(self, epoch: int) -> float:
        """How far the threshold has risen, 0 to 1: `1 - (1 - p)^power`."""
        if epoch < self.warmup_start_epoch:
            return 0.0
        span = self.warmup_end_epoch - self.warmup_start_epoch
        progress = min(1.0, (epoch - self.warmup_start_epoch) / span)
        return float(1.0 - (1.0 - progress) ** self.power)

    def _set(self) -> None:
        if self._movement is not None:
            early = self.current_epoch < self.warmup_start_epoch
            self._movement.set_rise(None if early else self.current_level)

    def epoch_step(self, next_epoch: int | None = None) -> None:
        """Begin an epoch; the controller is frozen behind the last one of the warm-up."""
        super().epoch_step(next_epoch)
        if self.current_epoch >= self.warmup_end_epoch and self._controller is not None:
            self._controller.freeze()


class MovementSparsityController(BaseSparsityAlgoController):
    """NNCF's movement sparsity: importance accumulates on calibration samples, and a threshold on it rises.

    Importance is learned once, in as many passes as there are epochs up to `warmup_end_epoch`; the epochs of
    the scheduler then only move the threshold. There is no level to be set: `set_importance_threshold` sets a
    threshold.

    Attributes
    ----------
    importance_threshold
        Weights with no more importance are zero; minus infinity while warming up.
    """

    name = MOVEMENT

    def _begin(self) -> None:
        _need_data(self, "importance is learned")
        own = self.config.options
        self._pattern = _pattern(own["structures"])
        self._moved: Moved | None = None
        self.importance_threshold = -math.inf
        self._structured: dict[str, tuple[int, int]] | None = None
        self._target = 1.0
        if own["power"] != 3.0:
            self.note("power 3 is what importance is learned with; another one only moves the threshold")
        self._scheduler = MovementPolynomialThresholdScheduler(
            self,
            own["warmup_start_epoch"],
            own["warmup_end_epoch"],
            own["final_importance_threshold"],
            own["power"],
        )
        self._set_all(0.0)

    def set_level(self, level: float) -> None:
        """How far the threshold has risen, 0 to 1; 0 is before it does."""
        self.set_rise(level if level > 0 else None)

    def set_rise(self, rise: float | None) -> None:
        """For the scheduler: how far the threshold has risen, 0 to 1; None while warming up."""
        if self.frozen:
            return
        final = float(self.config.options["final_importance_threshold"])
        if rise is None:
            self.importance_threshold = -math.inf
        else:
            start = min(self._start(), final) if rise < 1 else final
            self.importance_threshold = final - (final - start) * (1.0 - rise)
        self._set_all(rise or 0.0)
        self._changed()

    def set_importance_threshold(self, threshold: float) -> None:
        """Let weights with no more importance than this be zero."""
        if math.isnan(threshold):
            raise UsageError("the importance threshold is not a number", "Give a number, such as 0.")
        self.importance_threshold = float(threshold)
        self._set_all(1.0 if threshold > -math.inf else 0.0)
        self._changed()

    def set_sparsity_level(
        self, sparsity_level: float, layer: object = None, run_batchnorm_adaptation: bool = False
    ) -> None:
        """Refused: a threshold decides.

        Raises
        ------
        UsageError
            Always.
        """
        raise UsageError(
            "movement_sparsity has a threshold on the importance and no level",
            'Call set_importance_threshold, or onnxprune.sparsify(criterion="movement", sparsity=...).',
        )

    @property
    def importance(self) -> dict[str, Any]:
        """By the weight's name, (outputs, columns): to every weight the importance of its block."""
        return dict(self._learned().importance)

    @property
    def structured(self) -> dict[str, tuple[int, int]] | None:
        """By the name of a group, units that lost all of their weights, and units in all.

        None before the threshold is final, or without `enable_structured_masking`.
        """
        _ = self.zeros
        return self._structured

    def _start(self) -> float:
        """Where the threshold begins to rise."""
        given = self.config.options["init_importance_threshold"]
        if given is not None:
            return float(given)
        row = np.concatenate([each.ravel() for each in self._learned().importance.values()])
        return float(np.quantile(row, LOWEST))

    def _learned(self) -> Moved:
        if self._moved is None:
            own = self.config.options
            asked = Sparsity(
                level=0.0,
                pattern=self._pattern,
                criterion="movement",
                rounds=max(own["warmup_end_epoch"], 1),
                threshold=float(own["final_importance_threshold"]),
                regularization=float(own["importance_regularization_factor"]),
            )
            gone = {layer.name: np.zeros(layer.grid.shape, bool) for layer in self._layers}
            differentiation = _seen(self).differentiation
            self._moved = learn_movement(self._layers, asked.shape, differentiation, asked, "global", gone)
        return self._moved

    def _chosen(self) -> dict[str, Bools]:
        if self.importance_threshold == -math.inf:
            return {layer.name: np.zeros(layer.grid.shape, bool) for layer in self._layers}
        found = {name: each <= self.importance_threshold for name, each in self._learned().importance.items()}
        self._structured = None
        if self._asked < 1 or not self.config.options["enable_structured_masking"]:
            return found
        if self._pattern == "element":
            self.note(
                "structured masking was left out: it resolves blocks and rows, and the structure is fine"
            )
            return found
        analysis = self.opened.analysis
        zeros, units = resolve(analysis, self._layers, found)
        self._structured = {
            analysis.groups[name].name: (int(flags.sum()), len(flags)) for name, flags in units.items()
        }
        return zeros

    def statistics(self, quickly_collected_only: bool = False) -> MovementSparsityStatistics:
        """How sparse the model is, the threshold, and the factor of the penalty on importance."""
        factor = float(self.config.options["importance_regularization_factor"])
        return MovementSparsityStatistics(self._model_statistics(), self.importance_threshold, factor)


def _need_data(controller: BaseSparsityAlgoController, what: str) -> None:
    if controller.job.data is None:
        raise UsageError(
            f"{controller.name}: {what} on samples, and there is no data",
            'Give data=... (data="synthetic" generates samples), or take magnitude_sparsity.',
        )


def _seen(controller: BaseSparsityAlgoController) -> Evidence:
    evidence = controller._seen()
    if evidence is None:
        raise UsageError(
            f"{controller.name} looks at samples, and onnxruntime cannot run the model as it is",
            "Take magnitude_sparsity, which looks at weights alone.",
        )
    return evidence


def _pattern(structures: tuple[Any, ...]) -> str:
    """The pattern that NNCF's `sparse_structure_by_scopes` asks for."""
    found = {_one(each) for each in structures} or {"element"}
    if len(found) > 1:
        raise UnsupportedError(
            f"sparse_structure_by_scopes asks for several structures: {', '.join(sorted(found))}",
            "Give one for all layers, and leave others out with ignored_scopes.",
        )
    return found.pop()


def _one(structure: Any) -> str:
    mode = structure.get("mode", "fine") if isinstance(structure, dict) else None
    if mode == "fine":
        return "element"
    if mode == "block":
        rows, columns = structure.get("sparse_factors", (32, 32))
        return f"{rows}x{columns}"
    if mode == "per_dim":
        return "1xchannel" if structure.get("axis", 0) == 0 else "channelx1"
    raise UsageError(
        f"movement_sparsity: a sparse structure is {structure!r}",
        "Give a mode: fine, block with sparse_factors, or per_dim with an axis.",
    )
