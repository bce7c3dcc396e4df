"""What users of NNCF know as statistics: how sparse a model is, and what pruned it.

The names, the arguments and the tables are those of NNCF 2.14 (`nncf.common.sparsity.statistics` and
`nncf.common.pruning.statistics`); every ratio says what it is a share of. Whoever collects the figures makes these
values: `onnxprune.inspection` from any file, controllers from their masks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from onnxprune.report.grid import grid
from onnxprune.report.pruned import (
    FilterPruningStatistics,
    PrunedLayerSummary,
    PrunedModelStatistics,
    PrunedModelTheoreticalBorderline,
)

__all__ = [
    "ConstSparsityStatistics",
    "FilterPruningStatistics",
    "LayerThreshold",
    "MagnitudeSparsityStatistics",
    "MovementSparsityStatistics",
    "PrunedLayerSummary",
    "PrunedModelStatistics",
    "PrunedModelTheoreticalBorderline",
    "RBSparsityStatistics",
    "SparsifiedLayerSummary",
    "SparsifiedModelStatistics",
]

_TARGET = "A target level of the sparsity for the algorithm for the current epoch"
_NAME_VALUE = ("Statistic's name", "Value")


@dataclass(frozen=True)
class SparsifiedLayerSummary:
    """One layer that is sparse, or could be.

    Attributes
    ----------
    name
        Of the layer.
    weight_shape
        As the file holds the weight.
    sparsity_level
        Zeros / elements of this weight, 0..1.
    weight_percentage
        Elements of this weight as a percentage of all weights of the whole model, 0..100.
    """

    name: str
    weight_shape: Sequence[int]
    sparsity_level: float
    weight_percentage: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "name": self.name,
            "weight_shape": [int(extent) for extent in self.weight_shape],
            "sparsity_level": self.sparsity_level,
            "weight_percentage": self.weight_percentage,
        }


@dataclass(frozen=True)
class SparsifiedModelStatistics:
    """How sparse a model is.

    Attributes
    ----------
    sparsity_level
        Zeros / elements, over all float initializers of the model, 0..1.
    sparsity_level_for_layers
        Zeros / elements, over the weights of the layers that are handled, 0..1.
    sparsified_layers_summary
        Those layers.
    """

    sparsity_level: float
    sparsity_level_for_layers: float
    sparsified_layers_summary: Sequence[SparsifiedLayerSummary]

    def to_str(self) -> str:
        """Two tables: the model, and its layers where there are some."""
        model = grid(
            _NAME_VALUE,
            [
                ["Sparsity level of the whole model", self.sparsity_level],
                ["Sparsity level of all sparsified layers", self.sparsity_level_for_layers],
            ],
        )
        text = (
            f"Statistics of the sparsified model:\n{model}\n"
            "Whole model: zeros / elements of all float initializers.\n"
            "Sparsified layers: zeros / elements of these layers' weights."
        )
        if not self.sparsified_layers_summary:
            return text
        layers = grid(
            ["Layer's name", "Weight's shape", "Sparsity level", "Weight's percentage"],
            [
                [layer.name, layer.weight_shape, layer.sparsity_level, layer.weight_percentage]
                for layer in self.sparsified_layers_summary
            ],
        )
        return (
            f"{text}\n\nStatistics by sparsified layers:\n{layers}\n"
            "Sparsity level: zeros / elements of the weight.\n"
            "Weight's percentage: its elements in % of all float initializers."
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "sparsity_level": self.sparsity_level,
            "sparsity_level_for_layers": self.sparsity_level_for_layers,
            "sparsified_layers_summary": [layer.to_dict() for layer in self.sparsified_layers_summary],
        }


@dataclass(frozen=True)
class LayerThreshold:
    """The smallest importance that a layer's weights needed to stay."""

    name: str
    threshold: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"name": self.name, "threshold": self.threshold}


