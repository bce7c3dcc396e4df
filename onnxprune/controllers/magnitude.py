"""Magnitude and const sparsity with NNCF's names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from onnxprune.controllers.controller import CompressionController, Cut
from onnxprune.controllers.nncf import CONST, MAGNITUDE
from onnxprune.controllers.schedules import StubCompressionScheduler
from onnxprune.controllers.sparse_config import LOCAL
from onnxprune.controllers.sparsity import BaseSparsityAlgoController
from onnxprune.criteria.weights import find_weight_criterion
from onnxprune.errors import UsageError
from onnxprune.model import io
from onnxprune.patterns import Element
from onnxprune.patterns.pattern import Bools
from onnxprune.report.statistics import ConstSparsityStatistics, LayerThreshold, MagnitudeSparsityStatistics
from onnxprune.sparsity.rounds import zeros_of
from onnxprune.sparsity.scoring import Scorer
from onnxprune.sparsity.select import Scored, select


class MagnitudeSparsityController(BaseSparsityAlgoController):
    """NNCF's magnitude sparsity: the weights of least magnitude go, exactly as many as asked for.

    In global mode magnitudes of all layers are compared, each divided by its layer's norm with `normed_abs`.
    In local mode every layer has a level of its own: `set_sparsity_level(level, layer)`; there is no schedule
    then.
    """

    name = MAGNITUDE

    def _begin(self) -> None:
        self._levels: dict[str, float] = {}
        if self.config.mode == LOCAL:
            self._scheduler = StubCompressionScheduler(self.config.schedule.init)
            self.set_sparsity_level(self.config.schedule.init)
        else:
            super()._begin()

    def _scores(self) -> list[Scored]:
        criterion = find_weight_criterion(self.config.criterion, Element())
        return Scorer(self._layers, Element(), criterion).score({}, self._asked)

    def _chosen(self) -> dict[str, Bools]:
        scores = self._scores()
        if self.config.mode != LOCAL:
            return select(scores, Element(), self._asked, scope="global")
        found: dict[str, Bools] = {}
        for scored in scores:
            found |= select([scored], Element(), self._levels.get(scored.name, self._asked), scope="local")
        return found

    def _set_all(self, level: float) -> None:
        self._levels = {}
        super()._set_all(level)

    def _set_one(self, layer: object, level: float) -> None:
        if self.config.mode != LOCAL:
            raise UsageError(
                "in global mode there is one level for all layers",
                "Leave the layer out, or set sparsity_level_setting_mode to local.",
            )
        self._levels[self._layer(layer).name] = level
        self._zeros = None

    def get_state(self) -> dict[str, Any]:
        """With the levels of layers, where these were set."""
        return {**super().get_state(), "layers": dict(self._levels)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from where `get_state` was asked."""
        super().load_state({name: value for name, value in state.items() if name != "layers"})
        for name, level in state.get("layers", {}).items():
            self.set_sparsity_level(level, name)

    def statistics(self, quickly_collected_only: bool = False) -> MagnitudeSparsityStatistics:
        """How sparse the model is, and the magnitudes that decided. All of it is quick."""
        highest = {scored.name: self._threshold(scored) for scored in self._scores()}
        if self.config.mode != LOCAL:
            highest = dict.fromkeys(highest, max(highest.values()))
        thresholds = [LayerThreshold(layer.label, highest[layer.name]) for layer in self._layers]
        target = None if self.config.mode == LOCAL else self.requested
        return MagnitudeSparsityStatistics(self._model_statistics(), thresholds, target)

    def _threshold(self, scored: Scored) -> float:
        """The largest importance that went; 0 where none did."""
        gone = scored.scores[self.zeros[scored.name]]
        return float(gone.max()) if gone.size else 0.0


class ConstSparsityController(BaseSparsityAlgoController):
    """NNCF's const sparsity: weights that are zero stay zero through everything, and none are added."""

    name = CONST

    def _begin(self) -> None:
        self._scheduler = StubCompressionScheduler(0.0)
        self._set_all(0.0)
        self._target = self._asked = self.level
        self._first = {layer.name: layer.flags(self.zeros[layer.name]) for layer in self._layers}

    def _chosen(self) -> dict[str, Bools]:
        return zeros_of(self._layers)

    def set_level(self, level: float) -> None:
        """Nothing where the level is the model's own; refused otherwise."""
        if abs(level - self._asked) > 1e-9:
            self.set_sparsity_level(level)

    def set_sparsity_level(
        self, sparsity_level: float, layer: object = None, run_batchnorm_adaptation: bool = False
    ) -> None:
        """Refused: the level is that of the model.

        Raises
        ------
        UsageError
            Always.
        """
        raise UsageError(
            "const_sparsity keeps the zeros that there are, so its level cannot be set",
            "Take magnitude_sparsity to add some.",
        )

    def statistics(self, quickly_collected_only: bool = False) -> ConstSparsityStatistics:
        """How sparse the model is."""
        return ConstSparsityStatistics(self._model_statistics())

    def rebase(self, source: io.LoadedModel, cut: Cut | None = None) -> None:
        """Start from another form of the same model; what is left of the original's zeros stays."""
        CompressionController.rebase(self, source, cut)
        self._find_layers()
        self._zeros = self._chosen()
        if cut is None:
            return
        for layer in self._layers:
            if layer.name in self._first:
                flags = cut(layer.name, self._first[layer.name])
                self._zeros[layer.name] = layer.matrix(flags.astype(np.float64)) != 0