@dataclass(frozen=True)
class MagnitudeSparsityStatistics:
    """What magnitude sparsity did.

    Attributes
    ----------
    model_statistics
        Of the model.
    thresholds
        One per layer, from the mask that was reached: the same value throughout where one threshold holds for all
        layers.
    target_sparsity_level
        What the schedule asks of this round, as a share of the weights of the layers that are handled; None
        where every layer has a level of its own.
    """

    model_statistics: SparsifiedModelStatistics
    thresholds: Sequence[LayerThreshold]
    target_sparsity_level: float | None

    def to_str(self) -> str:
        """The model's tables, the target, and the thresholds."""
        algorithm = grid(_NAME_VALUE, [[_TARGET, self.target_sparsity_level]])
        thresholds = grid(
            ["Layer's name", "Sparsity threshold"],
            [[layer.name, layer.threshold] for layer in self.thresholds],
        )
        return (
            f"{self.model_statistics.to_str()}\n\n"
            f"Statistics of the magnitude sparsity algorithm:\n{algorithm}\n{thresholds}\n"
            "The target is a share of the weights of the sparsified layers."
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "model_statistics": self.model_statistics.to_dict(),
            "thresholds": [layer.to_dict() for layer in self.thresholds],
            "target_sparsity_level": self.target_sparsity_level,
        }


@dataclass(frozen=True)
class ConstSparsityStatistics:
    """What keeping a model's zeros left of it."""

    model_statistics: SparsifiedModelStatistics

    def to_str(self) -> str:
        """The model's tables."""
        return self.model_statistics.to_str()

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"model_statistics": self.model_statistics.to_dict()}


@dataclass(frozen=True)
class RBSparsityStatistics:
    """What regularisation-based sparsity did.

    Attributes
    ----------
    model_statistics
        Of the model.
    target_sparsity_level
        What the schedule asks of this round, as a share of the weights of the layers that are handled.
    mean_sparse_prob
        `1 - mean(sigmoid(s))` over the mask logits s: how probable it is that a weight is zeroed.
    """

    model_statistics: SparsifiedModelStatistics
    target_sparsity_level: float
    mean_sparse_prob: float

    def to_str(self) -> str:
        """The model's tables, the target, and the probability."""
        algorithm = grid(
            _NAME_VALUE,
            [
                [_TARGET, self.target_sparsity_level],
                ["The probability that one weight will be zeroed", self.mean_sparse_prob],
            ],
        )
        return (
            f"{self.model_statistics.to_str()}\n\nStatistics of the RB-sparsity algorithm:\n{algorithm}\n"
            "The target is a share of the weights of the sparsified layers.\n"
            "The probability is a mean over the same weights."
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "model_statistics": self.model_statistics.to_dict(),
            "target_sparsity_level": self.target_sparsity_level,
            "mean_sparse_prob": self.mean_sparse_prob,
        }


@dataclass(frozen=True)
class MovementSparsityStatistics:
    """What movement sparsity did.

    Attributes
    ----------
    model_statistics
        Of the model.
    importance_threshold
        Weights with no more importance than this are zeroed; minus infinity before the schedule starts.
    importance_regularization_factor
        Factor of the penalty on importance.
    """

    model_statistics: SparsifiedModelStatistics
    importance_threshold: float
    importance_regularization_factor: float

    def to_str(self) -> str:
        """The model's tables, the threshold, and the factor."""
        algorithm = grid(
            _NAME_VALUE,
            [
                ["Mask Importance Threshold", self.importance_threshold],
                ["Importance Regularization Factor", self.importance_regularization_factor],
            ],
        )
        return (
            f"{self.model_statistics.to_str()}\n\nStatistics of the movement-sparsity algorithm:\n{algorithm}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values; JSON has no spelling for an infinite threshold, so that one becomes None."""
        threshold = self.importance_threshold
        return {
            "model_statistics": self.model_statistics.to_dict(),
            "importance_threshold": threshold if abs(threshold) < float("inf") else None,
            "importance_regularization_factor": self.importance_regularization_factor,
        }
